"""Measures servers under load: requests that arrive by themselves, whether or not earlier ones are answered.

    python benchmarks/peers/install.py vllm llamacpp        # once
    python benchmarks/serve.py --rates 2 4 8 --requests 100 --rounds 3
    python benchmarks/serve.py --in-process --rounds 5      # what HTTP costs, at 64 streams

Goodput is how many requests a second were answered in time: the first token within `--first` seconds, and the next ones
within `--next` each, on average over the answer. Every server gets the same requests at the same times, one server
after the other in each round. The last line is JSON. Run it alone. It needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import time

import compare
import models
import peers
from serving import client, servers, workload

PERCENTILES = (50, 95, 99)

Figures = dict[str, float]


def percentile(values: list[float], percent: int) -> float:
    """The least of the values that so many percent do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def figures_of(requests: list[workload.Request], answers: list[client.Answer], first: float, after: float) -> Figures:
    """Goodput, throughput, and percentiles in milliseconds; a request that failed was not answered in time."""
    good = [answer for answer in answers if answer.error is None]
    in_time = [one for one in good if one.time_to_first_token <= first and one.time_per_token <= after]
    seconds = max(request.start + answer.end for request, answer in zip(requests, answers, strict=True))
    figures = {
        "goodput req/s": len(in_time) / seconds,
        "tok/s": sum(one.num_tokens for one in good) / seconds,
        "failed": float(len(answers) - len(good)),
    }
    for name, values in {
        "first token": [one.time_to_first_token for one in good],
        "next token": [one.time_per_token for one in good],
        "gap": [gap for one in good for gap in one.gaps],
    }.items():
        figures |= {f"{name} p{p} ms": 1000 * percentile(values, p) for p in PERCENTILES if values}
    return figures


def under_load(port: int, rates: list[float], count: int, first: float, after: float) -> Figures:
    warm = workload.at_once(4, seed=-1)
    asyncio.run(client.ask(port, warm))
    found = {}
    for rate in rates:
        requests = workload.arriving(rate, count, seed=f"{rate:g}/s")  # of one seed, they would be in the prefix cache
        answers = asyncio.run(client.ask(port, requests))
        if failures := {answer.error for answer in answers if answer.error}:
            print(*sorted(failures)[:3], sep="\n", file=sys.stderr)
        of_rate = figures_of(requests, answers, first, after)
        found |= {f"{rate:g}/s {name}": value for name, value in of_rate.items()}
    return found


def over_http(model: str) -> float:
    """Tokens a second of as many streams as are answered side by side, over HTTP."""
    with servers.running("pipezoo", model) as port:
        asyncio.run(client.ask(port, workload.at_once(4, seed=-1)))
        requests = workload.at_once(servers.STREAMS, seed=0)
        answers = asyncio.run(client.ask(port, requests))
    if failures := {answer.error for answer in answers if answer.error}:
        raise compare.UnavailableError(min(failures))
    return figures_of(requests, answers, first=math.inf, after=math.inf)["tok/s"]


def in_process(model: str) -> float:
    """The same of the same requests, given to the pipeline itself."""
    from pipezoo import registry
    from pipezoo_core.request import TextGenerationRequest
    from pipezoo_core.sampling_params import SamplingParams

    settings = {"dtype": "bfloat16", "max_length": servers.MAX_LENGTH, "max_batch_size": servers.STREAMS}
    with registry.load(models.safetensors_folder(model), **settings) as llm:

        def answer(requests: list[workload.Request]) -> int:
            asked = [
                TextGenerationRequest(
                    prompt=request.prompt,
                    sampling_params=SamplingParams(max_new_tokens=request.num_tokens, temperature=0.0, ignore_eos=True),
                )
                for request in requests
            ]
            return sum(len(output.tokens) for output in llm.generate(asked))

        answer(workload.at_once(4, seed=-1))
        start = time.perf_counter()
        return answer(workload.at_once(servers.STREAMS, seed=0)) / (time.perf_counter() - start)


def measure(arguments: argparse.Namespace) -> tuple[dict[str, compare.Summary], dict[str, str]]:
    """Returns each server's figures over the rounds, and of those that have none the reason."""
    results: dict[str, list[Figures]] = {}
    reasons: dict[str, str] = {}
    for number in range(arguments.rounds):
        for name in arguments.servers:
            if name in reasons:
                continue
            try:
                with servers.running(name, arguments.model) as port:
                    found = under_load(port, arguments.rates, arguments.requests, arguments.first, arguments.next)
                results.setdefault(name, []).append(found)
            except compare.UnavailableError as reason:
                reasons[name] = str(reason)
            print(f"round {number + 1} of {arguments.rounds}: {name} {reasons.get(name, 'done')}", file=sys.stderr)
    return {name: compare.summary(of_one) for name, of_one in results.items() if name not in reasons}, reasons


def cost_of_http(model: str, rounds: int) -> dict[str, compare.Summary]:
    found = [{"in process tok/s": in_process(model), "over HTTP tok/s": over_http(model)} for _ in range(rounds)]
    for one in found:
        one["over HTTP / in process"] = one["over HTTP tok/s"] / one["in process tok/s"]
    return {"pipezoo": compare.summary(found)}


def print_table(summaries: dict[str, compare.Summary], reasons: dict[str, str]) -> None:
    print(f"{'':28}" + "".join(f"{name:>14}" for name in summaries))
    for figure in next(iter(summaries.values()), {}):
        cells = (
            f"{of_one[figure]['median']:14.2f}" if figure in of_one else f"{'':14}" for of_one in summaries.values()
        )
        print(f"{figure:28}" + "".join(cells))
    for name, reason in reasons.items():
        print(f"{name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="135m", choices=models.NAMES)
    parser.add_argument("--servers", nargs="+", default=servers.NAMES, choices=servers.NAMES)
    parser.add_argument("--rates", nargs="+", type=float, default=[2.0, 4.0, 8.0], help="requests a second")
    parser.add_argument("--requests", type=int, default=100, help="at each rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", type=float, default=1.0, help="seconds to the first token that are in time")
    parser.add_argument("--next", type=float, default=0.1, help="seconds to each next one that are in time")
    parser.add_argument("--in-process", action="store_true", help="measure what HTTP costs instead")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(peers.NUM_THREADS)
    summaries, reasons = (
        (cost_of_http(arguments.model, arguments.rounds), {}) if arguments.in_process else measure(arguments)
    )
    print_table(summaries, reasons)
    settings = {name: value for name, value in vars(arguments).items() if name != "servers"}
    print(json.dumps({**settings, "machine": compare.machine(), "figures": summaries, "unavailable": reasons}))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and with us what we started
    main()
