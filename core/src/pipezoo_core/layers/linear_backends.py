"""Ways to compute linear layers, chosen once, after the weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.layers.embedding import Embedding, LMHead
from pipezoo_core.layers.experts import Expert, Experts, UngatedExpert
from pipezoo_core.layers.latent_heads import LatentHeads
from pipezoo_core.layers.linear import ColumnParallelLinear, JoinedProduct, Linear, Product
from pipezoo_core.layers.mlp import MLP, GatedMLP
from pipezoo_core.layers.native_experts import NativeExperts
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.norm import LayerNorm, RMSNorm
from pipezoo_core.layers.quantized import GROUP, QuantizedProduct
from pipezoo_core.layers.rotary import RotaryEmbedding
from pipezoo_core.layers.router import Router
from pipezoo_core.layers.stored import StoredWeight, runs_of_parts
from pipezoo_core.layers.stored_product import StoredProduct
from pipezoo_core.native import HUGE_PAGE, Form, NativeKernels
from pipezoo_core.recurrence import GatedDeltaRule, GatedRMSNorm, RMSNormOfGated, SelectiveScan, ShortConvolution

__all__ = [
    "OneDNNProduct",
    "choose_linear",
    "join_experts",
    "packed_weights",
    "rounded_bits",
    "use_linear_backend",
    "weights_memory",
]

# What the native kernels compute besides:
_NATIVE = (
    GatedDeltaRule, GatedMLP, GatedRMSNorm, LatentHeads, LayerNorm, MLP, RMSNorm, RMSNormOfGated, RotaryEmbedding,
    Router, SelectiveScan, ShortConvolution,
)  # fmt: skip

_TYPICAL_ROWS = 512  # oneDNN chooses the weights' layout for so many rows; it serves any number as well


class OneDNNProduct(Product):
    """`x Wᵀ + b` by oneDNN, with W reordered once into the layout its kernels read.

    Plain `F.linear` reads W as it lies and, in float32 on a CPU, leaves the product to MKL.

    Args:
        weight: [out_features, in_features], float32 or bfloat16, on a CPU. Copied.
        bias: [out_features], or None.
    """

    rows = None

    @staticmethod
    def size_of(weight: Tensor, bits: int | None) -> int:
        """Returns the bytes that a weight takes, which may be on the meta device."""
        del bits
        return weight.nbytes

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_ROWS)
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product


def use_linear_backend(
    name: LinearName,
    module: nn.Module,
    device: torch.device,
    encoding: SupportedEncoding,
    kernels: NativeKernels,
    *,
    fuse: bool = True,
    fuse_experts: bool = True,
) -> None:
    """Makes all `Linear`s of a loaded module compute with a backend; for `auto` the fastest one.

    One layer is converted after the other, so that there are never two copies of all weights. With `fuse`, what
    follows a layer may become a part of it; the layer alone can then not be used any more. `fuse_experts` is the same
    for the layers in a mixture's experts.

    Raises:
        InvalidSettingError: the backend was asked for by name and cannot be used here.
    """
    name = choose_linear(name, device, encoding, kernels)
    if name is LinearName.native:
        gates = [layer for layer in module.modules() if isinstance(layer, GatedMLP)]
        _fuse([gate for gate in gates if (fuse_experts if isinstance(gate, Expert) else fuse)], encoding, kernels)
    for layer in module.modules():
        if isinstance(layer, UngatedExpert):
            layer.is_fused = fuse_experts
        if isinstance(layer, Linear):
            if (product := _product(name, layer, encoding, kernels)) is not None:
                layer.compute_with(product)
        elif isinstance(layer, Embedding) and layer.stored and not layer.has_head:
            rows = _of_stored(name, layer.stored[0], None, Form.plain, kernels).rows
            assert rows is not None
            layer.look_up_with(rows)
        elif name is LinearName.native and isinstance(layer, _NATIVE):
            layer.compute_with(kernels)


def _product(name: LinearName, layer: Linear, encoding: SupportedEncoding, kernels: NativeKernels) -> Product | None:
    """Returns what computes a layer, from its weight or from what a file has of it; None for plain torch."""
    form = Form.wide if isinstance(layer, LMHead) else Form.plain  # logits lose nothing
    if layer.stored:
        return _joined(name, layer, form, kernels)
    bits, kind = rounded_bits(layer, encoding), _kind(name, layer, encoding)
    if kind is NativeProduct:
        return NativeProduct(kernels, layer.weight, layer.bias, bits, form)
    if kind is OneDNNProduct:
        return OneDNNProduct(layer.weight, layer.bias)
    if kind is QuantizedProduct:
        assert bits is not None
        return QuantizedProduct(layer.weight, layer.bias, bits, kernels.dtype)
    return None


def _joined(name: LinearName, layer: Linear, form: Form, kernels: NativeKernels) -> Product:
    counts = [weight.shape[0] for weight in layer.stored]
    biases = [None] * len(counts) if layer.bias is None else layer.bias.split(counts)
    products = [
        _of_stored(name, weight, bias, form, kernels) for weight, bias in zip(layer.stored, biases, strict=True)
    ]
    if len(products) == 1:
        return products[0]
    assert isinstance(layer, ColumnParallelLinear)
    return JoinedProduct(products, runs_of_parts(layer.stored, layer.sizes))


def _of_stored(
    name: LinearName, weight: StoredWeight, bias: Tensor | None, form: Form, kernels: NativeKernels
) -> Product:
    if name is LinearName.native:
        return NativeProduct(kernels, weight, bias, form=form)
    return StoredProduct(weight, bias, kernels.dtype)


def join_experts(module: nn.Module) -> None:
    """Makes each mixture of a module one kernel, where its experts' products are native and packed like each other.

    Call it once, when `use_linear_backend` was called with all of the module's parts. Experts that it did not fuse stay
    as they are.
    """
    for experts in [experts for experts in module.modules() if isinstance(experts, Experts)]:
        pairs = [expert.products for expert in experts.experts]
        gate_ups = [product for product, _ in pairs if isinstance(product, NativeProduct)]
        downs = [product for _, product in pairs if isinstance(product, NativeProduct)]
        is_complete = len(gate_ups) == len(downs) == len(pairs) and all(p.keeps_order for p in (*gate_ups, *downs))
        activation = experts.experts[0].native_activation
        if is_complete and activation is not None and all(_are_packed_alike(each) for each in (gate_ups, downs)):
            sizes = {"first": experts.first, "top_k": experts.top_k}
            experts.compute_with(NativeExperts(gate_ups, downs, activation=activation, **sizes))


def _are_packed_alike(products: Sequence[NativeProduct]) -> bool:
    return len({product.packing for product in products}) == 1


def packed_weights(module: nn.Module) -> set[nn.Parameter]:
    """Returns the weights that the native kernels pack whole, and that nothing else of a module reads."""
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for layer in module.modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append(layer)
    weights = {layer.weight for layer in module.modules() if isinstance(layer, Linear) and _is_even(layer)}
    return {weight for weight in weights if all(_reads_packed(layer) for layer in owners[weight])}


def _reads_packed(layer: nn.Module) -> bool:
    return isinstance(layer, Linear) or (isinstance(layer, Embedding) and layer.has_head)


def weights_memory(
    name: LinearName, module: nn.Module, device: torch.device, encoding: SupportedEncoding, kernels: NativeKernels
) -> int:
    """Returns the bytes that a module's weights take when `use_linear_backend` has given them their form.

    What the native kernels have packed lies together and takes whole pages of 2 MiB.

    Args:
        name: as there.
        module: on the meta device, in the dtype of the run; what it keeps as a file has it, as `load_module` keeps it.
        device: where it will be.
        encoding: as there.
        kernels: as there.

    Raises:
        InvalidSettingError: as there.
    """
    name = choose_linear(name, device, encoding, kernels)
    plain = {parameter: parameter.nbytes for parameter in module.parameters()}
    packed = others = 0
    for layer in [layer for layer in module.modules() if isinstance(layer, Linear | Embedding)]:
        if isinstance(layer, Embedding) or layer.stored:
            stored = () if isinstance(layer, Embedding) and layer.has_head else layer.stored
            packed += sum(weight.packed_size for weight in stored) if name is LinearName.native else 0
            others += sum(weight.rows.nbytes for weight in stored) if name is not LinearName.native else 0
            continue
        kind = _kind(name, layer, encoding)
        if kind is None:
            continue
        size = kind.size_of(layer.weight, rounded_bits(layer, encoding))
        if kind is NativeProduct:
            packed += size
        else:
            others += size
        if kind.rows is not None or not (isinstance(layer, LMHead) and layer.shared):
            del plain[layer.weight]  # else the embedding keeps it
    return -(-packed // HUGE_PAGE) * HUGE_PAGE + others + sum(plain.values())


def choose_linear(
    name: LinearName, device: torch.device, encoding: SupportedEncoding, kernels: NativeKernels
) -> LinearName:
    """Returns the backend with this name, for `auto` that of the fastest one.

    Raises:
        InvalidSettingError: it cannot be used here.
    """
    obstacles = {LinearName.native: kernels.obstacle, LinearName.onednn: _why_not_onednn(device, encoding)}
    if name is LinearName.auto:
        name = next((usable for usable, obstacle in obstacles.items() if obstacle is None), LinearName.torch)
    if obstacle := obstacles.get(name):
        raise InvalidSettingError(
            f"setting 'linear' cannot be {name.value!r} here", found=obstacle, cure="Leave it at auto."
        )
    return name


def _kind(
    name: LinearName, layer: Linear, encoding: SupportedEncoding
) -> type[NativeProduct | OneDNNProduct | QuantizedProduct] | None:
    """Returns how a layer is computed; None for as it is."""
    if name is LinearName.native and _is_even(layer):
        return NativeProduct
    if name is LinearName.onednn:
        return OneDNNProduct
    return None if rounded_bits(layer, encoding) is None else QuantizedProduct


def _is_even(layer: Linear) -> bool:
    return layer.in_features % 2 == 0  # bfloat16 products take two numbers at a time


def _fuse(gates: Sequence[GatedMLP], encoding: SupportedEncoding, kernels: NativeKernels) -> None:
    for layer in gates:
        if layer.can_be_gated and layer.native_activation is not None:
            merged = layer.gate_up_proj.merged
            weight = merged.stored[0] if merged.stored else merged.weight
            form = (rounded_bits(merged, encoding), Form.gated, layer.native_activation)
            layer.gate_with(NativeProduct(kernels, weight, merged.bias, *form))


def rounded_bits(layer: Linear, encoding: SupportedEncoding) -> Literal[8, 4] | None:
    """Returns how many bits a layer's numbers have; None where they are not quantized.

    A head of 4 bits costs more in quality than in memory: it is 8 bits then. What does not divide into groups is left
    as it is.
    """
    if not encoding.rounds_weights or layer.in_features % GROUP:
        return None
    return 4 if encoding is SupportedEncoding.int4 and not isinstance(layer, LMHead) else 8


def _why_not_onednn(device: torch.device, encoding: SupportedEncoding) -> str | None:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return f"oneDNN is not available for {device}"
    if torch.cpu.get_capabilities().get("architecture") != "x86_64":
        return "it is for x86 CPUs"
    has_bfloat16 = encoding is SupportedEncoding.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if has_bfloat16 or encoding is SupportedEncoding.float32:
        return None
    return f"oneDNN computes float32 and bfloat16 where the CPU has instructions for it, not {encoding} here"
