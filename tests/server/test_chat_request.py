"""What a chat's answer may look like, where its model's answers begin with thoughts."""

import asyncio
from types import SimpleNamespace

import pytest
from core.chat_responses.family_chats import FAMILY_CHATS

from pipezoo.serve.chat_request import ChatRequest
from pipezoo.serve.errors import FieldError
from pipezoo_core.chat_responses import Tools
from pipezoo_core.sampling_params import SamplingParams

FORMS = {"regex": "a+", "choice": ["a", "b"], "grammar": 'start: "a"', "json_schema": '{"type": "object"}'}


class _Model:
    """A served model's format and prompts, without its weights."""

    def __init__(self, name):
        self._chat = FAMILY_CHATS[name]
        self.chat_format = self._chat.format
        self.tokenizer = SimpleNamespace(
            prompt_tokens=lambda request, params: [1],
            decode=lambda tokens, skip_special_tokens: self._chat.prompt,
        )

    async def in_thread(self, work):
        return work()


def _prepared(name, **form):
    request = ChatRequest(
        messages=[{"role": "user", "content": "hi"}], tools=Tools.read(None), params=SamplingParams(**form)
    )
    return asyncio.run(request.prepared(_Model(name)))


@pytest.mark.parametrize("name", ["DeepSeek R1", "gpt-oss"])
@pytest.mark.parametrize("form", ["regex", "choice"])
def test_a_form_that_the_thoughts_would_have_to_have_is_refused(name, form):
    with pytest.raises(FieldError, match=f"begin with thoughts.*{form}"):
        _prepared(name, **{form: FORMS[form]})


@pytest.mark.parametrize(
    ("name", "form", "constraint"),
    [
        ("DeepSeek R1", "grammar", "grammar"),
        ("DeepSeek R1", "json_schema", "grammar"),
        ("gpt-oss", "json_schema", "grammar"),
        ("Qwen and Hermes", "json_schema", "json_schema"),
        ("Qwen and Hermes", "regex", "regex"),
    ],
)
def test_other_forms_are_followed_where_the_answer_begins(name, form, constraint):
    assert _prepared(name, **{form: FORMS[form]}).params.constraint == constraint
