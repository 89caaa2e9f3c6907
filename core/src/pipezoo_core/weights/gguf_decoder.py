"""What a GGUF file says of a decoder, in the words of a config.json: sizes, norms and rotary positions.

The keys are those that llama.cpp's converters write (`gguf-py/gguf/constants.py`), each under the architecture's name:
`llama.block_count`, `qwen3.block_count`. What a file leaves open is as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipezoo_core.errors import CheckpointMismatchError, CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.weights.gguf import GGUFFile
from pipezoo_core.weights.gguf_rope import YARN_KEYS, check_rope_keys, llama3_from_divisors, part_of_head

__all__ = ["SIGMOID", "SOFTMAX", "GGUFDecoder", "model_type_of"]

SOFTMAX = (0, 1)
"""What a file's `expert_gating_func` says for scores of a router that softmax makes; 0 stands for none."""
SIGMOID = 2
"""What it says for scores that the sigmoid makes."""

_MODEL_TYPES = {  # where llama.cpp has another name
    "granitehybrid": "granitemoehybrid",
    "gptneox": "gpt_neox",
    "lfm2moe": "lfm2_moe",
    "nemotron_h_moe": "nemotron_h",
    "phi2": "phi",
    "qwen2moe": "qwen2_moe",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
}
_NEUTRAL = {
    "attention.sliding_window": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),  # 0 is none
}
_EMBEDDING = "token_embd.weight"
_LONGROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}


def model_type_of(file: GGUFFile) -> str:
    """Returns what Hugging Face calls a file's architecture.

    Mixtral's files call themselves llama, and those of DeepSeek-V2 and V3 both deepseek2.

    Raises:
        CorruptCheckpointError: the file does not say its architecture.
    """
    if "general.architecture" not in file.metadata:
        raise _incomplete("general.architecture")
    architecture = file.metadata["general.architecture"]
    if architecture == "llama" and file.metadata.get("llama.expert_count"):
        return "mixtral"
    if architecture == "deepseek2":
        is_v3 = file.metadata.get("deepseek2.expert_gating_func") == SIGMOID
        return "deepseek_v3" if is_v3 else "deepseek_v2"
    return _MODEL_TYPES.get(architecture, architecture)


