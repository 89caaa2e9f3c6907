"""Requests of all kinds, and clients of which some go away at a random moment: before, in or behind what they send."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["Asked", "Met", "ask_all", "made_up"]

MAX_TOKENS, MAX_TOKENS_OF_LEAVERS = 48, 400
SECONDS = 300
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Kyoto", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": WEATHER}
LONG = {"ignore_eos": True}
SYSTEM = "You are somebody who answers briefly, and who begins each chat with the same words. " * 2


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and when its client goes away.

    Attributes:
        path: of the endpoint.
        body: what is sent.
        num_answers: that it asks for.
        leaves: None of a client that stays; otherwise how much of the request it sends, up to 1, how many bytes of the
            response it reads then, and for how many seconds it waits for them.
        is_rude: whether the connection is reset, not closed.
    """

    path: str
    body: dict[str, Any]
    num_answers: int
    leaves: tuple[float, int, float] | None
    is_rude: bool


@dataclass(slots=True)
class Met:
    """What became of requests.

    Attributes:
        num_whole: those that were answered whole.
        num_answers: the answers of those.
        num_left: those whose clients went away.
        failures: what else there was.
    """

    num_whole: int
    num_answers: int
    num_left: int
    failures: list[str]


def made_up(count: int, seed: int, *, leaving: float = 1 / 3) -> list[Asked]:
    """Returns requests of all kinds; a part of their clients goes away."""
    rng = random.Random(seed)
    return [_one(rng, leaving) for _ in range(count)]


def _one(rng: random.Random, leaving: float) -> Asked:
    path = rng.choice(["/v1/chat/completions", "/v1/completions", "/v1/responses"])
    words = "".join(rng.choices("abcdefghij ", k=rng.randint(1, 80)))
    body: dict[str, Any] = {"temperature": rng.choice([0, 1]), "stream": rng.random() < 0.6}
    leaves = None
    if rng.random() < leaving:
        sent = rng.choice([rng.random(), 1.0, 1.0, 1.0])
        leaves = (sent, rng.choice([0, 1, rng.randint(1, 4000)]), 10 ** rng.uniform(-3, 0))
    num_tokens, num_answers = rng.randint(1, MAX_TOKENS_OF_LEAVERS if leaves else MAX_TOKENS), 1
    if path == "/v1/completions":
        prompt = rng.choice([words, [words, words[::-1], SYSTEM], [*words.encode()], SYSTEM + words])
        kinds: list[dict[str, Any]] = [LONG, LONG, {}, {"n": 3, "temperature": 1}, {"logprobs": 3}]
        kinds += [{"structured_outputs": {"regex": "[a-z]{1,40}"}}, {"echo": True, "logprobs": 1}, {"stop": ["a", "e"]}]
        body |= {"prompt": prompt, "max_tokens": num_tokens, **rng.choice(kinds)}
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        num_answers = body.get("n", 1) * (1 if is_one else len(prompt))
    elif path == "/v1/chat/completions":
        schema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER}}
        tools = [{"type": "function", "function": FUNCTION}]
        kinds = [{}, {"n": 2, "temperature": 1}, {"logprobs": True, "top_logprobs": 2}, {"response_format": schema}]
        kinds += [LONG, LONG, {"tools": tools}, {"tools": tools, "tool_choice": "required"}]
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": words}]
        body |= {"messages": messages, "max_completion_tokens": num_tokens, **rng.choice(kinds)}
        num_answers = body.get("n", 1)
    else:
        kinds = [{}, {"tools": [{"type": "function", **FUNCTION}]}, {"instructions": SYSTEM}]
        body |= {"input": words, "max_output_tokens": num_tokens, **rng.choice(kinds)}
    return Asked(path, body, num_answers, leaves, rng.random() < 0.5)


async def ask_all(port: int, requests: list[Asked], *, num_at_once: int) -> Met:
    """Sends requests, each over a connection of its own, and looks at what comes."""
    met, waiting = Met(0, 0, 0, []), iter(requests)

    async def work() -> None:
        for asked in waiting:
            try:
                async with asyncio.timeout(SECONDS):
                    await _ask(port, asked, met)
            except (OSError, TimeoutError, ValueError, LookupError) as error:
                met.failures.append(f"{asked.path} {json.dumps(asked.body)[:300]}: {type(error).__name__}: {error}")

    await asyncio.gather(*(work() for _ in range(num_at_once)))
    return met


async def _ask(port: int, asked: Asked, met: Met) -> None:
    body = json.dumps(asked.body).encode()
    head = f"POST {asked.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if asked.leaves is None:
            writer.write(data)
            _check(asked, await reader.read(-1))
            met.num_whole += 1
            met.num_answers += asked.num_answers
        else:
            met.num_left += 1
            await _leave(reader, writer, data, asked.leaves)
    finally:
        if asked.is_rude and asked.leaves is not None:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


async def _leave(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, leaves: tuple[float, int, float]
) -> None:
    sent, num_bytes, seconds = leaves
    writer.write(data[: int(sent * len(data))])
    try:
        async with asyncio.timeout(seconds):
            while num_bytes > 0 and (found := await reader.read(num_bytes)):
                num_bytes -= len(found)
            if num_bytes == 0:
                await asyncio.sleep(seconds / 2)
    except TimeoutError:
        pass


def _check(asked: Asked, response: bytes) -> None:
    head, _, content = response.partition(b"\r\n\r\n")
    if b" 200 " not in head.splitlines()[0]:
        raise ValueError(response[:600].decode(errors="replace"))
    if not asked.body["stream"]:
        found = json.loads(content)
        if asked.path == "/v1/responses":
            if found["status"] not in ("completed", "incomplete"):
                raise ValueError(content[:600].decode())
        elif len(found["choices"]) != asked.num_answers:
            raise ValueError(content[:600].decode())
        return
    lines = [line for line in content.splitlines() if line.startswith(b"data: ")]  # others: sizes of chunks
    is_typed = asked.path == "/v1/responses"
    events = [json.loads(line[6:]) for line in (lines if is_typed else lines[:-1])]
    if any(event.get("error") or event.get("type") == "error" for event in events if not is_typed):
        raise ValueError(content[-600:].decode())
    if is_typed:
        if events[-1]["type"] not in ("response.completed", "response.incomplete"):
            raise ValueError(content[-600:].decode())
        return
    ended = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"] is not None]
    if lines[-1] != b"data: [DONE]" or sorted(ended) != [*range(asked.num_answers)]:
        raise ValueError(content[-600:].decode())
