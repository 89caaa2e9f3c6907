"""Safetensors that are quantized: what their tensors become, against arithmetic one number at a time."""

import numpy as np
import pytest
import torch
from core.experts_alone import random_experts, rows_and_choices
from eights_files import fp8_config, rows_config
from kernels_here import kernels, random, rounded_rows
from quantized_files import (
    affine,
    awq_config,
    awq_parts,
    gptq_config,
    gptq_parts,
    packed_config,
    packed_parts,
)

from pipezoo_core.config import LinearName, SupportedEncoding, WeightsFormat
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedCheckpointError
from pipezoo_core.layers import KernelUse, join_experts, use_linear_backend
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.stored import StoredWeight
from pipezoo_core.layers.stored_product import StoredProduct
from pipezoo_core.native import Form
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_core.weights import LazyTensor, Weights, concatenated, with_quantized
from pipezoo_core.weights.quantized import entries

CPU = torch.device("cpu")


def lazy(tensor):
    return LazyTensor(tuple(tensor.shape), tensor.dtype, tensor.__getitem__)


def opened(parts, config, module="model.layers.0.mlp.up_proj", **others):
    tensors = {f"{module}.{part}": lazy(tensor.contiguous()) for part, tensor in parts.items()}
    tensors |= {name: lazy(tensor) for name, tensor in others.items()}
    return with_quantized(Weights(WeightsFormat.safetensors, tensors), {"quantization_config": config})


def weight_of(parts, config):
    (tensor,) = opened(parts, config).values()
    return tensor


def made(kind, bits=4, group=32, shape=(40, 256), seed=0):
    """A weight in a kind of file: what it stands for, and the tensor that is read of it."""
    values = random(*shape, seed=seed).numpy()
    act_order = "act-order" in kind
    symmetric = "symmetric" in kind
    bfloat16 = torch.bfloat16 if "bfloat16" in kind or kind.startswith("packed") else torch.float16
    weight = affine(values, bits, group, symmetric=symmetric, act_order=act_order, dtype=bfloat16, seed=7)
    if kind.startswith("awq"):
        return weight, weight_of(awq_parts(weight, bfloat16), awq_config(group))
    if kind.startswith("gptq"):
        version = 2 if "v2" in kind else 1
        config = gptq_config(bits, group, checkpoint_format="gptq_v2" if version == 2 else "gptq")
        return weight, weight_of(gptq_parts(weight, bits, bfloat16, version=version), config)
    parts = packed_parts(weight, bits, symmetric=symmetric, act_order=act_order)
    return weight, weight_of(parts, packed_config(bits, group, symmetric=symmetric))


FOUR = [
    "awq", "awq bfloat16", "gptq", "gptq symmetric", "gptq v2", "gptq act-order", "gptq v2 bfloat16 act-order",
    "packed", "packed symmetric", "packed act-order",
]  # fmt: skip
CASES = [(kind, 4, group) for kind in FOUR for group in (32, 64, 128, -1)]
CASES += [(kind, 8, group) for kind in ("gptq", "gptq v2 act-order", "packed symmetric") for group in (32, 64, 128, -1)]


def stored(tensor):
    return StoredWeight(tensor.stored.type, tensor.stored.bytes.load())


@pytest.mark.parametrize(("kind", "bits", "group"), CASES)
def test_numbers_are_those_of_the_file_bit_for_bit(kind, bits, group):
    """Read whole, in part, dequantized from blocks, and looked up in packed ones."""
    weight, tensor = made(kind, bits, group)
    expected = torch.from_numpy(weight.values)
    assert torch.equal(tensor.load(), expected)
    assert torch.equal(tensor.rows(slice(3, 13), slice(21, 40)).load(), torch.cat([expected[3:13], expected[21:]]))
    blocks = stored(tensor)
    assert torch.equal(blocks.type.dequantize(blocks.rows), expected)
    product = NativeProduct(kernels(), blocks, None)
    indices = torch.arange(40).flip(0)
    assert torch.equal(product.rows(indices), expected[indices])
    assert product.packed.nbytes == blocks.packed_size


