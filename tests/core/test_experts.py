"""Mixtures of experts: the layer against transformers', and in a decoder, alone, batched, in chunks, on two ranks."""

import copy

import pytest
import torch
from core.experts_alone import random_experts, rows_and_choices, skip_without_kernels, use_native
from core.mixture import make_mixtral
from distributed.ranks import loaded_on_ranks
from lora.peft_adapters import merged, save_adapter
from safetensors.torch import load_file, save_file
from tiny_models import load_model, logits_of
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from pipezoo_core.config import KVCacheConfig, LinearName, LoRAConfig, SupportedEncoding
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.errors import InvalidSettingError, UnsupportedAdapterError
from pipezoo_core.layers import (
    ClampedGate,
    Experts,
    KernelUse,
    join_experts,
    shard_module,
    use_linear_backend,
)
from pipezoo_core.layers import weights_memory as memory_of
from pipezoo_core.layers.quantized import QuantizedProduct
from pipezoo_core.native import NativeKernels, kernels
from pipezoo_core.testing.tensors_alive import PeakOfTensors

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 31)), [3], [(7 * i) % 99 for i in range(45)]]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return make_mixtral(tmp_path_factory.mktemp("mixtral"))


def difference(model, reference, batches=(PROMPTS,), chunks=(None,)):
    """Returns the greatest of a logit to transformers', of batches that are fed in chunks of several sizes."""
    worst = 0.0
    for prompts in batches:
        with torch.no_grad():
            expected = [reference(torch.tensor([prompt])).logits[0] for prompt in prompts]
        for chunk in chunks:
            pairs = zip(logits_of(model, prompts, chunk), expected, strict=True)
            worst = max(worst, *((logits - oracle).abs().max().item() for logits, oracle in pairs))
    return worst


@pytest.mark.parametrize("linear", ["torch", "auto"])
def test_a_decoder_equals_transformers(mixtral, linear):
    reference, made = mixtral
    model = load_model(*made, linear=linear)
    assert difference(model, reference, chunks=(None, 7, 1)) < 1e-4
    assert difference(model, reference, [[prompt] for prompt in PROMPTS]) < 1e-4


@pytest.mark.parametrize("linear", [LinearName.torch, LinearName.native])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activation", ["silu", "relu2"])
@torch.inference_mode()
def test_experts_of_few_bits_compute_with_what_their_weights_become(linear, bits, activation):
    encoding = SupportedEncoding(f"int{bits}")
    kernels = NativeKernels(CPU, torch.bfloat16)
    if linear is LinearName.native:
        skip_without_kernels()
    exact, experts, rounded = (random_experts(64, 96, 6, 3, activation, activation != "relu2") for _ in range(3))
    for weight in rounded.parameters():
        weight.copy_(QuantizedProduct(weight, None, bits, torch.float32).dequantized(slice(None)))
    x, routed = rows_and_choices(50, 64, 6, 3)
    use_linear_backend(linear, experts, CPU, encoding, kernels)
    join_experts(experts)
    assert (experts._native is not None) is (linear is LinearName.native)
    found, expected = experts(x.bfloat16(), *routed).float(), rounded(x, *routed)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert (exact(x, *routed) - expected).norm() > (0.003 if bits == 8 else 0.05) * expected.norm()


def test_a_decoder_of_8_bits_is_near(tmp_path):
    """But where a token goes to another expert, as some do whose two are about as good."""
    reference, made = make_mixtral(tmp_path, hidden_size=64, intermediate_size=64, num_local_experts=3)
    model = load_model(*made, encoding=SupportedEncoding.int8)
    with torch.no_grad():
        expected = reference(torch.tensor([PROMPTS[3]])).logits[0]
    assert 1e-3 < (logits_of(model, PROMPTS)[3] - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "int4"])
def test_its_steps_are_replayed(tmp_path, encoding):
    skip_without_kernels()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
    reference, made = make_mixtral(tmp_path, **sizes)
    settings = {"encoding": SupportedEncoding(encoding), "kv_cache": KVCacheConfig(page_size=32, kv_cache_memory=2**22)}
    replayed, as_it_is = (load_model(*made, **settings, enforce_eager=eager) for eager in (False, True))
    assert type(replayed).step_outlook(replayed.pipeline_config, reference.config).replay == "yes"
    for chunk in (None, 7, 1):
        pairs = zip(logits_of(replayed, PROMPTS, chunk), logits_of(as_it_is, PROMPTS, chunk), strict=True)
        assert all(torch.equal(found, expected) for found, expected in pairs)
    assert replayed._forward.obstacles == {}
    if encoding == "float32":
        assert difference(replayed, reference) < 1e-4


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("linear", ["torch", "auto"])
def test_ranks_divide_the_experts(tmp_path, num_ranks, linear):
    (tmp_path / "model").mkdir()
    reference, made = make_mixtral(tmp_path / "model", intermediate_size=64)
    with loaded_on_ranks(num_ranks, tmp_path / "ranks", *made, linear=linear) as model:
        assert difference(model, reference, chunks=(None, 5)) < 1e-4
        experts = model.module.model.layers[0].mlp.experts
        assert len(experts) == 6 // num_ranks
        assert (experts._native is not None) is (
            linear == "auto" and NativeKernels(CPU, torch.float32).obstacle is None
        )


