"""transformers' own `generate`, in its default eager mode."""

from __future__ import annotations

from pathlib import Path

from peers import Prompts

WEIGHTS = {"float32": "safetensors", "bfloat16": "safetensors"}


class Engine:
    def __init__(self, path: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        AutoTokenizer.from_pretrained(path)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()

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
