"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 1

_NAMES = ("MPTForCausalLM", "MptForCausalLM")  # of the original code, and of transformers


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns MPT under both of its names."""
    from pipezoo_replit.config import read_huggingface_config
    from pipezoo_replit.model import MptPipelineModel
    from pipezoo_replit.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name=name,
            model_types=("mpt",),
            pipeline_model=MptPipelineModel,
            huggingface_config=read_huggingface_config,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
            probe=_probe,
        )
        for name in _NAMES
    ]


# What a setting may be, left out and null aside, and what it asks for otherwise.
_ALLOWED: dict[str, tuple[tuple[object, ...], str]] = {
    "tie_word_embeddings": ((True,), "a head of its own"),
    "norm_type": (("layernorm", "low_precision_layernorm"), "another norm than LayerNorm"),
    "norm_eps": ((1e-5,), "another epsilon in its norms"),
    "final_logit_softcapping": ((), "capped logits"),
    "block_overrides": ((), "layers that differ"),
}
_ALLOWED_OF_ATTENTION: dict[str, tuple[tuple[object, ...], str]] = {
    "attn_type": (
        ("grouped_query_attention", "multihead_attention", "multiquery_attention"),
        "another attention than multi-head, grouped-query or multi-query",
    ),
    "alibi": ((True,), "learned or rotary positions instead of ALiBi"),
    "rope": ((False,), "rotary positions"),
    "qk_ln": ((False,), "normalized queries and keys"),
    "qk_gn": ((False,), "normalized queries and keys"),
    "prefix_lm": ((False,), "a bidirectional prefix"),
    "attn_uses_sequence_id": ((False,), "sequence ids in attention"),
    "attn_logit_softcapping": ((), "capped attention scores"),
    "sliding_window_size": ((-1,), "a sliding window"),
}
_ALLOWED_OF_FFN: dict[str, tuple[tuple[object, ...], str]] = {
    "ffn_type": (("mptmlp",), "another feed-forward layer than MPT's"),
    "ffn_act_fn": (({"name": "gelu", "approximate": "none"},), "another activation function than GELU"),
    "ffn_hidden_size": ((), "a feed-forward size of its own"),
}


def _probe(config: Mapping[str, Any]) -> str | None:
    """Names what a config asks for and this plugin does not compute."""
    attention = _part(config, "attn_config")
    asked = [
        what
        for part, allowed in (
            (config, _ALLOWED),
            (attention, _ALLOWED_OF_ATTENTION),
            (_part(config, "ffn_config"), _ALLOWED_OF_FFN),
        )
        for name, (values, what) in allowed.items()
        if part.get(name) not in (*values, None)
    ]
    if isinstance(config.get("logit_scale"), str) and config["logit_scale"] != "inv_sqrt_d_model":
        asked.append(f"the logit scale {config['logit_scale']!r}")
    num_heads, num_kv_heads = config.get("n_heads"), attention.get("kv_n_heads")
    if isinstance(num_heads, int) and isinstance(num_kv_heads, int) and (num_kv_heads < 1 or num_heads % num_kv_heads):
        asked.append(f"{num_kv_heads} key/value heads for {num_heads} heads")
    return f"it has {', '.join(asked)}, which this plugin does not compute" if asked else None


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}