def test_adapters_of_the_attention_need_no_room_for_experts(mixtral, tmp_path):
    reference, made = mixtral
    save_adapter(reference, tmp_path / "attention", target_modules=["q_proj", "o_proj"])
    lora = LoRAConfig(lora_paths=[f"one={tmp_path / 'attention'}"], max_num_loras=2)
    model = load_model(*made, lora=lora)
    assert not any(".experts." in name for name in model._adapted.targets)
    for prompt, logits, oracle in zip(
        PROMPTS[:2],
        logits_of(model, PROMPTS[:2], loras=["one", None]),
        [merged(reference, tmp_path / "attention"), reference],
        strict=True,
    ):
        with torch.no_grad():
            assert (logits - oracle(torch.tensor([prompt])).logits[0]).abs().max() < 1e-4
    path = tmp_path / "attention" / "adapter_model.safetensors"
    names = {name.replace("self_attn.q_proj", "mlp.experts.1.gate_proj"): x for name, x in load_file(path).items()}
    save_file(names, path)
    with pytest.raises(UnsupportedAdapterError, match="changes experts, for which the model was loaded without room"):
        model.lora_manager.load_adapter(f"two={tmp_path / 'attention'}")


def test_more_ranks_than_experts_are_refused():
    with pytest.raises(InvalidSettingError, match="at most 3"):
        shard_module(Experts(8, 8, 3, 2, "silu"), TensorParallelGroup(0, 4))


@pytest.mark.parametrize("native", [False, True])
@torch.inference_mode()
def test_the_clamped_gate_with_biases_equals_transformers(native):
    config = GptOssConfig(hidden_size=32, intermediate_size=64, num_local_experts=5)
    reference = GptOssExperts(config)
    ours = Experts(32, 64, 5, 2, ClampedGate(), bias=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in reference.parameters():
        parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))  # so large that gates are clamped
    for number, expert in enumerate(ours):
        gate_up, bias = reference.gate_up_proj[number].T, reference.gate_up_proj_bias[number]
        expert.gate_up_proj.merged.weight.copy_(torch.cat([gate_up[::2], gate_up[1::2]]))
        expert.gate_up_proj.merged.bias.copy_(torch.cat([bias[::2], bias[1::2]]))
        expert.down_proj.weight.copy_(reference.down_proj[number].T)
        expert.down_proj.bias.copy_(reference.down_proj_bias[number])
    if native:
        use_native(ours, torch.float32)
        assert ours._native is not None
    x, routed = rows_and_choices(40, 32, 5, 2)
    torch.testing.assert_close(ours(x, *routed), reference(x, *routed), atol=2e-2, rtol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_experts", [4, 40])
@torch.inference_mode()
def test_other_rows_change_nothing(dtype, num_experts, activation):
    experts = random_experts(64, 96, num_experts, 3, activation, activation != "relu2").to(dtype)
    use_native(experts, dtype)
    x, (indices, weights) = rows_and_choices(70, 64, num_experts, 3)
    x = x.to(dtype)
    together = experts(x, indices, weights)
    for row in (slice(0, 1), slice(33, 34), slice(20, 60)):
        assert torch.equal(experts(x[row], indices[row], weights[row]), together[row])


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "int4"])
@torch.inference_mode()
def test_the_number_of_threads_changes_nothing(encoding, activation):
    """Which has which part of an expert, and what it takes next, is another thing each time."""
    dtype = torch.float32 if encoding == "float32" else torch.bfloat16
    experts = random_experts(288, 320, 6, 3, activation, activation != "relu2").to(dtype)
    skip_without_kernels()
    use_linear_backend(LinearName.native, experts, CPU, SupportedEncoding(encoding), NativeKernels(CPU, dtype))
    join_experts(experts)
    x, (indices, weights) = rows_and_choices(9, 288, 6, 3)
    before, answers = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3, 5):
            torch.set_num_threads(1)
            experts(-2 * x.to(dtype), indices, weights)  # or the answer would lie in memory already
            torch.set_num_threads(num_threads)
            answers += [experts(x[:rows].to(dtype), indices[:rows], weights[:rows]) for rows in (9, 1)]
    finally:
        torch.set_num_threads(before)
    for answer in answers:
        assert torch.equal(answer, answers[0][: len(answer)])


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize("fuse_experts", [True, False])
def test_experts_that_are_not_to_be_fused_are_not_joined(activation, fuse_experts):
    experts = random_experts(64, 96, 6, 3, activation, activation != "relu2")
    use_native(experts, torch.float32, fuse_experts=fuse_experts)
    assert (experts._native is not None) is fuse_experts


