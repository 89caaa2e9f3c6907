"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from fastapi import APIRouter
from typing_extensions import TypedDict

from pipezoo.serve.fields.tokens import DetokenizeBody, TokenizeBody
from pipezoo.serve.http.json_body import JSONRoute
from pipezoo.serve.model import ServedModel
from pipezoo.serve.service import Served
from pipezoo_core.tokenizer.chat import Chat

__all__ = ["router"]

router = APIRouter(route_class=JSONRoute, tags=["tokens"])


class Tokens(TypedDict):
    """The tokens of a text or a chat."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(TypedDict):
    """The text of tokens."""

    prompt: str


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, service: Served) -> Tokens:
    """Make tokens of a text, or of a chat: those that `/v1/chat/completions` gives the model.

    That is where its `tool_choice` is `auto`, and without `truncate_prompt_tokens`. They may be more than the model
    takes.
    """
    body.check()
    model = service.ready_model()
    model.adapter_of(body.model, service.engine.adapters)

    def work() -> Tokens:
        tokens = _tokens(model, body)
        texts = [model.tokenizer.text_of(token) for token in tokens] if body.return_token_strs else None
        return {
            "count": len(tokens),
            "max_model_len": model.tokenizer.max_length,
            "tokens": tokens,
            "token_strs": texts,
        }

    with service.engine.places(1):  # of those that answers have: prompts of both wait for the same threads
        return await model.in_thread(work)


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, service: Served) -> Text:
    """Make a text of tokens, special ones included."""
    model = service.ready_model()
    model.adapter_of(body.model, service.engine.adapters)

    def work() -> Text:
        tokens = model.tokenizer.encode(body.tokens).tolist()  # checks them
        return {"prompt": model.tokenizer.decode(tokens, skip_special_tokens=False)}

    with service.engine.places(1):
        return await model.in_thread(work)


def _tokens(model: ServedModel, body: TokenizeBody) -> list[int]:
    if body.messages is None:
        assert body.prompt is not None, "there is one of them"
        tokens: list[int] = model.tokenizer.encode(body.prompt, body.add_special_tokens).tolist()
        return tokens
    messages, tools = model.chat_format.told.chat([message.plain() for message in body.messages], body.tools_read())
    chat = Chat(
        messages=messages,
        tools=tools,
        chat_template_kwargs=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
    )
    of_chat: list[int] = model.tokenizer.chat_tokens(chat).tolist()
    return of_chat
