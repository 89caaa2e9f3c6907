"""What transformers knows of a model type, as the template of a plugin needs it.

Reads the config class and, on torch's meta device, the model class: nothing is downloaded and no weight is made.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pipezoo_core.errors import InvalidSettingError, PipezooError, UnsupportedModelError, shown

__all__ = ["reference_of"]

_ROLES = {
    "activation": ("hidden_act", "hidden_activation", "activation_function", "activation"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
}
_INNER = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "dim_feedforward")
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_KNOWN = {*_SIZES, *_INNER, *(name for names in _ROLES.values() for name in names)} | {
    "num_key_value_heads", "head_dim", "tie_word_embeddings", "rope_parameters"
}  # fmt: skip
_TRAINING = re.compile(r"dropout|pdrop|^summary_|_token_id$|^use_cache$|initializer|aux_loss|^output_|pretraining_tp")
_LAYER = re.compile(r"\.\d+\.")
_NORM_BIAS = re.compile(r"(norm|ln)[^.]*\.bias$")
_COMPUTED_HEAD_DIM = 'getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads'
_PLAIN = (bool, int, float, str)


def reference_of(model_type: str) -> dict[str, Any]:
    """Returns what the template takes as `reference`.

    Its keys: `model_type`, `architecture` and `config_class`, names of transformers; `prefix`, what the last begins
    with; `sizes`, for each size of a `DecoderConfig` the expression that reads it; `activation` and `norm_eps`, names
    in the config; `norm`, `RMSNorm` or `LayerNorm`; `is_gated` and `has_rope`; `fields`, what else the config has, each
    with its type and default; `weights`, the names and shapes of the model's parameters by the config's defaults, those
    of all layers in one line; `obstacle`, why there are none, or None.

    Raises:
        InvalidSettingError: transformers has no causal language model of this type.
        UnsupportedModelError: it has one that is no decoder with attention.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as MODELS

    if model_type not in MODELS or model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, MODELS, n=1, cutoff=0.6)
        raise InvalidSettingError(
            "transformers has no causal language model of this type",
            found=model_type,
            cure=f"Did you mean {near[0]!r}?" if near else "Leave it out to start from a config class of your own.",
        )
    from pipezoo_core.testing.reference import quietly

    with quietly():
        try:
            return _described(MODELS[model_type], CONFIG_MAPPING[model_type])
        except PipezooError:
            raise
        except Exception as error:  # a config class's own code, whose defaults nobody may ever have used
            raise _no_decoder(f"{type(error).__name__}: {error}") from error


def _no_decoder(found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "the type's config does not describe a decoder of equal layers by its defaults",
        found=found,
        cure="Leave out --from-transformers, and write config and model yourself.",
    )


def _described(architecture: str, config_class: Any) -> dict[str, Any]:
    config = config_class()
    missing = [name for name in _SIZES if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise _no_decoder(f"no {', '.join(missing)}")
    weights, obstacle = _weights(architecture, config)
    eps = _first(config, _ROLES["norm_eps"])
    has_norm_bias = any(_NORM_BIAS.search(name) for name in weights)
    return {
        "model_type": config_class.model_type,
        "architecture": architecture,
        "config_class": config_class.__name__,
        "prefix": config_class.__name__.removesuffix("Config"),
        "sizes": _sizes(config),
        "activation": _first(config, _ROLES["activation"]),
        "norm_eps": eps,
        "norm": "LayerNorm" if has_norm_bias or "layer_norm" in str(eps) else "RMSNorm",
        "is_gated": not weights or any("gate" in name for name in weights),
        "has_rope": isinstance(getattr(config, "rope_parameters", None), Mapping),
        "fields": list(_fields(config_class)),
        "weights": [{"name": name, "shape": shape} for name, shape in weights.items()],
        "obstacle": obstacle,
    }


def _sizes(config: Any) -> dict[str, str]:
    inner = next((name for name in _INNER if isinstance(getattr(config, name, None), int)), None)
    has_kv_heads = isinstance(getattr(config, "num_key_value_heads", None), int)
    has_head_dim = isinstance(getattr(config, "head_dim", None), int)
    return {
        "vocab_size": "config.vocab_size",
        "hidden_size": "config.hidden_size",
        "intermediate_size": f"config.{inner}" if inner else "4 * config.hidden_size",
        "num_layers": "config.num_hidden_layers",
        "num_heads": "config.num_attention_heads",
        "num_kv_heads": "config.num_key_value_heads" if has_kv_heads else "config.num_attention_heads",
        "head_dim": "config.head_dim" if has_head_dim else _COMPUTED_HEAD_DIM,
    }


def _first(config: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if getattr(config, name, None) is not None), None)


def _fields(config_class: type) -> Iterator[dict[str, str]]:
    """Yields what the config has of its own, without sizes that every decoder has, and what only training reads."""
    renamed = set(getattr(config_class, "attribute_map", {}).values())
    for name, annotation in vars(config_class).get("__annotations__", {}).items():
        is_plain = typing.get_origin(annotation) is not typing.ClassVar
        if is_plain and name not in _KNOWN | renamed and not _TRAINING.search(name):
            yield {"name": name, "type": _spelled(annotation), "default": shown(getattr(config_class, name, None))}


def _spelled(annotation: Any) -> str:
    """Returns an annotation as source without imports; what is not built of Python's own types is `Any`."""
    origin = typing.get_origin(annotation)
    if annotation is type(None):
        return "None"
    if annotation in _PLAIN:
        return str(annotation.__name__)
    if origin in (types.UnionType, typing.Union):
        parts = list(dict.fromkeys(_spelled(part) for part in typing.get_args(annotation)))
        if "float" in parts and "int" in parts:  # to a type checker, an int is a float
            parts.remove("int")
        return "Any" if "Any" in parts else " | ".join(parts)
    if origin in (list, tuple, dict):
        parts = ["..." if part is ... else _spelled(part) for part in typing.get_args(annotation)]
        return f"{origin.__name__}[{', '.join(parts)}]"
    return "Any"


def _weights(architecture: str, config: Any) -> tuple[dict[str, str], str | None]:
    """Returns the shapes of the parameters by their names, and what keeps the defaults from making a model, or None."""
    import torch
    import transformers

    try:
        with torch.device("meta"):
            model = getattr(transformers, architecture)(config)
    except Exception as error:  # a model's own code, with a config that nobody may ever have made a model of
        return {}, shown(f"{type(error).__name__}: {error}").replace("\\", "/")
    return {_LAYER.sub(".*.", name): str(list(value.shape)) for name, value in model.named_parameters()}, None
