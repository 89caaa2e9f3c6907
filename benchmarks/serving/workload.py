"""Requests as they come to a server: when, with how many prompt tokens, for how many new ones.

Arrivals are a Poisson process: they do not wait for answers, as a closed loop of clients would, whose own waiting hides
what a slow server does. Lengths are log-normal, as those of chats are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Request", "arriving", "at_once"]

PROMPT, ANSWER = (32, 128, 512), (16, 64, 256)  # least, median and most tokens
SPREAD = 0.6  # the standard deviation of a length's logarithm


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        start: seconds after the first one.
        prompt: token ids, of its own: no prefix cache makes it free.
        num_tokens: that are asked for; an end token does not end the answer.
    """

    start: float
    prompt: list[int]
    num_tokens: int


def arriving(rate: float, count: int, seed: str) -> list[Request]:
    """Returns `count` requests, `rate` of them in a second on average."""
    rng = random.Random(seed)
    start = 0.0
    requests = []
    for _ in range(count):
        requests.append(_request(rng, start))
        start += rng.expovariate(rate)
    return requests


def at_once(count: int, seed: int) -> list[Request]:
    """Returns `count` requests that all come at second 0."""
    rng = random.Random(seed)
    return [_request(rng, 0.0) for _ in range(count)]


def _request(rng: random.Random, start: float) -> Request:
    prompt = [rng.randrange(1000, 40_000) for _ in range(_length(rng, *PROMPT))]
    return Request(start, prompt, _length(rng, *ANSWER))


def _length(rng: random.Random, least: int, median: int, most: int) -> int:
    return min(most, max(least, round(median * rng.lognormvariate(0, SPREAD))))