@pytest.mark.parametrize(("kind", "bits", "group"), CASES[:4] + CASES[20:24] + CASES[40:48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_product(kind, bits, group, dtype):
    """The exact sum, within the rounding of rows; a row's is the same whatever rows are beside it."""
    weight, tensor = made(kind, bits, group)
    blocks, bias = stored(tensor), random(40, seed=2).to(dtype)
    x = random(21, 256, seed=1).to(dtype)
    order = torch.from_numpy(np.argsort(weight.groups, kind="stable"))  # in which the kernels round rows in groups
    expected = rounded_rows(x[:, order]) @ torch.from_numpy(weight.values)[:, order].double().T + bias.double()
    product = NativeProduct(kernels(dtype), blocks, bias)
    found = product(x)
    scale = expected.abs().max().item()
    step = 2**-8 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * scale, rtol=step)
    assert torch.equal(torch.cat([product(x[:1]), product(x[1:10])]), found[:10])
    without = StoredProduct(blocks, bias, dtype)(x)
    plain = x.double() @ torch.from_numpy(weight.values).double().T + bias.double()
    torch.testing.assert_close(without.double(), plain, atol=step * scale, rtol=2 * step)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 64)])
def test_a_gated_product_is_of_both_halves(bits, group):
    _, tensor = made("gptq act-order", bits, group, shape=(192, 256))
    blocks, bias, x = stored(tensor), random(192), random(5, 256, seed=1)
    gate, up = (
        NativeProduct(kernels(), StoredWeight(blocks.type, blocks.rows[part]), bias[part], form=Form.wide)(x)
        for part in (slice(0, 96), slice(96, 192))
    )
    found = NativeProduct(kernels(), blocks, bias, form=Form.gated)(x)
    torch.testing.assert_close(found, torch.nn.functional.silu(gate) * up, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128), (4, -1), (8, 32), (8, 64), (8, -1)])
def test_packed_is_little_more_than_the_file(bits, group):
    values = affine(random(64, 1024).numpy(), bits, group, symmetric=True)
    parts = packed_parts(values, bits, symmetric=True)
    tensor = weight_of(parts, packed_config(bits, group, symmetric=True))
    assert stored(tensor).packed_size <= 1.1 * sum(part.nbytes for part in parts.values())


def test_parts_are_one_weight_where_their_columns_are_in_the_same_order():
    tensors = [made(kind)[1] for kind in ("gptq", "gptq act-order", "gptq act-order")]
    assert concatenated(tensors[1:]).stored is not None
    assert concatenated(tensors[:2]).stored is None
    assert torch.equal(concatenated(tensors[1:]).stored.bytes.load()[40:], stored(tensors[2]).rows)


def test_columns_stay_blocks_where_none_is_divided():
    weight, tensor = made("gptq", group=64)
    half, odd = tensor.columns(slice(64, 192)), tensor.columns(slice(32, 96))
    assert torch.equal(half.load(), torch.from_numpy(weight.values[:, 64:192]))
    assert torch.equal(stored(half).type.dequantize(stored(half).rows), half.load())
    assert torch.equal(odd.load(), torch.from_numpy(weight.values[:, 32:96]))
    assert odd.stored is None
    assert made("gptq act-order", group=64)[1].columns(slice(64, 192)).stored is None


@pytest.mark.parametrize("case", ["groups of 16", "a last group of fewer", "uneven groups", "float32 scales"])
def test_what_has_no_blocks_is_dequantized(case):
    group = {"groups of 16": 16, "a last group of fewer": 64}.get(case, 32)
    weight = affine(random(8, 96).numpy(), 4, group)
    if case == "uneven groups":
        weight.groups[:40] = 0
    parts = gptq_parts(weight, dtype=torch.float32 if case == "float32 scales" else torch.float16)
    tensor = weight_of(parts, gptq_config(4, group))
    assert tensor.stored is None
    assert torch.equal(tensor.load(), torch.from_numpy(weight.values))


PARTS = awq_parts(affine(random(16, 64).numpy()))


def test_a_module_with_a_plain_weight_is_not_quantized():
    plain = random(4, 4)
    found = opened(PARTS, awq_config(), **{"lm_head.weight": plain, "model.norm.bias": plain})
    assert sorted(found) == ["lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.bias"]
    assert torch.equal(found["lm_head.weight"].load(), plain)
    assert found.is_quantized
    untouched = Weights(WeightsFormat.safetensors, {"a.weight": lazy(plain), "a.ids": lazy(torch.arange(3))})
    for config in (None, awq_config(), {"quant_method": "bitsandbytes", "load_in_4bit": True}):
        assert with_quantized(untouched, {"quantization_config": config}) is untouched


