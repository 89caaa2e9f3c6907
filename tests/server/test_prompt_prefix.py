"""Which requests belong together, because a prefix cache has what they share."""

import json

import pytest

from pipezoo.serve.prompt_prefix import prefix_of


def body(**fields):
    return json.dumps(fields).encode()


SYSTEM, FIRST = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
ANSWER, SECOND = {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Who are you?"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (body(messages=[SYSTEM, FIRST]), body(messages=[SYSTEM, FIRST, ANSWER, SECOND])),
        (body(prompt="a" * 2000), body(prompt="a" * 3000, temperature=0)),
    ],
    ids=["a chat that grows", "a long beginning"],
)
def test_what_begins_alike_belongs_together(one, other):
    assert prefix_of(one) == prefix_of(other) is not None


@pytest.mark.parametrize(
    "other",
    [
        body(messages=[SYSTEM, SECOND]),
        body(messages=[FIRST]),
        body(messages=[SYSTEM, FIRST], model="another"),
        body(messages=[SYSTEM, FIRST], cache_salt="mine"),
    ],
)
def test_what_begins_otherwise_does_not(other):
    assert prefix_of(body(messages=[SYSTEM, FIRST])) != prefix_of(other)


@pytest.mark.parametrize(
    "without", [b"", b"{", b"[1]", b"null", b'{"prompt": ""}', b"[" * 100_000, b"\xff", body(model="m")]
)
def test_a_body_without_a_prompt_belongs_nowhere(without):
    assert prefix_of(without) is None
