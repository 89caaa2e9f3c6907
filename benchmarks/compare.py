"""Measures pipezoo and its peers on the same weights, in alternating rounds.

    python benchmarks/peers/install.py                      # once: an environment for each peer
    python benchmarks/compare.py --rounds 5 --dtype bfloat16
    python benchmarks/compare.py --model 1.1b --engines pipezoo llamacpp --figures prefill "decode B=1"

Each round starts one fresh process per engine, one after the other, so that none disturbs another's memory or threads.
Before the last line comes a table of medians, behind each how many times better pipezoo's is. The last line is JSON:
the median, minimum and maximum of every figure over the rounds, why an engine has none, and the machine. Run it alone:
a second busy process makes OpenMP several times slower. It needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import models
import peers
import workloads
from peers.install import ENVIRONMENTS, REQUIREMENTS

DTYPES = ("float32", "bfloat16", "int8", "int4", *peers.FILE_TYPES)
WORKER_SECONDS = 1800

Figures = dict[str, float]
Summary = dict[str, dict[str, float]]


class UnavailableError(Exception):
    """An engine that cannot be measured, and why."""


def python_of(engine: str) -> Path:
    """The Python that has the engine: its own environment's, or ours."""
    if engine not in REQUIREMENTS:
        return Path(sys.executable)
    python = ENVIRONMENTS / engine / "bin" / "python"
    if not python.exists():
        raise UnavailableError(f"not installed; try: python benchmarks/peers/install.py {engine}")
    return python


def weights_for(engine: str, model: str, dtype: str) -> Path:
    weights = importlib.import_module(f"peers.{engine}").WEIGHTS
    if dtype not in weights:
        raise UnavailableError(f"cannot do {dtype}, only {', '.join(weights)}")
    if weights[dtype] == "safetensors":
        return models.safetensors_folder(model)
    return models.gguf_file(model, weights[dtype])


def run(engine: str, weights: Path, dtype: str, figures: list[str]) -> Figures:
    """One engine's figures, from a process of its own. Whatever that started is ended with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(peers.NUM_THREADS), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [python_of(engine), workloads.__file__, engine, weights, dtype, result, str(time.time()), *figures]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(WORKER_SECONDS)
            except subprocess.TimeoutExpired:
                raise UnavailableError(f"took more than {WORKER_SECONDS} s") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        outcome = json.loads(result.read_text()) if result.exists() else {"error": f"ended with exit code {code}"}
        if "error" in outcome:
            print(*log.read_text(errors="replace").splitlines()[-20:], sep="\n", file=sys.stderr)
            raise UnavailableError(f"failed: {outcome['error']}")
        return outcome["figures"]


def measure(engines: list[str], model: str, dtype: str, rounds: int, figures: list[str]) -> tuple[dict, dict]:
    """Returns every engine's figures of all rounds, and of those that have none the reason."""
    results: dict[str, list[Figures]] = {engine: [] for engine in engines}
    reasons: dict[str, str] = {}
    weights = {}
    for engine in engines:
        try:
            python_of(engine)
            weights[engine] = weights_for(engine, model, dtype)
        except UnavailableError as reason:
            reasons[engine] = str(reason)
    for number in range(rounds):
        for engine in weights:
            if engine in reasons:
                continue
            try:
                results[engine].append(run(engine, weights[engine], dtype, figures))
            except UnavailableError as reason:
                reasons[engine] = str(reason)
            print(f"round {number + 1} of {rounds}: {engine} {reasons.get(engine, 'done')}", file=sys.stderr)
    return {engine: of_one for engine, of_one in results.items() if engine not in reasons}, reasons


def summary(rounds: list[Figures]) -> Summary:
    return {
        figure: {
            "median": statistics.median(values := [one[figure] for one in rounds]),
            "min": min(values),
            "max": max(values),
        }
        for figure in rounds[0]
    }


def print_table(summaries: dict[str, Summary], reasons: dict[str, str]) -> None:
    ours = summaries.get("pipezoo")
    print(f"{'':20}" + "".join(f"{engine:>20}" for engine in summaries))
    for figure in next(iter(summaries.values()), {}):
        cells = []
        for engine, theirs in summaries.items():
            value, ratio = theirs[figure]["median"], ""
            if ours and engine != "pipezoo":
                better = ours[figure]["median"] / value
                ratio = f"{better if figure.endswith('tok/s') else 1 / better:.2f} x"
            cells.append(f"{value:12.1f}{ratio:>8}")
        print(f"{figure:20}" + "".join(cells))
    for engine, reason in reasons.items():
        print(f"{engine}: {reason}")


def machine() -> dict[str, object]:
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"cpu": names[0] if names else platform.machine(), "cores": peers.NUM_THREADS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="135m", choices=models.NAMES)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--engines", nargs="+", default=peers.NAMES, choices=peers.NAMES)
    parser.add_argument(
        "--figures",
        nargs="+",
        default=[""],
        metavar="START",
        help=f"what their names start with: {[*workloads.FIGURES]}",
    )
    arguments = parser.parse_args()
    figures = [figure for figure in workloads.FIGURES if figure.startswith(tuple(arguments.figures))]
    if not figures:
        parser.error(f"no figure starts with {arguments.figures}; there are {[*workloads.FIGURES]}")
    results, reasons = measure(arguments.engines, arguments.model, arguments.dtype, arguments.rounds, figures)
    summaries = {engine: summary(rounds) for engine, rounds in results.items()}
    print_table(summaries, reasons)
    settings = {"model": arguments.model, "dtype": arguments.dtype, "rounds": arguments.rounds}
    print(json.dumps({**settings, "machine": machine(), "figures": summaries, "unavailable": reasons}))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and with us what we started
    main()
