"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns MPT, which Replit's models are too."""
    from pipezoo_replit.huggingface_config import read_huggingface_config
    from pipezoo_replit.model import MptPipelineModel
    from pipezoo_replit.tokenizer import load_tokenizer
    from pipezoo_replit.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name="MPTForCausalLM",
            aliases=("MptForCausalLM", "ReplitLM", "ReplitLMForCausalLM"),
            model_types=("mpt", "replit_lm"),
            pipeline_model=MptPipelineModel,
            huggingface_config=read_huggingface_config,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
            probe=_probe,
            tokenizer=load_tokenizer,
        )
    ]


# What a setting may be where it is given, and what it asks for otherwise.
_ALLOWED: dict[str, tuple[tuple[object, ...], str]] = {
    "norm_type": (("layernorm", "low_precision_layernorm"), "another norm than LayerNorm"),
    "final_logit_softcapping": ((), "capped logits"),
    "block_overrides": ((), "layers that differ"),
    "attn_config": ((), "an attn_config that is no object"),
    "attn_type": (
        ("grouped_query_attention", "multihead_attention", "multiquery_attention"),
        "another attention than multi-head, grouped-query or multi-query",
    ),
    "rope": ((False,), "rotary positions"),
    "qk_gn": ((False,), "queries and keys normalized head by head"),
    "prefix_lm": ((False,), "a prefix that is read in both directions"),
    "attn_uses_sequence_id": ((False,), "several sequences in one, told apart by their ids"),
    "attn_logit_softcapping": ((), "capped attention scores"),
    "sliding_window_size": ((-1,), "a sliding window"),
    "ffn_config": ((), "an ffn_config that is no object"),
    "ffn_type": (("mptmlp",), "another feed-forward layer than MPT's"),
    "ffn_act_fn": (({"name": "gelu", "approximate": "none"},), "another activation function than GELU"),
    "ffn_hidden_size": ((), "a feed-forward size of its own"),
}


def _probe(raw: Mapping[str, Any]) -> str | None:
    """Names what a config asks for and this plugin does not compute."""
    from pipezoo_replit.huggingface_config import in_one_spelling

    config = in_one_spelling(raw)
    asked = [what for name, (values, what) in _ALLOWED.items() if name in config and config[name] not in values]
    if isinstance(config.get("logit_scale"), str) and config["logit_scale"] != "inv_sqrt_d_model":
        asked.append(f"the logit scale {config['logit_scale']!r}")
    num_heads, num_kv_heads = config.get("n_heads"), config.get("kv_n_heads")
    if isinstance(num_heads, int) and isinstance(num_kv_heads, int) and (num_kv_heads < 1 or num_heads % num_kv_heads):
        asked.append(f"{num_kv_heads} key/value heads for {num_heads} heads")
    return f"it has {', '.join(asked)}, which this plugin does not compute" if asked else None
