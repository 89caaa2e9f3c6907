"""Writes the README's table of models, from what the plugins say: `python docs/model_table.py`.

A test compares the two. It takes a CPU that `pipezoo-kernels` has kernels for.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipezoo.discovery.loading import load_architectures
from pipezoo.discovery.published import PUBLISHED
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import LoRAConfig, PipelineConfig, SupportedEncoding, WeightsFormat
from pipezoo_core.errors import InvalidSettingError

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- models: python docs/model_table.py -->\n", "<!-- end of models -->\n"
HEAD = (
    "| `model_type` | plugin | GGUF | LoRA | several devices | kernels | replayed steps |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)
NUM_LAYERS = 4
# Where the defaults of a config are no model's that was published: BLOOM-560M, DeepSeek-V2-Lite, Falcon-40B,
# Granite 4.0, LFM2.
SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 1024, "n_head": 16},
    "deepseek_v2": {"num_experts_per_tok": 6, "moe_intermediate_size": 1408, "q_lora_rank": None},
    "falcon": {"hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True},
    "gemma3": {"text_config": {"model_type": "gemma3_text"}},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["mamba", "mamba", "attention", "mamba"]},
    "lfm2": {"hidden_size": 2048, "full_attn_idxs": [2]},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mistral3": {"text_config": {"model_type": "mistral"}},
    "qwen3_5": {"text_config": {"model_type": "qwen3_5_text"}},
    "qwen3_5_moe": {"text_config": {"model_type": "qwen3_5_moe_text"}},
}


def architectures() -> Iterator[tuple[str, str, SupportedArchitecture]]:
    """Yields each model type that is published, with its distribution and what that says of it."""
    for entry in importlib.metadata.entry_points(group="pipezoo.plugins"):
        if entry.dist is not None and entry.name in PUBLISHED:
            for architecture in load_architectures(entry.dist.name, entry.value):
                if entry.name in architecture.model_types:
                    yield entry.name, entry.dist.name, architecture


def abilities(model_type: str, architecture: SupportedArchitecture) -> tuple[str, ...]:
    """Returns the cells of a model in bfloat16 on a CPU: of a few layers, as the others are like them."""
    config = architecture.huggingface_config({"model_type": model_type, **SIZES.get(model_type, {})})
    config.num_hidden_layers = NUM_LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:NUM_LAYERS]
    model, run = (
        architecture.pipeline_model,
        PipelineConfig(model_path=model_type, huggingface_config=config, encoding=SupportedEncoding.bfloat16),
    )
    with_adapters = run.updated(lora=LoRAConfig(max_num_loras=1, max_lora_rank=8))
    outlook = model.step_outlook(run, config)
    cells = (
        WeightsFormat.gguf in architecture.weight_adapters,
        model.estimate_lora_memory(with_adapters, config) > 0,
        _is_divided(model, run, config),
        outlook.attention == "native",
    )
    kinds = sorted({operation.rpartition(".")[0] for operation in outlook.operations})
    replay = "no" if outlook.obstacle else f"yes, but for {', '.join(kinds)}" if kinds else "yes"
    return (*("yes" if cell else "no" for cell in cells), replay)


def _is_divided(model: Any, run: PipelineConfig, config: Any) -> bool:
    """Whether two devices can compute a model, and each has about half of it."""
    try:
        model.get_kv_params(config, 2, run.kv_cache, torch.bfloat16)
    except InvalidSettingError:
        return False
    on_two = run.updated(tensor_parallel_degree=2)
    return bool(model.estimate_weights_size(on_two) < 0.6 * model.estimate_weights_size(run))


def table() -> str:
    """Returns the rows, types of a plugin that can do the same in one."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for model_type, plugin, architecture in sorted(architectures(), key=lambda found: (found[1], found[0])):
        rows.setdefault((plugin, *abilities(model_type, architecture)), []).append(f"`{model_type}`")
    lines = (f"| {', '.join(types)} | `{plugin}` | {' | '.join(cells)} |" for (plugin, *cells), types in rows.items())
    return "\n".join((*HEAD, *lines)) + "\n"


def updated(text: str) -> str:
    """Returns the README with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
