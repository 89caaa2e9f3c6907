"""`/v1/completions`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.fields.completion import CompletionBody
from pipezoo.serve.http.json_body import JSONRoute
from pipezoo.serve.http.watched import EventStream, JSONAnswer
from pipezoo.serve.model import ServedModel
from pipezoo.serve.replies.completion import Completion, CompletionReply, CompletionWishes, GivenPrompt
from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.service import Served, Service
from pipezoo_core.request import TextGenerationRequest, new_request_id
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["router"]

router = APIRouter(route_class=JSONRoute, tags=["generation"])


@router.post("/v1/completions", responses={200: {"model": Completion}})
async def completions(body: CompletionBody, service: Served) -> Response:
    """Complete texts; as server-sent events with `stream`."""
    answer = _CompletionAnswer(service, body)
    return EventStream(answer.events()) if body.stream else JSONAnswer(answer.whole)


class _CompletionAnswer:
    """One request, from its prompts to what the client gets."""

    def __init__(self, service: Service, body: CompletionBody) -> None:
        arrival_time = time.monotonic()
        self._service = service
        self._body = body
        self._model: ServedModel = service.ready_model()
        self._given = body.prompts
        self._params: SamplingParams = body.params(self._model.defaults)
        lora = self._model.adapter_of(body.model, service.engine.adapters)
        self._num_answers = len(self._given) * self._params.n
        self._heading = Heading(f"cmpl-{new_request_id()}", body.model or self._model.names[0])
        self._asked = partial(Asked, lora=lora, arrival_time=arrival_time, response_id=self._heading.id)

    async def whole(self) -> Completion:
        with self._service.engine.places(self._num_answers):
            asked, reply = await self._begun()
            return reply.whole(await self._service.whole_outputs(asked))

    async def events(self) -> AsyncGenerator[Completion]:
        with self._service.engine.places(self._num_answers):
            asked, reply = await self._begun()
            async with aclosing(self._service.outputs(asked)) as outputs:
                async for number, output in outputs:
                    for chunk in reply.chunks(number, output):
                        yield chunk
        for chunk in reply.last_chunks():
            yield chunk

    async def _begun(self) -> tuple[Asked, CompletionReply]:
        requests = [TextGenerationRequest(prompt=prompt) for prompt in self._given]
        making = [asyncio.ensure_future(self._model.prompt_tokens(each, self._params)) for each in requests]
        try:
            prompts = await asyncio.gather(*making)
        finally:
            for each in making:  # where one fails, the others would go on without a place
                each.cancel()
        body = self._body
        wishes = CompletionWishes(
            n=self._params.n,
            echo=body.echo,
            num_tokens=body.num_tokens,
            num_logprobs=body.logprobs,
            num_prompt_logprobs=body.prompt_logprobs,
            skip_special_tokens=self._params.skip_special_tokens,
            usage=body.wants_usage,
        )
        may_be_cut = self._params.truncate_prompt_tokens is not None
        reply = CompletionReply(
            self._heading,
            [GivenPrompt(given, tokens, may_be_cut) for given, tokens in zip(self._given, prompts, strict=True)],
            wishes,
            self._model.tokenizer,
        )
        return self._asked(prompts=prompts, params=self._params), reply
