"""Does a LoRA adapter do what it does merged into the reference's weights?"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipezoo_core.config import Capability, LoRAConfig
from pipezoo_core.errors import PipezooError
from pipezoo_core.testing.agreement import check_same_logits
from pipezoo_core.testing.claims import those_claiming
from pipezoo_core.testing.failures import ConformanceError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.reference import reference_logits
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.weight_map import is_among, weight_map

__all__ = ["check_lora"]

_RANK, _ALPHA = 4, 6.0
_SPREAD = 0.2


def check_lora(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """A batch in which some requests use an adapter computes what the merged reference does, and the plain one.

    The adapter changes every linear layer that logits of text depend on, but the head and routers.
    """
    del plugin
    for subject in those_claiming(Capability.lora, subjects):
        merged, folder = copy.deepcopy(subject.reference), subject.folder / "adapter"
        folder.mkdir(exist_ok=True)
        _write_adapter(merged, _adaptable(subject), folder)
        names = ["a", None, "a", None][: len(subject.prompts)]
        try:
            model = subject.load(lora=LoRAConfig(lora_paths=(f"a={folder}",)))
        except PipezooError as error:
            subject.load()  # where the weights do not fit without an adapter either, that is the error
            raise ConformanceError(
                f"config {subject.name!r}: an adapter of all linear layers cannot be loaded",
                found=error,
                cure="An adapter's matrices pass through the weight adapter one at a time, under the name of their "
                "layer's weight, each [out_features, rank]. Most likely it expects a whole weight, or a layer is no "
                "Linear of core.",
            ) from error
        expected = [
            subject.expected(prompt) if name is None else reference_logits(merged, prompt)
            for prompt, name in zip(subject.prompts, names, strict=True)
        ]
        check_same_logits(
            logits_of(model, subject.prompts, loras=names),
            expected,
            f"config {subject.name!r}: with a LoRA adapter other logits come out than of merged weights, first of {{}}",
            "Where the check of log probabilities passes, most likely the weight adapter orders or divides rows "
            "otherwise when it is given an adapter's matrix: look at what it does by a tensor's shape, and at the "
            "order of the parts of a fused layer.",
        )


def _adaptable(subject: Subject) -> list[str]:
    """Returns the reference's linear layers that text goes through, without those that take no adapters in the plugin.

    These are the head, which may be the embedding, and routers.
    """
    weights = subject.weights
    head = getattr(subject.reference, "get_output_embeddings", lambda: None)()
    fixed = [
        weights[source].load()
        for name, sources in weight_map(subject).items()
        if _takes_none(subject, name)
        for source in sources
    ]
    return [
        name
        for name, layer in subject.reference.named_modules()
        if _is_linear(layer)
        and layer is not head
        and layer.get_parameter("weight").data_ptr() in subject.of_text
        and not is_among(layer.get_parameter("weight"), fixed)
    ]


def _takes_none(subject: Subject, name: str) -> bool:
    from pipezoo_core.layers import LMHead, Router, VocabParallelEmbedding

    path, layers = name.rpartition(".")[0], dict(subject.outline.named_modules(remove_duplicate=False))
    return isinstance(layers.get(path), LMHead | Router | VocabParallelEmbedding)


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


@torch.no_grad()
def _write_adapter(model: nn.Module, names: Sequence[str], folder: Path) -> None:
    """Writes a random adapter in PEFT's format, and merges it into the model."""
    generator, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for name in names:
        layer = model.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        is_turned = not isinstance(layer, nn.Linear)
        num_out, num_in = weight.T.shape if is_turned else weight.shape
        a = _SPREAD * torch.randn(_RANK, num_in, generator=generator, dtype=torch.float32, device="cpu")
        b = _SPREAD * torch.randn(num_out, _RANK, generator=generator, dtype=torch.float32, device="cpu")
        change = b @ a * (_ALPHA / _RANK)
        weight += change.T if is_turned else change
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in names})
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _ALPHA, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