class GGUFDecoder:
    """Reads a GGUF file's metadata under the name of an architecture.

    Args:
        file: the file.
        architecture: its `general.architecture`.

    Every method raises:
        CorruptCheckpointError: a key that every such file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates or scales RoPE in a way that no config.json can say.
    """

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self._file = file
        self._prefix = f"{architecture}."

    def config(
        self,
        *,
        has_rms_norm: bool = True,
        rotary_dim: int | None = None,
        rotates_part: bool = False,
        rope_keys: Collection[str] = (),
        num_kv_heads: int | None = None,
        intermediate_size: int | None = None,
    ) -> dict[str, Any]:
        """Returns the fields of a config.json that decoders share, a head that is tied where the file has none.

        Args:
            has_rms_norm: whether `rms_norm_eps` is one of them.
            rotary_dim: numbers per head that are rotated; None for all, or as `rotates_part` says.
            rotates_part: whether the architecture's heads may be rotated in part, `rope.dimension_count` numbers of
                each.
            rope_keys: as for `rope_parameters`.
            num_kv_heads: of the layers with attention, where the file says it layer by layer; None for what it says.
            intermediate_size: where the file does not say it, or says it layer by layer; None where it has to say one.
        """
        hidden_size, num_heads = self.size("embedding_length"), self.size("attention.head_count")
        head_dim = self.size("attention.key_length", hidden_size // num_heads)
        weights, metadata = self._file.weights, self._file.metadata
        if _EMBEDDING not in weights:
            raise _incomplete(_EMBEDDING)
        fields = {
            "vocab_size": weights[_EMBEDDING].shape[0],
            "hidden_size": hidden_size,
            "intermediate_size": self._inner_size(intermediate_size),
            "num_hidden_layers": self.num_layers(),
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads or self.size("attention.head_count_kv", num_heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.size("context_length"),
            "rope_parameters": self.rope_parameters(rotary_dim or head_dim, rotates_part=rotates_part, keys=rope_keys),
            "tie_word_embeddings": "output.weight" not in weights,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        }
        return fields | ({"rms_norm_eps": self.get("attention.layer_norm_rms_epsilon")} if has_rms_norm else {})

    def get(self, key: str) -> Any:
        """Returns what is under a key."""
        name = self._prefix + key
        if name not in self._file.metadata:
            raise _incomplete(name)
        return self._file.metadata[name]

    def size(self, key: str, default: int | None = None) -> int:
        """Returns a size, or where the file leaves it out the default, if there is one."""
        size = self._found(key, default)
        if type(size) is not int or size < 1:
            raise self._wrong(key, size, "is no size", "a whole number above 0")
        return size

    def number(self, key: str, default: int | None = None, *, most: int) -> int:
        """Returns how many of something there are, from 0 to `most`, or the default as in `size`.

        Raises:
            CorruptCheckpointError: it is none of these numbers.
        """
        number = self._found(key, default)
        if type(number) is not int or not 0 <= number <= most:
            raise self._wrong(key, number, "is not what it can be", f"a whole number from 0 to {most}")
        return number

    def num_further_layers(self) -> int:
        """Returns how many of the file's layers, its last ones, predict further tokens.

        Raises:
            CorruptCheckpointError: that would be all of them, or it is no such number.
        """
        return self.number("nextn_predict_layers", 0, most=self.num_layers() - 1)

    def check_neutral(self, **others: Collection[object]) -> None:
        """Refuses windows, groups of experts, and weights of experts that are scaled or not normalized.

        For architectures whose models have none of these, and whose plugins do not read the keys for them.

        Args:
            others: what further keys may say.

        Raises:
            UnsupportedModelError: the file says such a thing.
        """
        said = self._file.metadata
        for key, allowed in {**_NEUTRAL, **others}.items():
            name = self._prefix + key
            if name in said and said[name] not in allowed:
                raise UnsupportedModelError(
                    f"the GGUF file's {name} asks for something that no such model has",
                    found=said[name],
                    allowed=allowed,
                )

    def num_layers(self) -> int:
        """Returns how many layers the file has.

        Raises:
            CheckpointMismatchError: more than it has tensors.
        """
        number, tensors = self.size("block_count"), self._file.weights
        if number > len(tensors):
            raise CheckpointMismatchError(missing=[f"most of {number} layers, with {len(tensors)} tensors"])
        return number

    def kv_heads(self) -> list[int]:
        """Returns the key/value heads of each layer, 0 of those that keep a state instead.

        Raises:
            CorruptCheckpointError: the file says no numbers of heads, or not as many as layers.
            UnsupportedModelError: layers differ in their heads.
        """
        num_layers = self.num_layers()
        said = self.get("attention.head_count_kv")
        heads = said if isinstance(said, list) else [said] * num_layers
        are_numbers = all(type(number) is int and number >= 0 for number in heads)
        if len(heads) != num_layers or not are_numbers or not any(heads):
            allowed = f"{num_layers} whole numbers, not all of them 0"
            raise self._wrong("attention.head_count_kv", said, "is not what layers can have", allowed)
        if {*heads} - {0, max(heads)}:
            raise UnsupportedModelError(
                "the GGUF file's layers differ in their key/value heads",
                found=heads,
                allowed=f"{max(heads)}, or 0 in layers that keep a state",
                cure="transformers computes no such layers: convert the model again.",
            )
        return heads

    def rope_parameters(
        self, head_dim: int, *, rotates_part: bool = False, keys: Collection[str] = ()
    ) -> dict[str, Any]:
        """Returns `rope_parameters`; every key below `rope` is read or, where it matters, refused.

        Args:
            head_dim: numbers per head, or of it those that are rotated.
            rotates_part: as in `config`.
            keys: that the caller reads.
        """
        prefix = f"{self._prefix}rope."
        found = {
            key.removeprefix(prefix): value for key, value in self._file.metadata.items() if key.startswith(prefix)
        }
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": found.get("freq_base", 10000.0)}
        rotated = found.pop("dimension_count", head_dim)
        if rotates_part:
            rope["partial_rotary_factor"] = part_of_head(rotated, head_dim)
        elif rotated != head_dim:
            raise UnsupportedModelError(
                "the GGUF file rotates only a part of each head", found=rotated, allowed=head_dim
            )
        scaled = self._longrope(found)
        kind = found.get("scaling.type", "linear")
        factor = found.get("scaling.factor", found.get("scale_linear")) or 1.0  # 0 is none, too
        check_rope_keys({key: value for key, value in found.items() if key not in keys}, kind, prefix)
        if kind == "yarn":
            original = found.get("scaling.original_context_length", self.get("context_length"))
            scaled |= {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
            scaled |= {name: found[key] for key, name in YARN_KEYS.items() if key in found}
        elif kind == "linear" and factor != 1:
            scaled |= {"rope_type": kind, "factor": factor}
        divisors = self._file.weights.get("rope_freqs.weight")
        if divisors is None:
            return rope | scaled
        if scaled:
            raise UnsupportedModelError("the GGUF file scales RoPE twice", found=f"rope_freqs and {kind} by {factor}")
        return rope | llama3_from_divisors(divisors.load().float(), rope["rope_theta"], rotated)

    def _longrope(self, found: dict[str, Any]) -> dict[str, Any]:
        """Returns LongRoPE's parameters where the file has its factors, and takes from `found` what says the same.

        Of its temperature a file has the value, `attn_factor`, and where it leaves that out llama.cpp takes 1.
        """
        weights = self._file.weights
        if not any(name in weights for name in _LONGROPE_FACTORS.values()):
            return {}
        for name in _LONGROPE_FACTORS.values():
            if name not in weights:
                raise _incomplete(name)
        kind = found.pop("scaling.type", "longrope")
        factor = found.get("scaling.factor", found.get("scale_linear")) or 1.0
        if kind != "longrope" or factor != 1:
            raise UnsupportedModelError("the GGUF file scales RoPE twice", found=f"rope_factors and {kind} by {factor}")
        return {
            "rope_type": "longrope",
            "attention_factor": found.pop("scaling.attn_factor", 1.0),
            "original_max_position_embeddings": found.get(
                "scaling.original_context_length", self.get("context_length")
            ),
            **{key: weights[name].load().flatten().tolist() for key, name in _LONGROPE_FACTORS.items()},
        }

    def _inner_size(self, default: int | None) -> int:
        key = "feed_forward_length"
        is_by_layer = isinstance(self._file.metadata.get(self._prefix + key), list)
        return default if is_by_layer and default is not None else self.size(key, default)

    def _found(self, key: str, default: int | None) -> Any:
        return self.get(key) if default is None else self._file.metadata.get(self._prefix + key, default)

    def _wrong(self, key: str, found: object, what: str, allowed: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"the GGUF file's {self._prefix}{key} {what}",
            found=repr(found),
            allowed=allowed,
            cure="Convert the model again.",
        )


def _incomplete(name: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"the GGUF file lacks {name!r}", cure="Convert the model again.")
