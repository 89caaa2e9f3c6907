"""Treats a server badly, and looks at what is left: clients that go away, and bodies that something is wrong with.

    python benchmarks/faults.py MODEL                                      # 20,000 requests, 100,000 bodies
    python benchmarks/faults.py MODEL --requests 600 --bodies 2000 --described 200

A third of the clients goes away at a random moment. At several points the script waits until the server is idle, and
then all pages are free, the KV cache's books balance, the metrics count every answer that was begun, once, and the
memory of the server's two processes is noted. Any model will do; a tiny one is quick. What is not as it should be is
listed, and the exit status is 1. The last line is JSON. It needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
import urllib.request
from collections import Counter
from typing import Any

from serving import leaving, malformed
from serving.inspected import Books, Inspected, inspected, resident

POINTS = (0.1, 0.5, 1.0)  # of the requests, at which the server is looked at
SECONDS_TO_REST = 120
MAX_LENGTH = 1024  # tokens of a request
PART = 5_000  # bodies, after which the script says how it is


def at_rest(server: Inspected) -> Books:
    """Waits until the server has nothing to do, and returns its books."""
    give_up = time.monotonic() + SECONDS_TO_REST
    last = None
    while not ((books := server.books()).is_idle and books == last):  # one look may come before the last request does
        last = books
        if time.monotonic() > give_up:
            raise TimeoutError(f"the server does not come to rest: {books}")
        time.sleep(0.05)
    return books


def counted(server: Inspected) -> dict[str, float]:
    """Returns the metrics that are told here: ended answers by why, and requests of the engine."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as response:
        families = text_string_to_metric_families(response.read().decode())
    found = {}
    for sample in itertools.chain.from_iterable(family.samples for family in families):
        if sample.name == "vllm:request_success_total":
            found[sample.labels["finished_reason"]] = sample.value
        elif sample.name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            found[sample.name] = sample.value
    return found


def wrong(books: Books, metrics: dict[str, float], num_whole: int) -> list[str]:
    """Returns what is not as it should be of a server at rest, `num_whole` answers of which have reached a client."""
    ended = {reason: count for reason, count in metrics.items() if not reason.startswith("vllm:")}
    left = metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"]
    checks = {
        f"pages are lost: {books}": books.num_free_pages == books.num_pages,
        f"the KV cache's books do not balance: {books.integrity}": books.integrity is None,
        f"the engine died: {books}": books.num_deaths == 0,
        f"of {books.num_begun} answers the metrics have {ended}": sum(ended.values()) == books.num_begun,
        f"clients got {num_whole} answers, and the metrics have {ended}": ended["stop"] + ended["length"] >= num_whole,
        f"answers ended with errors: {ended}": ended["error"] == 0,
        f"requests are left: {metrics}": left == 0,
    }
    return [text for text, is_so in checks.items() if not is_so]


def under_leavers(server: Inspected, count: int, num_at_once: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Sends requests, a third of which is given up, and returns figures and what is wrong."""
    requests, failures, points = leaving.made_up(count, seed), [], []
    at_rest(server)
    num_whole = num_left = num_answers = done = 0
    for end in [round(part * count) for part in POINTS]:
        met = asyncio.run(leaving.ask_all(server.port, requests[done:end], num_at_once=num_at_once))
        num_whole, num_left = num_whole + met.num_whole, num_left + met.num_left
        num_answers, done = num_answers + met.num_answers, end
        books, metrics = at_rest(server), counted(server)
        found = met.failures + wrong(books, metrics, num_answers)
        failures += found
        points.append({"requests": end, **_memory(server), **metrics, "begun": books.num_begun})
        print(points[-1], *found[:3], sep="\n", flush=True)
    return {"whole": num_whole, "left": num_left, "points": points}, failures


def under_broken_bodies(server: Inspected, count: int, num_at_once: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Sends broken bodies, and returns figures and what is wrong."""
    bodies, statuses, points = malformed.broken(count, seed), Counter[int](), []
    failures: list[str] = []
    for done in range(0, count, PART):
        part = itertools.islice(bodies, min(PART, count - done))
        seen = asyncio.run(malformed.ask_all(server.port, part, num_at_once=num_at_once))
        statuses.update(seen.statuses)
        failures += seen.failures
        points.append({"bodies": done + sum(seen.statuses.values()), "failures": len(failures), **_memory(server)})
        print(points[-1], *seen.failures[:3], sep="\n", flush=True)
    return {"statuses": dict(sorted(statuses.items())), "points": points}, failures + _next_request(server)


def under_described(server: Inspected, count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Sends requests that are made up from the server's description, and returns figures and what is wrong."""
    from serving import described

    sent, failures = 0, []
    for is_valid in (True, False):
        try:
            sent += described.ask_all(
                f"http://127.0.0.1:{server.port}", is_valid=is_valid, num_examples=count, from_seed=seed
            )
        except Exception as error:  # whatever it is, it is what is looked for
            notes = "\n".join(getattr(error, "__notes__", []))
            failures.append(f"{type(error).__name__}: {error}\n{notes}")
    figures = {"bodies": sent, **_memory(server)}
    print(figures, flush=True)
    return figures, failures + _next_request(server)


def _next_request(server: Inspected) -> list[str]:
    """Returns what is wrong with the server behind all that: the next request is answered, and nothing is lost."""
    asked = leaving.made_up(30, seed=0, leaving=0)
    met = asyncio.run(leaving.ask_all(server.port, asked, num_at_once=8))
    books = at_rest(server)
    free = [] if books.num_free_pages == books.num_pages and books.integrity is None else [f"pages are lost: {books}"]
    return met.failures + free


def _memory(server: Inspected) -> dict[str, float]:
    return {name: round(resident(pid), 1) for name, pid in zip(("server MiB", "engine MiB"), server.pids, strict=True)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=20_000, help="of which a third is given up")
    parser.add_argument("--bodies", type=int, default=80_000, help="broken ones")
    parser.add_argument("--described", type=int, default=1_200, help="requests of each address by its description")
    parser.add_argument("--at-once", type=int, default=48)
    parser.add_argument("--kv-cache-memory", default="4MiB")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    load = {"device": "cpu", "dtype": "float32", "page_size": 16, "kv_cache_memory": asked.kv_cache_memory}
    load |= {"max_length": MAX_LENGTH}
    figures: dict[str, Any] = {}
    failures: list[str] = []
    with inspected(asked.model, load) as server:
        for name, work in {
            "leaving": lambda: under_leavers(server, asked.requests, asked.at_once, asked.seed),
            "broken": lambda: under_broken_bodies(server, asked.bodies, 8, asked.seed),
            "described": lambda: under_described(server, asked.described, asked.seed),
        }.items():
            begin = time.monotonic()
            found, wrongs = work()
            figures[name] = {**found, "failures": len(wrongs), "seconds": round(time.monotonic() - begin, 1)}
            failures += [f"{name}: {text}" for text in wrongs]
    for failure in failures[:100]:
        print(failure, file=sys.stderr)
    print(json.dumps(figures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
