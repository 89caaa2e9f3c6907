"""The typed config of a Nemotron-H model, read from a Hugging Face config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import Mamba2Sizes, Routing, known_activation
from pipezoo_core.recurrence import StateSpec

__all__ = ["ATTENTION", "MAMBA", "MIXTURE", "MLP_LAYER", "NemotronConfig", "NemotronMixture"]

MAMBA, ATTENTION, MLP_LAYER, MIXTURE = _KINDS = ("linear_attention", "full_attention", "mlp", "moe")
_NAMES = {
    "num_heads": "mamba_num_heads",
    "head_size": "mamba_head_dim",
    "num_groups": "n_groups",
    "state_size": "ssm_state_size",
    "num_taps": "conv_kernel",
    "length_limits": "time_step_min",
}
_ADDED_TO_SUM = 1e-20  # of weights, as transformers has it
_GROUP_BEST = 2  # likewise: the scores that a group is chosen by


@dataclass(frozen=True, slots=True, kw_only=True)
class NemotronMixture:
    """The sizes of a layer of experts.

    Attributes:
        routing: how they are chosen.
        expert_size: numbers per row inside an expert.
        shared_size: inside the one that all tokens go through.
        latent_size: numbers per row that the others get and return; None for those of a row between layers.

    Raises:
        UnsupportedModelError: a size is not positive.
    """

    routing: Routing
    expert_size: int
    shared_size: int
    latent_size: int | None

    def __post_init__(self) -> None:
        sizes = (self.expert_size, self.shared_size, 1 if self.latent_size is None else self.latent_size)
        if min(sizes) < 1:
            raise UnsupportedModelError(
                "a size of the config's experts is not positive",
                found=f"moe_intermediate_size {self.expert_size}, moe_shared_expert_intermediate_size "
                f"{self.shared_size}, moe_latent_size {self.latent_size}",
                allowed="at least 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NemotronConfig(DecoderConfig):
    """Nemotron-H: layers that are a Mamba-2, attention without positions, a feed-forward layer, or experts.

    `intermediate_size` is of the layers that are a feed-forward layer; where there are none, of the expert that all
    tokens go through.

    Attributes:
        kinds: what each layer is, by transformers' names.
        activation: name of the activation function of feed-forward layers and experts.
        rms_norm_eps: added to the mean square in the norms.
        mlp_bias: whether the layers of these, and around experts, have a bias.
        mamba: the sizes of Mamba layers; None where there are none.
        mixture: those of experts, likewise.
        tie_word_embeddings: whether the head's weight is the embedding's.
    """

    kinds: tuple[str, ...]
    activation: str
    rms_norm_eps: float
    mlp_bias: bool
    mamba: Mamba2Sizes | None
    mixture: NemotronMixture | None
    tie_word_embeddings: bool

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `NemotronHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: a layer's kind or an activation is unknown, or numbers are none or do not fit.
        """
        kinds = known_layer_types(config.layers_block_type, _KINDS)
        mixture = _mixture(config) if MIXTURE in kinds else None
        without_mlp = config.hidden_size if mixture is None else mixture.shared_size
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size if MLP_LAYER in kinds else without_mlp,
            num_layers=len(kinds),
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_seq_len=config.max_position_embeddings,
            kinds=kinds,
            activation=known_activation(config.mlp_hidden_act),
            rms_norm_eps=config.layer_norm_epsilon,
            mlp_bias=config.mlp_bias,
            mamba=_mamba(config) if MAMBA in kinds else None,
            mixture=mixture,
            tie_word_embeddings=config.tie_word_embeddings,
        )

    @property
    def layers(self) -> tuple[AttentionSpec | StateSpec | None, ...]:
        """Attention, or the state of a Mamba; None of other layers."""
        state = None if self.mamba is None else self.mamba.state
        spec_of = {ATTENTION: self.attention, MAMBA: state}
        return tuple(spec_of.get(kind) for kind in self.kinds)


def _mamba(config: PretrainedConfig) -> Mamba2Sizes:
    if config.mamba_hidden_act not in ("silu", "swish"):
        raise UnsupportedModelError(
            "the config has another activation function than any model with Mamba layers",
            found=config.mamba_hidden_act,
            allowed="silu",
        )
    return Mamba2Sizes(
        num_heads=config.mamba_num_heads,
        head_size=config.mamba_head_dim,
        num_groups=config.n_groups,
        state_size=config.ssm_state_size,
        num_taps=config.conv_kernel,
        conv_bias=config.use_conv_bias,
        bias=config.use_bias,
        length_limits=(float(config.time_step_min), math.inf),
        names=_NAMES,
    )


def _mixture(config: PretrainedConfig) -> NemotronMixture:
    return NemotronMixture(
        routing=Routing(
            num_experts=config.n_routed_experts,
            top_k=config.num_experts_per_tok,
            scores="sigmoid",
            normalize=config.norm_topk_prob,
            added_to_sum=_ADDED_TO_SUM,
            scale=config.routed_scaling_factor,
            num_groups=config.n_group,
            num_chosen_groups=config.topk_group,
            group_best=_GROUP_BEST,
        ),
        expert_size=config.moe_intermediate_size,
        shared_size=config.moe_shared_expert_intermediate_size or config.intermediate_size,
        latent_size=config.moe_latent_size,
    )
