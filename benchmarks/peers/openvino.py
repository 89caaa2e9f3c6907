"""OpenVINO GenAI's continuous batching, on the model its GGUF reader makes."""

from __future__ import annotations

from pathlib import Path

from peers import NUM_THREADS, Prompts

WEIGHTS = {"float32": "f16", "bfloat16": "f16", "int8": "q8_0", "int4": "q4_0"}  # it reads no bf16
PRECISION = {"float32": "f32"}  # of the arithmetic; bf16 with all others
KV_CACHE_GB = 4


class Engine:
    def __init__(self, path: Path, dtype: str) -> None:
        import numpy
        import openvino
        import openvino_genai as genai

        self.tensor = lambda prompt: openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
        self.genai = genai
        scheduling = genai.SchedulerConfig()
        scheduling.cache_size = KV_CACHE_GB
        scheduling.enable_prefix_caching = True
        properties = {"INFERENCE_PRECISION_HINT": PRECISION.get(dtype, "bf16"), "INFERENCE_NUM_THREADS": NUM_THREADS}
        self.pipeline = genai.ContinuousBatchingPipeline(str(path), scheduling, "CPU", properties)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        settings = self.genai.GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True, do_sample=False)
        outputs = self.pipeline.generate([self.tensor(prompt) for prompt in prompts], [settings] * len(prompts))
        return [output.m_generation_ids[0] for output in outputs]
