"""OpenVINO GenAI's continuous batching, on the model its GGUF reader makes."""

from __future__ import annotations

from pathlib import Path

from peers import NUM_THREADS, Prompts

WEIGHTS = {"float32": "f16", "bfloat16": "f16", "int8": "q8_0", "int4": "q4_0"}  # it reads no bf16
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
        can_do_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # else it refuses
        precision = "f32" if dtype == "float32" or not can_do_bf16 else "bf16"  # of the arithmetic
        properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": NUM_THREADS}
        self.pipeline = genai.ContinuousBatchingPipeline(str(path), scheduling, "CPU", properties)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        settings = self.genai.GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True, do_sample=False)
        outputs = self.pipeline.generate([self.tensor(prompt) for prompt in prompts], [settings] * len(prompts))
        return [output.m_generation_ids[0] for output in outputs]
