"""Measures engines beside other work: alone, beside one busy process, and beside a busy Python thread of their own.

    python benchmarks/peers/install.py openvino             # once
    python benchmarks/beside.py --rounds 5
    python benchmarks/beside.py --engines pipezoo --rounds 1

A column is an engine and the threads that it has: `pipezoo` has one per core, `pipezoo, 1 thread` a single one, which
is what a team of threads has to keep up with when others want its cores. Each round starts one fresh process per
column, which measures each figure in all companies, one right after the other. The busy process computes in a loop that
touches no memory; the busy thread runs Python code without a pause. The last line is JSON. Run it alone. It needs
Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import compare
import peers
import workloads

COLUMNS = {
    "pipezoo": ("pipezoo", peers.NUM_THREADS),
    "pipezoo, 1 thread": ("pipezoo", 1),
    "openvino": ("openvino", peers.NUM_THREADS),
}
FIGURES = ("decode B=1 tok/s", "decode B=8 tok/s", "prefill 512 tok/s")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    yield


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def busy_thread() -> Iterator[None]:
    is_over = threading.Event()

    def run() -> None:
        number = 0
        while not is_over.is_set():
            for _ in range(1000):
                number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


COMPANIES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "alone": alone,
    "beside a busy process": busy_process,
    "beside a busy thread": busy_thread,
}


def measure(engine_name: str, path: Path, dtype: str) -> dict[str, float]:
    engine: peers.EngineInterface = importlib.import_module(f"peers.{engine_name}").Engine(path, dtype)
    rng = random.Random(0)
    for batch in (1, 8):  # steps are recorded, memory is touched
        workloads.seconds(engine, workloads.random_prompts(rng, batch, 64), 8)
    results = {}
    for figure in FIGURES:
        for number, (company, begin) in enumerate(COMPANIES.items()):
            with begin():
                # Prompts of its own each time: none is found in the prefix cache.
                results[f"{figure}, {company}"] = workloads.FIGURES[figure](engine, random.Random(f"{figure} {number}"))
    return results


def run(column: str, model: str, dtype: str) -> dict[str, float]:
    engine, num_threads = COLUMNS[column]
    weights = compare.weights_for(engine, model, dtype)
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [compare.python_of(engine), __file__, "--child", engine, weights, dtype, result]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="135m")
    parser.add_argument("--dtype", default="bfloat16", choices=compare.DTYPES)
    parser.add_argument("--engines", nargs="+", default=[*COLUMNS], choices=COLUMNS, metavar="ENGINE")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {column: [] for column in options.engines}
    for number in range(options.rounds):
        for column in options.engines:
            rounds[column].append(run(column, options.model, options.dtype))
            print(f"round {number + 1} of {options.rounds}: {column} done", file=sys.stderr)
    medians = {
        column: {figure: statistics.median(one[figure] for one in of_one) for figure in of_one[0]}
        for column, of_one in rounds.items()
    }
    print(f"{'':42}" + "".join(f"{column:>20}" for column in medians))
    for figure in next(iter(medians.values())):
        print(f"{figure:42}" + "".join(f"{medians[column][figure]:20.1f}" for column in medians))
    settings = {"model": options.model, "dtype": options.dtype, "rounds": options.rounds}
    print(json.dumps({**settings, "machine": compare.machine(), "rounds of all": rounds}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, path, dtype, result = sys.argv[2:]
        Path(result).write_text(json.dumps(measure(name, Path(path), dtype)))
    else:
        main()