REFUSED = {
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by a method.*found: bitsandbytes.*awq"),
    "hqq": ({"quant_method": "hqq"}, "by a method.*found: hqq"),
    "aqlm": ({"quant_method": "aqlm"}, "by a method.*found: aqlm"),
    "no method": ({}, "by a method.*found: no quant_method"),
    "no object": ([], "by a method.*found: no quant_method"),
    "3 bits": (gptq_config(3), "number of bits of GPTQ.*found: 3.*4, 8"),
    "2 bits": (gptq_config(2), "number of bits of GPTQ.*found: 2"),
    "marlin": (gptq_config(checkpoint_format="marlin"), "a format of GPTQ.*found: marlin.*gptq, gptq_v2"),
    "an old marlin": (gptq_config(is_marlin_format=True), "a format of GPTQ.*found: marlin"),
    "gemv": (awq_config(version="gemv"), "a version of AWQ.*found: gemv.*gemm"),
    "AWQ of 8 bits": (awq_config(bits=8), "bits of AWQ.*found: 8"),
    "dynamic": (gptq_config(dynamic={"+:.*down": {"bits": 8}}), "settings of GPTQ for some modules"),
    "marlin 2:4": (
        packed_config(format="marlin-24"),
        "a format of compressed-tensors.*found: marlin-24.*pack-quantized",
    ),
    "sparse": (
        packed_config(sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config.*found: sparse-24-bitmask",
    ),
    "rotated": (packed_config(transform_config={"config_groups": {"u": {}}}), "found: transform_config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_kinds_are_refused_by_name(case):
    config, message = REFUSED[case]
    packed = config and config.get("quant_method") == "compressed-tensors"
    parts = packed_parts(affine(random(16, 64).numpy())) if packed else PARTS
    with pytest.raises(UnsupportedCheckpointError, match=message):
        opened(parts, config)


DAMAGED = {
    "no scales": ({"scales": None}, awq_config(), "scales is missing"),
    "fewer zeros": ({"qzeros": PARTS["qzeros"][:1]}, awq_config(), "qzeros does not fit"),
    "another size of groups": ({}, awq_config(group=64), "qzeros does not fit"),
    "no columns": ({}, awq_config(group=0), "groups without columns"),
    "integer scales": ({"scales": PARTS["qzeros"]}, awq_config(), "scales does not fit"),
    "a left out module": (
        {},
        awq_config(modules_to_not_convert=["mlp"]),
        "up_proj is not quantized, and its weight is",
    ),
    "a group of text": ({}, awq_config(group="many"), "quantization_config.group_size"),
    "digits of text": ({}, awq_config(group="32"), "quantization_config.group_size"),
    "true for a number": ({}, awq_config(group=True), "quantization_config.group_size"),
    "a text for a number": ({}, awq_config(group="32"), "quantization_config.group_size"),
    "a weight beside it": ({"weight": torch.ones(16, 64)}, awq_config(), "contradict each other"),
    "groups that do not divide": ({}, awq_config(group=48), "groups that do not divide its columns"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_contradicts_itself_is_an_error(case):
    changes, config, message = DAMAGED[case]
    parts = {part: tensor for part, tensor in (PARTS | changes).items() if tensor is not None}
    with pytest.raises(CorruptCheckpointError, match=message):
        opened(parts, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (fp8_config([128, 128]), "weight_scale_inv is missing"),
        (rows_config("float"), "weight_scale is missing"),
        (awq_config(), "qweight is missing"),
    ],
    ids=["fp8", "compressed-tensors", "awq"],
)
def test_8_bit_floats_without_scales_are_an_error(config, message):
    with pytest.raises(CorruptCheckpointError, match=message):
        opened({"weight": random(16, 64).to(torch.float8_e4m3fn)}, config)


@pytest.mark.parametrize("sparsity", [None, {}, {"format": "dense", "global_sparsity": 0.1, "targets": []}])
def test_numbers_that_are_all_there_are_read_whatever_is_said_of_their_sparsity(sparsity):
    weight = affine(random(16, 64).numpy(), dtype=torch.bfloat16)
    tensor = weight_of(packed_parts(weight), packed_config(sparsity_config=sparsity))
    assert torch.equal(tensor.load(), torch.from_numpy(weight.values))


def test_numbers_that_are_written_otherwise_are_numbers():
    weight = affine(random(16, 64).numpy())
    config = gptq_config(4.0, 32.0, desc_act=0)
    assert torch.equal(weight_of(gptq_parts(weight), config).load(), torch.from_numpy(weight.values))


def test_a_column_of_no_group_is_an_error():
    parts = gptq_parts(affine(random(16, 64).numpy()))
    parts["g_idx"][3] = 2
    with pytest.raises(CorruptCheckpointError, match="names a group that is not there"):
        opened(parts, gptq_config())


MOVED = gptq_parts(affine(random(16, 64).numpy(), act_order=True, seed=7))


@pytest.mark.parametrize("named", [None, torch.full((64,), -1, dtype=torch.int32)], ids=["missing", "unset"])
def test_columns_in_any_order_need_their_groups(named):
    """One after the other they would be other numbers."""
    parts = {**MOVED, "g_idx": named} if named is not None else {k: v for k, v in MOVED.items() if k != "g_idx"}
    with pytest.raises(CorruptCheckpointError, match="g_idx"):
        opened(parts, gptq_config(desc_act=True))
    assert opened(parts, gptq_config(desc_act=False))
    assert opened(parts | {"qzeros": parts["qzeros"][:1], "scales": parts["scales"][:1]}, gptq_config(4, -1))


@pytest.mark.parametrize("says", [{"symmetric": True}, {}])
@pytest.mark.parametrize("kind", ["packed", "int8", "float8"])
def test_zero_points_of_a_symmetric_weight_are_0_or_contradict_it(kind, says):
    """Old files have them, in shapes and dtypes that are no zero points of a weight that is not symmetric."""
    if kind == "packed":
        weight = affine(random(16, 64).numpy(), symmetric=True, dtype=torch.bfloat16)
        parts, config = packed_parts(weight), packed_config()
    else:
        dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
        numbers = torch.arange(-64, 64, dtype=torch.int8).view(2, 64).to(dtype)
        parts, config = {"weight": numbers, "weight_scale": torch.ones(2, 1)}, rows_config(kind.removesuffix("8"))
    parts.pop("weight_zero_point", None)
    weights = config["config_groups"]["group_0"]["weights"]
    del weights["symmetric"]
    weights |= says
    expected = weight_of(parts, config).load()
    for shape in ((2, 2), (16, 2), (1,), (16, 1)):
        for dtype in (torch.int32, torch.int8, torch.float8_e4m3fn, torch.bfloat16):
            zeros = torch.zeros(shape, dtype=dtype)
            assert torch.equal(weight_of(parts | {"weight_zero_point": zeros}, config).load(), expected)
            with pytest.raises(CorruptCheckpointError, match="contradict each other"):
                opened(parts | {"weight_zero_point": torch.ones(shape).to(dtype)}, config)


def test_floats_with_two_scales_are_an_error():
    parts = {"weight": random(16, 128).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)}
    with pytest.raises(CorruptCheckpointError, match="contradict each other"):
        opened({**parts, "weight_scale": torch.ones(16, 1)}, fp8_config([128, 128]))


def test_names_of_left_out_modules():
    config = packed_config(ignore=["lm_head", "mlp.gate", r"re:.*\.visual\..*"])
    parts = packed_parts(affine(random(16, 64).numpy()))
    assert opened(parts, config, module="model.mlp.gate_proj")
    for module in ("lm_head", "model.mlp.gate", "model.visual.up_proj"):
        with pytest.raises(CorruptCheckpointError, match="is not quantized, and its weight is"):
            opened(parts, config, module=module)


@pytest.mark.parametrize("zero", [-3, 0, 127])
def test_one_zero_point_of_8_bits_is_that_of_all_rows(zero):
    numbers = torch.randint(-128, 128, (16, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    config = rows_config("int")
    config["config_groups"]["group_0"]["weights"] |= {"symmetric": False, "strategy": "tensor"}
    parts = {"weight": numbers, "weight_scale": torch.tensor([0.5], dtype=torch.bfloat16)}
    tensor = weight_of({**parts, "weight_zero_point": torch.tensor([zero], dtype=torch.int8)}, config)
    expected = (numbers.float() - zero) / 2
    assert torch.equal(tensor.load(), expected)
    assert torch.equal(stored(tensor).type.dequantize(stored(tensor).rows), expected)


@pytest.mark.parametrize("scale", ["input_scale", "output_scale"])
def test_a_plain_weight_beside_scales_of_rows_is_not_quantized(scale):
    plain, name = random(4, 4), "model.layers.0.self_attn.k_proj"
    found = opened(
        {"weight": random(16, 64).to(torch.float8_e4m3fn), "weight_scale": torch.ones(16, 1)},
        rows_config("float"),
        **{f"{name}.weight": plain, f"{name}.{scale}": torch.ones(1)},
    )
    assert sorted(found) == ["model.layers.0.mlp.up_proj.weight", f"{name}.weight"]
    assert torch.equal(found[f"{name}.weight"].load(), plain)


def test_scales_of_a_cache_are_passed_over_where_no_weight_is_quantized():
    config = rows_config("float") | {"config_groups": {}, "format": "dense"}
    found = opened({"weight": random(4, 4)}, config, **{"model.layers.0.self_attn.k_scale": torch.ones(1)})
    assert sorted(found) == ["model.layers.0.mlp.up_proj.weight"]


def test_scales_of_activations_of_awq_are_refused():
    with pytest.raises(UnsupportedCheckpointError, match=r"mlp.act is scaled by AWQ.*scales of activations"):
        opened(PARTS, awq_config(), **{"transformer.h.0.mlp.act.scales": torch.ones(4)})


HOSTILE = {
    "a huge block": (fp8_config([128, 10**30]), CorruptCheckpointError, "weight_block_size"),
    "a huge group": (awq_config(10**30), CorruptCheckpointError, "group_size"),
    "a huge repetition": (fp8_config() | {"modules_to_not_convert": ["re:a{99999999999999999999}"]}, None, "pattern"),
    "a deep pattern": (fp8_config() | {"modules_to_not_convert": ["re:" + "(" * 3000 + ")" * 3000]}, None, "pattern"),
    "no pattern": (fp8_config() | {"modules_to_not_convert": ["re:("]}, CorruptCheckpointError, "pattern"),
    "a slow pattern": (
        fp8_config() | {"modules_to_not_convert": [r"re:(?:.|.|[^!])*(?:.|.)*(?:.|.)*[A-Z]{2}\d"]},
        UnsupportedCheckpointError,
        "too involved",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configs_are_errors(case, monkeypatch):
    monkeypatch.setattr(entries, "_MAX_SECONDS", 0.1)
    config, error, message = HOSTILE[case]
    parts = {"weight": random(16, 64).to(torch.float8_e4m3fn), "weight_scale": torch.ones(1)}
    with pytest.raises(error or (CorruptCheckpointError, UnsupportedCheckpointError), match=message):
        opened(PARTS if "awq" in config["quant_method"] else parts, config)


def test_a_block_larger_than_its_weight_takes_no_more_memory():
    numbers = random(16, 64).to(torch.float8_e4m3fn)
    parts = {"weight": numbers, "weight_scale_inv": torch.ones(1, 1)}
    tensor = weight_of(parts, fp8_config([128, 2**31 - 1]))
    with PeakOfTensors() as tensors:
        assert torch.equal(tensor.load(), numbers.float())
    assert tensors.peak < 2**20


@torch.inference_mode()
def test_no_more_is_alive_in_a_mixture_whose_columns_are_reordered():
    """All tokens choose the same expert, which is not joined with others."""
    experts = random_experts(64, 128, 4, 1).to(torch.bfloat16)
    for expert in experts.experts:
        expert.gate_up_proj.merged.keep([stored(made("gptq act-order", shape=(256, 64))[1])])
        expert.down_proj.keep([stored(made("gptq act-order", shape=(64, 128))[1])])
    alive = sum(experts.alive(KernelUse(is_native=True, fuse=False, fuse_experts=True, itemsize=2)))
    use_linear_backend(LinearName.native, experts, CPU, SupportedEncoding.packed, kernels(torch.bfloat16))
    join_experts(experts)
    x, (_, weights) = rows_and_choices(500, 64, 4, 1)
    with PeakOfTensors() as tensors:
        experts(x.bfloat16(), torch.tensor([[3]]).expand(500, 1), weights)
    assert tensors.peak <= (alive + 64) * 500 * 2
