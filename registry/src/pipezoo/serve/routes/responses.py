"""`/v1/responses`, without anything that is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from pipezoo.serve.chat_request import ChatRequest, PreparedChat
from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.fields.responses import ResponsesBody
from pipezoo.serve.http.json_body import JSONRoute
from pipezoo.serve.http.watched import EventStream, JSONAnswer
from pipezoo.serve.model import ServedModel
from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.replies.response_items import Event
from pipezoo.serve.replies.responses import ResponsesReply
from pipezoo.serve.service import Served, Service
from pipezoo_core.request import new_request_id

__all__ = ["router"]

router = APIRouter(route_class=JSONRoute, tags=["generation"])


@router.post("/v1/responses", responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}})
async def responses(body: ResponsesBody, service: Served) -> Response:
    """Answer a conversation; as typed server-sent events with `stream`."""
    answer = _Answer(service, body)
    return EventStream(answer.events(), is_typed=True) if body.stream else JSONAnswer(answer.whole)


class _Answer:
    """One request, from its items to what the client gets."""

    def __init__(self, service: Service, body: ResponsesBody) -> None:
        arrival_time = time.monotonic()
        self._service = service
        self._body = body
        body.check_is_stateless()
        self._model: ServedModel = service.ready_model()
        self._chat = ChatRequest(
            messages=body.messages(), tools=body.tools_read(), params=body.params(self._model.defaults).updated(n=1)
        )
        lora = self._model.adapter_of(body.model, service.engine.adapters)
        self._heading = Heading(f"resp_{new_request_id()}", body.model or self._model.names[0])
        self._asked = partial(Asked, lora=lora, arrival_time=arrival_time, response_id=self._heading.id)

    async def whole(self) -> Event:
        with self._service.engine.places(1):
            asked, reply = await self._begun()
            [[output]] = await self._service.whole_outputs(asked)
            return reply.whole(output)

    async def events(self) -> AsyncGenerator[Event]:
        has_begun = False
        with self._service.engine.places(1):
            asked, reply = await self._begun()
            async with aclosing(self._service.outputs(asked)) as outputs:
                async for _, output in outputs:
                    if not has_begun:  # not before: what the engine refuses is a response with a status of its own
                        has_begun = True
                        for event in reply.begin():
                            yield event
                    for event in reply.events(output):
                        yield event

    async def _begun(self) -> tuple[Asked, ResponsesReply]:
        chat = await self._chat.prepared(self._model)
        tokenizer = self._model.tokenizer
        reply = ResponsesReply(
            self._heading,
            chat.parser(),
            echoed=_echoed(self._body, chat),
            num_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        )
        return self._asked(prompts=[chat.prompt], params=chat.params), reply


def _echoed(body: ResponsesBody, chat: PreparedChat) -> dict[str, Any]:
    given = body.model_dump(by_alias=True, exclude_none=True, include={"text", "tool_choice", "tools"})
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls,
        "temperature": chat.params.temperature,
        "text": given.get("text") or {"format": {"type": "text"}},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_p": chat.params.top_p,
    }
