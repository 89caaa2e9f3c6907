"""What is measured of an engine, in a process of its own and with nothing but the standard library.

No prompt is given twice, so that a prefix cache makes nothing free but what a prompt shares with another on purpose.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from peers import EngineInterface, Prompts

PREFILL_REPEATS = 3
DECODE_PROMPT, DECODE_TOKENS = 128, 48
SHARED_PREFIX, SHARED_TAIL, SHARED_REQUESTS, SHARED_TOKENS = 1024, 32, 32, 32


def random_prompts(rng: random.Random, count: int, length: int) -> Prompts:
    return [[rng.randrange(1000, 40_000) for _ in range(length)] for _ in range(count)]


def seconds(engine: EngineInterface, prompts: Prompts, num_tokens: int) -> float:
    start = time.perf_counter()
    answers = engine.generate(prompts, num_tokens)
    taken = time.perf_counter() - start
    if [len(answer) for answer in answers] != [num_tokens] * len(prompts):
        raise RuntimeError(f"not {num_tokens} tokens for each of {len(prompts)} prompts: {list(map(len, answers))}")
    return taken


def prefill(engine: EngineInterface, rng: random.Random, length: int) -> float:
    times = [seconds(engine, random_prompts(rng, 1, length), 1) for _ in range(PREFILL_REPEATS)]
    return length / statistics.median(times)


def decode(engine: EngineInterface, rng: random.Random, batch: int) -> float:
    # The lesser of two: a prompt that something else delayed would make decoding look fast.
    first = min(seconds(engine, random_prompts(rng, batch, DECODE_PROMPT), 1) for _ in range(2))
    whole = seconds(engine, random_prompts(rng, batch, DECODE_PROMPT), 1 + DECODE_TOKENS)
    return batch * DECODE_TOKENS / (whole - first)


def shared_prefix(engine: EngineInterface, rng: random.Random) -> float:
    [prefix] = random_prompts(rng, 1, SHARED_PREFIX)
    prompts = [prefix + tail for tail in random_prompts(rng, SHARED_REQUESTS, SHARED_TAIL)]
    return seconds(engine, prompts, SHARED_TOKENS)


FIGURES: dict[str, Callable[[EngineInterface, random.Random], float]] = {
    "prefill 512 tok/s": partial(prefill, length=512),
    "prefill 2048 tok/s": partial(prefill, length=2048),
    "decode B=1 tok/s": partial(decode, batch=1),
    "decode B=8 tok/s": partial(decode, batch=8),
    "decode B=32 tok/s": partial(decode, batch=32),
    "shared prefix s": shared_prefix,
}


def peak_memory() -> float:
    """MB that this process and each that it started had in memory at most, as Linux counts them, added up."""
    parents, peaks = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        parents[int(lines["Pid"])] = int(lines["PPid"])
        peaks[int(lines["Pid"])] = int(lines.get("VmHWM", "0 kB").split()[0]) / 1024

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return sum(peak for pid, peak in peaks.items() if is_ours(pid))


def measure(name: str, path: Path, dtype: str, figures: list[str], process_start: float) -> dict[str, float]:
    engine: EngineInterface = importlib.import_module(f"peers.{name}").Engine(path, dtype)
    loaded = time.time()
    rng = random.Random(0)
    seconds(engine, random_prompts(rng, 1, 16), 1)
    results = {"load s": loaded - process_start, "first token s": time.time() - process_start}
    seconds(engine, random_prompts(rng, 1, 64), 8)
    for figure in figures:
        results[figure] = FIGURES[figure](engine, random.Random(figure))  # the same prompts for every engine
    results["peak memory MB"] = peak_memory()
    return results


def main() -> None:
    """Writes the figures, or why there are none, to the file that compare.py names."""
    name, path, dtype, result, process_start, *figures = sys.argv[1:]
    try:
        outcome = {"figures": measure(name, Path(path), dtype, figures, float(process_start))}
    except Exception as error:  # an engine's own code may fail in any way
        Path(result).write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    Path(result).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
