"""The engines that are compared, one module each.

A module has two names. `WEIGHTS` maps every dtype that the engine can do to what it loads: "safetensors" for the
Hugging Face folder, else the type of a GGUF file. `Engine` is the adapter, an `EngineInterface`. Its engine is imported
only when it is made: the module itself is read where the engine is not installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

NAMES = ("pipezoo", "pipezoo_torch", "pipezoo_fallback", "transformers", "vllm", "llamacpp", "openvino", "max")
FILE_TYPES = {name: name for name in ("q4_k_m", "q5_k_m", "q6_k", "q8_0")}
"""Quantized GGUF files that engines compute from as they lie, each a dtype by its own name."""
NUM_THREADS = len(os.sched_getaffinity(0))

Prompts = list[list[int]]


class EngineInterface(Protocol):
    """A model that is loaded and can answer, on `NUM_THREADS` threads; OMP_NUM_THREADS is set to them already."""

    def __init__(self, path: Path, dtype: str) -> None: ...

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        """Returns the `num_tokens` greedy tokens that follow each prompt, an end token being one like any other.

        The prompts are of one length. The engine works on them together, and may share what they begin with.
        """
