"""Sends requests to an OpenAI-compatible server at the times they are due, and notes when each piece of text comes.

It reads sockets line by line and nothing else: client and server share two cores, and a library that parses each event
takes more of them than the server's own HTTP does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass, field

from serving.workload import Request

__all__ = ["Answer", "ask"]

SECONDS = 600


@dataclass(slots=True)
class Answer:
    """What came of a request; times are seconds after it was due, whether or not it could be sent then.

    Attributes:
        pieces: when each event with text came.
        num_tokens: that the server says it generated; 0 where it failed.
        end: when the last byte came.
        error: what went wrong; None where nothing did.
    """

    pieces: list[float] = field(default_factory=list)
    num_tokens: int = 0
    end: float = 0.0
    error: str | None = None

    @property
    def time_to_first_token(self) -> float:
        return self.pieces[0]

    @property
    def time_per_token(self) -> float:
        """Seconds from one token to the next, on average over the answer."""
        return (self.pieces[-1] - self.pieces[0]) / max(1, self.num_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds from each piece of text to the next: what a reader sees."""
        return [later - earlier for earlier, later in itertools.pairwise(self.pieces)]


async def ask(port: int, requests: list[Request]) -> list[Answer]:
    """Sends each request when it is due, over a connection of its own."""
    begin = time.perf_counter() + 0.1
    return await asyncio.gather(*(_ask(port, request, begin + request.start) for request in requests))


async def _ask(port: int, request: Request, due: float) -> Answer:
    await asyncio.sleep(due - time.perf_counter())
    answer = Answer()
    try:
        async with asyncio.timeout(SECONDS):
            await _read(port, request, due, answer)
    except (OSError, TimeoutError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.end = time.perf_counter() - due
    if answer.error is None and answer.num_tokens != request.num_tokens:
        answer.error = f"{answer.num_tokens} tokens, not {request.num_tokens}"
    return answer


async def _read(port: int, request: Request, due: float, answer: Answer) -> None:
    body = json.dumps(
        {
            "model": "model",
            "prompt": request.prompt,
            "max_tokens": request.num_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError((status + await reader.read())[:500].decode(errors="replace"))
        async for line in reader:  # the sizes of chunks are lines too, and none of them is data
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter() - due
            event = json.loads(line[6:])
            if event.get("usage"):
                answer.num_tokens = event["usage"]["completion_tokens"]
            if event.get("error"):
                raise ValueError(str(event["error"]))
            if event["choices"] and event["choices"][0].get("text"):
                answer.pieces.append(now)
    finally:
        writer.close()
