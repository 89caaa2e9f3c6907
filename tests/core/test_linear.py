"""Linear backends against plain torch, and weights that end where they belong."""

import pytest
import torch

from pipezoo_core.config import LinearName
from pipezoo_core.errors import CheckpointMismatchError, InvalidSettingError
from pipezoo_core.layers import Linear, MergedLinear, use_linear_backend
from pipezoo_core.layers.linear_backends import _onednn_is_usable
from pipezoo_core.weights import LazyTensor, load_module, materialize

CPU = torch.device("cpu")
ONEDNN = pytest.mark.skipif(not _onednn_is_usable(CPU, torch.float32), reason="oneDNN is for x86 CPUs")


class Block(torch.nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 24)
        self.qkv_proj = MergedLinear(24, {"q_proj": 32, "k_proj": 8, "v_proj": 8}, bias=bias)
        self.out = Linear(32, 24, bias=bias)
        self.head = Linear.sharing(self.embedding)

    def forward(self, tokens):
        q, k, v = self.qkv_proj(self.embedding(tokens))
        return self.head(self.out(q) + torch.cat((k, v, k), dim=-1))


def make_block(bias, dtype):
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        block = Block(bias)
    materialize(block, CPU, dtype)
    names = {"embedding.weight": (7, 24), "out.weight": (24, 32)}
    names |= {f"{part}.weight": (size, 24) for part, size in (("q_proj", 32), ("k_proj", 8), ("v_proj", 8))}
    if bias:
        names |= {"out.bias": (24,), "q_proj.bias": (32,), "k_proj.bias": (8,), "v_proj.bias": (8,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    lazy = {name: LazyTensor(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}
    load_module(block, lazy)
    return block, tensors, lazy


def test_parts_and_shared_weights_end_where_they_belong():
    block, tensors, lazy = make_block(True, torch.float32)
    merged = torch.cat([tensors[f"{part}.weight"] for part in ("q_proj", "k_proj", "v_proj")])
    assert torch.equal(block.qkv_proj.merged.weight, merged)
    assert block.head.weight is block.embedding.weight
    assert torch.equal(block.head.weight, tensors["embedding.weight"])
    with pytest.raises(CheckpointMismatchError, match=r"missing: k_proj.bias; left over: head.weight"):
        load_module(block, {**{n: t for n, t in lazy.items() if n != "k_proj.bias"}, "head.weight": lazy["out.weight"]})


@ONEDNN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 33])
@torch.inference_mode()
def test_onednn_equals_torch(dtype, bias, rows):
    if not _onednn_is_usable(CPU, dtype):
        pytest.skip(f"no {dtype} here")
    plain, fast = make_block(bias, dtype)[0], make_block(bias, dtype)[0]
    use_linear_backend(LinearName.onednn, fast, CPU, dtype)
    tokens = torch.arange(rows) % 7
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 1.0, "rtol": 0.03}
    torch.testing.assert_close(fast(tokens), plain(tokens), **tolerance)
    left = dict(fast.named_parameters())
    assert list(left) == ["embedding.weight"], "the plain weights are still there"


def test_plain_torch_changes_nothing():
    block = make_block(False, torch.float32)[0]
    use_linear_backend(LinearName.torch, block, CPU, torch.float32)
    assert "out.weight" in dict(block.named_parameters())


def test_onednn_by_name_where_it_cannot_be_used():
    block = make_block(False, torch.float16)[0]
    with pytest.raises(InvalidSettingError, match=r"onednn for torch\.float16"):
        use_linear_backend(LinearName.onednn, block, CPU, torch.float16)
    use_linear_backend(LinearName.auto, block, CPU, torch.float16)
    assert "out.weight" in dict(block.named_parameters())
