"""pipezoo, as a user gets it from `registry.load`."""

from __future__ import annotations

from pathlib import Path

from peers import FILE_TYPES, Prompts

WEIGHTS = {**dict.fromkeys(("float32", "bfloat16", "int8", "int4"), "safetensors"), **FILE_TYPES}


class Engine:
    def __init__(self, path: Path, dtype: str, **settings: str) -> None:
        from pipezoo import registry

        self.llm = registry.load(path, dtype="auto" if dtype in FILE_TYPES else dtype, device="cpu", **settings)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        from pipezoo_core.request import TextGenerationRequest

        requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
        outputs = self.llm.generate(requests, max_new_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        for output in outputs:
            if output.error is not None:
                raise output.error
        return [output.tokens for output in outputs]
