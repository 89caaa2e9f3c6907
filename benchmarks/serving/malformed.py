"""Bodies that something is wrong with: good ones in which bytes, tokens or values were changed at random."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Seen", "ask_all", "broken", "wrong"]

SECONDS = 300  # after which the server hangs; far more than a busy machine needs
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "the fox", "max_tokens": 3, "temperature": 0, "logprobs": 2, "stop": ["x"]}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 2, "n": 2, "seed": 1, "logit_bias": {"5": 1.5}}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "structured_outputs": {"regex": "[ab]+"}, "top_k": 5}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "structured_outputs": {"choice": ["a", "b"]}, "min_p": 0.1}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 1, "prompt_logprobs": 1}),
    (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}, "bad_words": ["a"]},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "123456789", "content": "1"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "max_completion_tokens": 3,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "hi"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}}},
            },
            "max_tokens": 3,
            "logprobs": True,
            "top_logprobs": 2,
            "chat_template_kwargs": {"x": 1},
            "stream": True,
        },
    ),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "function_call", "call_id": "123456789", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "123456789", "output": "1"},
            ],
            "instructions": "be brief",
            "tools": [{"type": "function", **FUNCTION}],
            "text": {"format": {"type": "text"}},
            "max_output_tokens": 3,
            "metadata": {"a": "b"},
        },
    ),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2, "stream": True, "temperature": 0.5, "store": False}),
    ("/tokenize", {"prompt": "the fox", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e308, 1e-320),
    *(
        "",
        " ",
        "a" * 3000,
        "\x00",
        "\ud7ff\uffff",
        "😀" * 50,
        "none",
        "auto",
        "required",
        "{}",
        "[",
        "(((",
        "a{1000000}",
    ),
    *([], [[]], [None], {}, {"": None}, {"type": "object"}, {"$ref": "#"}, {"type": ["null"]}, [[[[[[]]]]]]),
]
NAMES = ("", "model", "n", "stream", "type", "$ref", "best_of", "messages", "prompt", "input", "suffix", "a" * 300)
PIECES = [
    *(b"", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"-", b"\x00"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 5000, b'{"a":' * 3000, b"9" * 5000, b" " * 100),
]

Change = Callable[[bytes, random.Random], bytes]
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def broken(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields paths and bodies; a few of them turn out to be good."""
    rng = random.Random(seed)
    for _ in range(count):
        path, good = rng.choice(GOOD)
        content = copy.deepcopy(good)
        if rng.random() < 0.6:
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                _change_value(content, rng)
            yield path, json.dumps(content, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
            continue
        body = json.dumps(content).encode()
        for _ in range(rng.choice([1, 1, 2, 8])):
            body = rng.choice(CHANGES)(body, rng)
        yield path, body


def _change_value(content: Any, rng: random.Random) -> None:
    """Changes something at a random place: a value becomes odd, a name another one, or one of them goes."""
    places = [*_places(content)]
    if not places:
        return
    container, key = rng.choice(places)
    match rng.randrange(5):
        case 0 | 1:
            container[key] = copy.deepcopy(rng.choice(ODD))
        case 2:
            del container[key]
        case 3:
            value = copy.deepcopy(container[key])
            if isinstance(container, list):
                container += [value] * rng.choice([1, 3, 200])
            else:
                container[rng.choice(NAMES)] = value
        case _:
            other, name = rng.choice(places)
            container[key] = copy.deepcopy(other[name])


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    for key in [*content] if isinstance(content, dict) else [*range(len(content))]:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def _flipped(body: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(max(1, len(body)))
    return body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :]


def _cut(body: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    return body[:begin] + body[min(end, begin + rng.choice([1, 4, 10**6])) :]


def _inserted(body: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(body) + 1)
    return body[:place] + rng.choice(PIECES) + body[place:]


def _repeated(body: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    return body[:end] + body[begin:end] * rng.choice([1, 2, 10]) + body[end:]


CHANGES: list[Change] = [_flipped, _cut, _inserted, _repeated]


@dataclass(slots=True)
class Seen:
    """What a server said.

    Attributes:
        statuses: status -> how often.
        failures: answers that no client should get, with what was sent.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


async def ask_all(port: int, bodies: Iterator[tuple[str, bytes]], *, num_at_once: int) -> Seen:
    """Sends bodies over a few connections, each of which waits for its answer before it asks again."""
    seen = Seen()

    async def work() -> None:
        connection: _Connection | None = None
        for path, body in bodies:
            try:
                async with asyncio.timeout(SECONDS):
                    try:
                        connection = connection or await _connected(port)
                        status, content, stays = await _answer(connection, path, body)
                    except (EOFError, ConnectionError):  # the server gives up connections that were idle for a while
                        connection = await _connected(port)
                        status, content, stays = await _answer(connection, path, body)
            except (OSError, TimeoutError, ValueError, EOFError) as error:
                seen.failures.append(f"{path} {body[:2000]!r}: {type(error).__name__}: {error}")
                connection = None
                continue
            seen.statuses[status] = seen.statuses.get(status, 0) + 1
            if why := wrong(status, content):
                seen.failures.append(f"{path} {body[:2000]!r}: {status} {why}: {content[:500]!r}")
            if not stays:
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    await asyncio.gather(*(work() for _ in range(num_at_once)))
    return seen


async def _connected(port: int) -> _Connection:
    return await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)


async def _answer(connection: _Connection, path: str, body: bytes) -> tuple[int, bytes, bool]:
    """Returns the status, the content, and whether the connection can be used again."""
    reader, writer = connection
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    content = b""
    if "content-length" in headers:
        content = await reader.readexactly(int(headers["content-length"]))
    else:
        while size := int(await reader.readline(), 16):
            content += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return int(lines[0].split()[1]), content, headers.get("connection") != "close"


def wrong(status: int, content: bytes) -> str | None:
    """Returns what is wrong with an answer."""
    if status >= 500:
        return "an error of the server"
    if status >= 400:
        try:
            error = json.loads(content)["error"]
        except (ValueError, LookupError, TypeError):
            return "no error that a program can read"
        return None if {*error} == {"message", "type", "param", "code"} and error["message"] else "half an error"
    if b'"server_error"' in content:
        return "an error of the server in the stream"
    return None
