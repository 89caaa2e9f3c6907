"""Nemotron-H in GGUF files: their config, and the names and shapes of their tensors.

What is in a file is as llama.cpp's converter writes it for its `nemotron_h` and `nemotron_h_moe`. Rows of q and k may
be reordered in a file, head by head and alike: without positions nothing comes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.weights import (
    SIGMOID,
    GGUFDecoder,
    GGUFFile,
    LazyTensor,
    as_vector,
    logarithm_of_rates,
    renamed_from_gguf,
    with_a_channel,
    without_further_layers,
)
from pipezoo_nemotron.config import ATTENTION, MAMBA, MIXTURE, MLP_LAYER
from pipezoo_nemotron.weight_adapters import adapt_safetensors

__all__ = ["adapt_gguf", "config_from_gguf"]

_KIND_OF = {"ssm_in": MAMBA, "attn_q": ATTENTION, "ffn_gate_inp": MIXTURE, "ffn_up": MLP_LAYER}
_NAMES = {
    "token_embd": "model.embeddings",
    "output_norm": "model.norm_f",
    "attn_norm": "norm",
    "attn_q": "mixer.q_proj",
    "attn_k": "mixer.k_proj",
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
    "ssm_in": "mixer.in_proj",
    "ssm_conv1d": "mixer.conv1d",
    "ssm_a": "mixer.A_log",
    "ssm_d": "mixer.D",
    "ssm_dt.bias": "mixer.dt_bias",
    "ssm_norm": "mixer.norm",
    "ssm_out": "mixer.out_proj",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
    "ffn_gate_inp": "mixer.gate",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_latent_down": "mixer.fc1_latent_proj",
    "ffn_latent_up": "mixer.fc2_latent_proj",
    "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
}
_CHANGES = {
    "ssm_a": logarithm_of_rates,
    "ssm_conv1d": with_a_channel,
    "ssm_d": as_vector,
    "ssm_norm": as_vector,
}


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What a layer is, its tensors say.

    Of the activation and the shortest step a file says nothing: they are the defaults, as in all published models.

    Raises:
        CorruptCheckpointError: a key that every such file has is missing, a size is no whole number above 0, or a layer
            has tensors of none that there are.
        UnsupportedModelError: layers differ in their heads, or the file chooses experts or has windows in a way that no
            such model has.
    """
    decoder = GGUFDecoder(file, file.metadata["general.architecture"])
    num_layers = decoder.num_layers() - decoder.num_further_layers()
    names = {name.removesuffix(".weight") for name in file.weights}
    kinds = [_kind(number, names) for number in range(num_layers)]
    fields = decoder.config(
        has_rms_norm=False,
        rotates_part=True,  # as files say of heads of which nothing is rotated
        num_kv_heads=max(decoder.kv_heads()),
        intermediate_size=_rows(file, kinds, MLP_LAYER, "ffn_up") or decoder.size("embedding_length"),
    )
    del fields["rope_parameters"], fields["num_hidden_layers"]
    kinds_of_tensors = {name.partition(".")[2].partition(".")[2] for name in file.weights}
    return {
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        **fields,
        "layers_block_type": kinds,
        "layer_norm_epsilon": decoder.get("attention.layer_norm_rms_epsilon"),
        "mlp_bias": bool({"ffn_up.bias", "ffn_up_shexp.bias"} & kinds_of_tensors),
        **(_of_mamba(decoder, kinds_of_tensors) if MAMBA in kinds else {}),
        **(_of_mixture(decoder, file, kinds) if MIXTURE in kinds else {}),
    }


def _kind(number: int, names: set[str]) -> str:
    found = [kind for tensor, kind in _KIND_OF.items() if f"blk.{number}.{tensor}" in names]
    if not found:
        raise CorruptCheckpointError(
            f"layer {number} of the GGUF file has none of the tensors that layers have",
            allowed=[f"blk.{number}.{tensor}.weight" for tensor in _KIND_OF],
            cure="Convert the model again.",
        )
    return found[0]


def _rows(file: GGUFFile, kinds: list[str], kind: str, tensor: str) -> int | None:
    """Returns how many rows a tensor has in the first layer of a kind; None where there is none."""
    weight = file.weights.get(f"blk.{kinds.index(kind)}.{tensor}.weight") if kind in kinds else None
    return None if weight is None else weight.shape[0]


def _of_mamba(decoder: GGUFDecoder, kinds_of_tensors: set[str]) -> dict[str, Any]:
    num_heads = decoder.size("ssm.time_step_rank")
    return {
        "mamba_num_heads": num_heads,
        "mamba_head_dim": decoder.size("ssm.inner_size") // num_heads,
        "n_groups": decoder.size("ssm.group_count"),
        "ssm_state_size": decoder.size("ssm.state_size"),
        "conv_kernel": decoder.size("ssm.conv_kernel"),
        "use_conv_bias": "ssm_conv1d.bias" in kinds_of_tensors,
        "use_bias": "ssm_in.bias" in kinds_of_tensors,
    }


def _of_mixture(decoder: GGUFDecoder, file: GGUFFile, kinds: list[str]) -> dict[str, Any]:
    """The weights of experts are normalized where the file does not say it, and not scaled."""
    said = {key.partition(".")[2]: value for key, value in file.metadata.items()}
    scale, is_normalized = said.get("expert_weights_scale") or 1.0, bool(said.get("expert_weights_norm", True))
    num_experts = decoder.size("expert_count")
    num_groups = decoder.number("expert_group_count", 1, most=num_experts) or 1
    num_chosen = decoder.size("expert_group_used_count") if num_groups > 1 else 1
    read = {"expert_weights_scale": (scale, 0), "expert_weights_norm": (True, False)}
    read |= {"expert_group_count": (num_groups, 0), "expert_group_used_count": (num_chosen, 0)}
    decoder.check_neutral(expert_gating_func=(0, SIGMOID), **read)
    return {
        "n_routed_experts": num_experts,
        "n_group": num_groups,
        "topk_group": num_chosen,
        "num_experts_per_tok": decoder.size("expert_used_count"),
        "moe_intermediate_size": decoder.size("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": decoder.size("expert_shared_feed_forward_length"),
        "moe_latent_size": _rows(file, kinds, MIXTURE, "ffn_latent_down"),
        "norm_topk_prob": is_normalized,
        "routed_scaling_factor": scale,
    }


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and the decay's rate in place of its logarithm.

    The names of a LoRA adapter are those of the checkpoint that it was trained on: they become the module's, too.

    Raises:
        CorruptCheckpointError: when a rate is read that is not below 0.
    """
    known = without_further_layers(tensors, config.num_hidden_layers)
    return adapt_safetensors(renamed_from_gguf(known, _CHANGES, _NAMES, experts="mixer.experts"), config)
