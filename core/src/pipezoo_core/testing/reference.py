"""The reference implementation with random weights: what a plugin is compared with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipezoo_core.testing.failures import ConformanceError

__all__ = ["make_reference", "quietly", "reference_logits", "save_reference", "weights_of_text"]

_SPREAD = 0.2  # of weights: large enough that every one shows in the logits


def make_reference(config: Mapping[str, Any], model_class: Callable[[Any], nn.Module] | None) -> nn.Module:
    """Returns a model with random weights, all of which matter.

    Args:
        config: what its config.json says.
        model_class: called with its config: that of `model_class.config_class` where there is one, else the mapping
            itself. None for what transformers has for the config's `model_type`.

    Raises:
        ConformanceError: transformers has no model of this type, or it cannot be made.
    """
    torch.manual_seed(0)  # for buffers that are made of random numbers
    try:
        model = _of_transformers(config) if model_class is None else _of_class(config, model_class)
    except ConformanceError:
        raise
    except Exception as error:  # the author's own class, or transformers' with sizes that do not go together
        raise ConformanceError(
            "the reference implementation cannot be made of a config",
            found=f"{type(error).__name__}: {error}",
            cure="Check the config's sizes against each other.",
        ) from error
    _randomize(model)
    return model.eval()


def _of_transformers(config: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ConformanceError(
            f"transformers has no reference implementation of model_type {model_type!r}",
            cure="Name one: `reference` of the test class, or `pipezoo check DIST --reference module:Class`.",
        )
    made = CONFIG_MAPPING[model_type].from_dict(dict(config))
    kind: Any = AutoModelForCausalLM if type(made) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    model: nn.Module = kind.from_config(made, attn_implementation="eager")
    return model.float()


def _of_class(config: Mapping[str, Any], model_class: Callable[[Any], nn.Module]) -> nn.Module:
    config_class = getattr(model_class, "config_class", None)
    made = dict(config) if config_class is None else config_class.from_dict(dict(config))
    if hasattr(made, "_attn_implementation"):
        made._attn_implementation = "eager"
    return model_class(made).float()


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Gives every parameter noise around what it is set to where that is the same for all: 1 for most norms.

    So it does with vectors of a checkpoint that are no parameters, such as what a router adds to the scores of experts.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    stored = [tensor for tensor in model.state_dict().values() if tensor.data_ptr() not in parameters]
    buffers = [tensor for tensor in stored if tensor.is_floating_point() and tensor.numel() > 1 and _is_uniform(tensor)]
    for tensor in (*parameters.values(), *buffers):
        center = tensor[0].item() if _is_uniform(tensor) else 0.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu")
        tensor.copy_(center + _SPREAD * noise)


def _is_uniform(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and tensor.unique().numel() == 1


@torch.enable_grad()
def weights_of_text(model: nn.Module, tokens: list[int]) -> set[int]:
    """Returns the addresses of the parameters that logits of text depend on: a part that sees images has others."""
    with quietly():
        output = model(torch.tensor([tokens], dtype=torch.int64, device="cpu"))
    getattr(output, "logits", output).sum().backward()
    used = {parameter.data_ptr() for parameter in model.parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return used


@torch.no_grad()
def reference_logits(model: nn.Module, tokens: list[int]) -> Tensor:
    """Returns the logits [S, V] of a request's tokens, in float32."""
    with quietly():
        output = model(torch.tensor([tokens], dtype=torch.int64, device="cpu"))
    logits: Tensor = getattr(output, "logits", output)
    return logits[0].float()


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps to itself what transformers says while it works: of the reference, which nobody asked about."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def save_reference(model: nn.Module, config: Mapping[str, Any], folder: Path, **settings: Any) -> None:
    """Writes config.json and safetensors.

    Args:
        model: of transformers, or any module.
        config: what config.json says, of a model that is not transformers'.
        folder: an existing one.
        settings: of transformers' `save_pretrained`.
    """
    if hasattr(model, "save_pretrained"):
        with quietly():
            save: Any = model.save_pretrained
            save(folder, **settings)
        return
    (folder / "config.json").write_text(json.dumps(dict(config)))
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if all(tensor.data_ptr() != other.data_ptr() for other in tensors.values()):  # tied ones are written once
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
