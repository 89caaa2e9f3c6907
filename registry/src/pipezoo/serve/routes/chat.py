"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from pipezoo.serve.chat_request import ChatRequest
from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.fields.chat import ChatBody
from pipezoo.serve.http.json_body import JSONRoute
from pipezoo.serve.http.watched import EventStream, JSONAnswer
from pipezoo.serve.model import ServedModel
from pipezoo.serve.replies.chat import ChatChunk, ChatCompletion, ChatReply
from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.service import Served, Service
from pipezoo_core.request import new_request_id

__all__ = ["router"]

router = APIRouter(route_class=JSONRoute, tags=["generation"])


@router.post("/v1/chat/completions", responses={200: {"model": ChatCompletion}})
async def chat_completions(body: ChatBody, service: Served) -> Response:
    """Answer a chat; as server-sent events with `stream`."""
    answer = _ChatAnswer(service, body)
    return EventStream(answer.events()) if body.stream else JSONAnswer(answer.whole)


class _ChatAnswer:
    """One request, from its messages to what the client gets."""

    def __init__(self, service: Service, body: ChatBody) -> None:
        arrival_time = time.monotonic()
        self._service = service
        self._body = body
        self._model: ServedModel = service.ready_model()
        self._chat = ChatRequest(
            messages=[message.plain() for message in body.messages],
            tools=body.tools_read(),
            params=body.params(self._model.defaults),
            chat_template_kwargs=body.chat_template_kwargs,
            continue_final_message=body.continue_final_message,
        )
        lora = self._model.adapter_of(body.model, service.engine.adapters)
        self._heading = Heading(f"chatcmpl-{new_request_id()}", body.model or self._model.names[0])
        self._asked = partial(Asked, lora=lora, arrival_time=arrival_time, response_id=self._heading.id)

    async def whole(self) -> ChatCompletion:
        with self._service.engine.places(self._chat.params.n):
            asked, reply = await self._begun()
            [outputs] = await self._service.whole_outputs(asked)
            return reply.whole(outputs)

    async def events(self) -> AsyncGenerator[ChatChunk]:
        with self._service.engine.places(self._chat.params.n):
            asked, reply = await self._begun()
            async with aclosing(self._service.outputs(asked)) as outputs:
                async for _, output in outputs:
                    for chunk in reply.chunks(output):
                        yield chunk
        for chunk in reply.last_chunks():
            yield chunk

    async def _begun(self) -> tuple[Asked, ChatReply]:
        body = self._body
        chat = await self._chat.prepared(self._model)
        reply = ChatReply(
            self._heading,
            chat.prompt,
            new_parser=chat.parser,
            num_logprobs=body.num_logprobs,
            num_prompt_logprobs=body.prompt_logprobs,
            wants_usage=body.wants_usage,
        )
        return self._asked(prompts=[chat.prompt], params=chat.params), reply