@pytest.mark.parametrize(("inner", "gated"), [(64, True), (36, True), (320, True), (36, False), (35, False)])
@pytest.mark.parametrize("rows", [1, 5, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_native_experts_equal_float64(inner, gated, rows, dtype):
    """With 36 numbers inside, gate and up cannot be one product: each expert is computed by itself; so are odd ones."""
    experts = random_experts(66, inner, 7, 3, "silu" if gated else "relu2", gated).to(dtype)
    exact = copy.deepcopy(experts).double()
    x, (indices, weights) = rows_and_choices(rows, 66, 7, 3)
    use_native(experts, dtype)
    assert (experts._native is None) is (inner == 35 or (inner == 36 and gated))
    found = experts(x.to(dtype), indices, weights)
    chosen = [exact[i](row) for row, of_row in zip(x.to(dtype).double(), indices, strict=True) for i in of_row]
    expected = (torch.stack(chosen).view(rows, 3, 66) * weights.unsqueeze(-1)).sum(1)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(found.double(), expected, **tolerance)


@pytest.mark.parametrize(("num_rows", "is_long"), [(1, False), (2, True), (500, True)])
@torch.inference_mode()
def test_who_reads_much_lets_go_of_the_interpreters_lock(num_rows, is_long, monkeypatch):
    """A row reads three of the six experts, and two rows all of them, if no two have chosen the same."""
    experts = random_experts(64, 96, 6, 3, "silu")
    use_native(experts, torch.float32)
    monkeypatch.setattr(kernels, "_LONG_READ", 4 * 3 * 64 * 96 * 4)
    called = []
    monkeypatch.setattr(NativeKernels, "replay", lambda *call: called.append(call))
    x, (indices, weights) = rows_and_choices(num_rows, 64, 6, 3)
    experts(x, indices, weights)
    assert bool(called) is is_long


@pytest.mark.parametrize("linear", [LinearName.torch, LinearName.native])
@pytest.mark.parametrize("inner", [96, 100, 16])
@pytest.mark.parametrize("activation", ["silu", ClampedGate(), ClampedGate(limit=5.0), "relu2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_no_more_is_alive_than_they_say(linear, inner, activation, dtype):
    """In the worst case: all tokens choose the same experts."""
    experts = random_experts(64, inner, 6, 3, activation, activation != "relu2").to(dtype)
    alive = sum(
        experts.alive(
            KernelUse(is_native=linear is LinearName.native, fuse=False, fuse_experts=False, itemsize=dtype.itemsize)
        )
    )
    if linear is LinearName.native:
        use_native(experts, dtype, fuse=False)
    x, (_, weights) = rows_and_choices(500, 64, 6, 3)
    x = x.to(dtype)
    with PeakOfTensors() as tensors:
        experts(x, torch.tensor([[4, 1, 2]]).expand(500, 3), weights)
    assert tensors.peak <= alive * 500 * dtype.itemsize
    if linear is LinearName.torch:
        assert tensors.peak >= 0.95 * alive * 500 * dtype.itemsize


@pytest.mark.parametrize(("hidden", "inner"), [(64, 96), (64, 48), (48, 64)])
@torch.inference_mode()
def test_no_more_is_alive_where_only_a_part_is_quantized(hidden, inner):
    """Products of other numbers of bits are not joined: of 48 numbers no groups can be made."""
    experts = random_experts(hidden, inner, 6, 3, "silu").to(torch.bfloat16)
    alive = sum(experts.alive(KernelUse(is_native=True, fuse=False, fuse_experts=True, itemsize=2)))
    skip_without_kernels()
    use_linear_backend(LinearName.native, experts, CPU, SupportedEncoding.int8, NativeKernels(CPU, torch.bfloat16))
    join_experts(experts)
    x, (_, weights) = rows_and_choices(500, hidden, 6, 3)
    with PeakOfTensors() as tensors:
        experts(x.bfloat16(), torch.tensor([[4, 1, 2]]).expand(500, 3), weights)
    assert tensors.peak <= (alive + hidden) * 500 * 2


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("linear", [LinearName.torch, LinearName.native])
def test_weights_memory_counts_every_expert(encoding, linear):
    encoding = SupportedEncoding(encoding)
    dtype = torch.float32 if encoding is SupportedEncoding.float32 else torch.bfloat16
    kernels = NativeKernels(CPU, dtype)
    if linear is LinearName.native:
        skip_without_kernels()
    with torch.device("meta"):
        one, ten = (Experts(512, 1024, count, 1, "silu").to(dtype) for count in (1, 11))
    sizes = [memory_of(linear, experts, CPU, encoding, kernels) for experts in (one, ten)]
    bytes_per_number = {"float32": 4, "bfloat16": 2, "int8": 1 + 2 / 32, "int4": 0.5 + 2 / 32}[encoding]
    expected = 10 * 3 * 512 * 1024 * bytes_per_number
    assert expected - 2**22 < sizes[1] - sizes[0] < 1.02 * expected + 2**22
