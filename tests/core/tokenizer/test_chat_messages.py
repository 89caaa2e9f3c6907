"""What a chat must be: sound in each message, and not too large, which is seen in no time however large it is."""

import pytest

from pipezoo_core.errors import EmptyPromptError, InvalidRequestError
from pipezoo_core.tokenizer.chat_messages import check_messages

USER = {"role": "user", "content": "Hello"}


def nested(depth, kind):
    value = "x"
    for _ in range(depth):
        value = {"a": value} if kind is dict else kind([value])
    return value


def doubled(depth):
    """A list of a list, each of them twice in the one around it: few objects, and 2^depth of them to be written."""
    value = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def holds_itself(kind):
    value = kind()
    if kind is dict:
        value["a"] = value
    else:
        value.append(value)
    return value


TOO_LARGE = {
    "messages": [USER] * 10**6,
    "no messages": [None] * 10**6,
    "text": [{**USER, "content": "x" * (2**24 + 1)}],
    "texts": [{**USER, "content": "x" * 10**6}] * 20,
    "a key": [{**USER, "x" * (2**24 + 1): 1}],
    "keys": [{**USER, **dict.fromkeys(map(str, range(10**5)))}],
    "values": [{**USER, "tools": [1] * 10**6}],
    "values in messages": [{**USER, "tools": [1] * 100}] * 5000,
    "tuples": [{**USER, "tools": ((1,) * 1000,) * 1000}],
    "doubled": [{**USER, "tools": doubled(60)}],
    "a list in itself": [{**USER, "tools": holds_itself(list)}],
    "a dict in itself": [{**USER, "tools": holds_itself(dict)}],
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_chat_that_is_too_large_is_refused(name):
    with pytest.raises(InvalidRequestError, match="the chat is too large") as raised:
        check_messages(TOO_LARGE[name])
    assert len(str(raised.value)) < 1000


NOT_SOUND = [
    "Hello", None, 7, [], {}, {"role": "user"}, {"content": "x"}, {"role": 7, "content": "x"},
    {"role": "user", "content": 7}, {"role": "user", "content": None},
    {"role": "user", "content": ["x"]}, {"role": b"user", "content": "x"},
]  # fmt: skip


@pytest.mark.parametrize("message", NOT_SOUND, ids=repr)
def test_a_message_that_is_not_sound_is_named_by_its_number(message):
    with pytest.raises(InvalidRequestError, match="message 2 of the chat is not sound"):
        check_messages([USER, message])


def test_sound_chats():
    check_messages([USER])
    check_messages([USER] * 10_000)
    check_messages([{**USER, "content": "x" * (2**24 - 100)}])
    for kind in (dict, list, tuple):
        check_messages([{**USER, "tools": nested(30_000, kind)}])
    with pytest.raises(EmptyPromptError):
        check_messages([])
