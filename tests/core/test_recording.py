"""Steps that are recorded and replayed give what the module gives."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import load_model, logits_of, make_llama

from pipezoo_core.config import KVCacheConfig
from pipezoo_core.layers import RMSNorm
from pipezoo_core.native import NativeKernels, calls
from pipezoo_core.native.program import Notes, Place, Program
from pipezoo_core.native.step_memory import arrange
from pipezoo_core.weights import LazyTensor
from pipezoo_llama.model import LlamaForCausalLM, LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)
PROMPTS = [list(range(1, n)) for n in (5, 70, 40, 2)]


class Waving(LlamaForCausalLM):
    """Does something of its own at the end of a step, which has no kernel."""

    def forward(self, tokens_T, kv):
        return super().forward(tokens_T, kv).cos()


class WavingModel(LlamaPipelineModel):
    module_class = Waving


class Reading(LlamaForCausalLM):
    """Looks a tensor of the step up that is neither its tokens nor their positions."""

    def forward(self, tokens_T, kv):
        return super().forward(tokens_T, kv) + self.model.embed_tokens(kv.context_lengths)


class ReadingModel(LlamaPipelineModel):
    module_class = Reading


class Branching(LlamaForCausalLM):
    """Looks up more tokens than it needs where there are many rows."""

    def forward(self, tokens_T, kv):
        if len(tokens_T) > 50:
            self.model.embed_tokens(tokens_T)
        return super().forward(tokens_T, kv)


class BranchingModel(LlamaPipelineModel):
    module_class = Branching


def reading(look):
    """A model whose module does what `look` says with the step and its hidden states; what it returns is added."""

    class Module(LlamaForCausalLM):
        def forward(self, tokens_T, kv):
            hidden_TH = super().forward(tokens_T, kv)
            return hidden_TH + look(self, hidden_TH, tokens_T, kv)

    class Model(LlamaPipelineModel):
        module_class = Module

    return Model


def scaled(number):
    return lambda self, hidden, tokens, kv: hidden if number(hidden, tokens, kv) % 2 else hidden + hidden


READ_ON_THE_HOST = {  # each may give another answer for as many rows
    "the step's batch": scaled(lambda h, t, kv: sum(kv.batch.cache_lengths)),
    "the step's cache_lengths": scaled(lambda h, t, kv: len(kv.cache_lengths)),
    "the step's input_row_offsets": scaled(lambda h, t, kv: kv.input_row_offsets.shape[0]),
    "aten.item.default": scaled(lambda h, t, kv: kv.positions[-1].item()),
    "Tensor.tolist": scaled(lambda h, t, kv: sum(t.tolist())),
    "Tensor.numpy": scaled(lambda h, t, kv: int(kv.positions.numpy().sum())),
    "Tensor.__array__": scaled(lambda h, t, kv: int(np.asarray(kv.positions).sum())),
    "aten.equal.default": scaled(lambda h, t, kv: torch.equal(t, kv.positions)),
    "aten.is_nonzero.default": scaled(lambda h, t, kv: 1 if t[0] > 3 else 2),
}


def as_views(self, hidden_TH, tokens_T, kv):
    """The same numbers, by way of every kind of view."""
    size = hidden_TH.shape[-1]
    x = hidden_TH.unflatten(-1, (2, size // 2)).flatten(1).reshape(-1, 2, size // 2)
    x = x.transpose(0, 1).transpose(0, 1).permute(0, 1, 2).unsqueeze(1).squeeze(1).view(-1, size)
    x = x.unbind(0)[0].unsqueeze(0).select(0, 0).expand(1, size) if len(x) == 1 else x.narrow(0, 0, len(x)).chunk(1)[0]
    return self.model.norm(x)


class NormOfHeads(LlamaForCausalLM):
    """Queries and keys have a norm per head, as in Qwen3: rows of a merged product, read where they lie."""

    def __init__(self, config, backend):
        super().__init__(config, backend)
        for layer in self.model.layers:
            attention = layer.self_attn
            attention.q_norm, attention.k_norm = (RMSNorm(config.head_dim, 1e-6) for _ in range(2))
            attend = attention.attention

            def normed(q, k, v, kv, rotation, attention=attention, attend=attend):
                q, k = (
                    norm(x.unflatten(-1, (-1, config.head_dim))).flatten(1)
                    for norm, x in ((attention.q_norm, q), (attention.k_norm, k))
                )
                return attend(q, k, v, kv, rotation)

            object.__setattr__(attention, "attention", normed)
            attention.kept = attend


class NormOfHeadsModel(LlamaPipelineModel):
    module_class = NormOfHeads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_llama(head_dim=32, attention_bias=True).save_pretrained(folder)
    return folder


def load(folder, model_class=LlamaPipelineModel, **settings):
    config = make_llama(head_dim=32, attention_bias=True).config
    settings = {"kv_cache": KVCacheConfig(page_size=32, kv_cache_memory=2**22), **settings}
    return load_model(model_class, folder, config, adapt_safetensors, **settings)


@pytest.fixture(params=[1, 3, 5])
def num_threads(request):
    """As many, and more than there are cores where these are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.matrix
@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("chunk", [1, 25])
def test_however_many_threads(folder, encoding, chunk, num_threads):
    """With 55 rows, their rounded form is made by all threads for all."""
    recorded, eager = load(folder, encoding=encoding), load(folder, encoding=encoding, enforce_eager=True)
    expected = logits_of(eager, PROMPTS, chunk)
    for _ in range(2):
        for found, logits in zip(logits_of(recorded, PROMPTS, chunk), expected, strict=True):
            assert torch.equal(found, logits)
    assert recorded._forward.obstacles == {}
    assert recorded._forward._program is not None


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("pooled", [1, calls._POOLED])
def test_replay_equals_eager(folder, chunk, pooled, monkeypatch):
    """Token by token, and in chunks: with 4 requests that end at different times, many numbers of rows come by."""
    monkeypatch.setattr(calls, "_POOLED", pooled)
    recorded, eager = load(folder), load(folder, enforce_eager=True)
    expected = logits_of(eager, PROMPTS, chunk)
    for _ in range(2):
        for found, logits in zip(logits_of(recorded, PROMPTS, chunk), expected, strict=True):
            assert torch.equal(found, logits)
    assert recorded._forward.obstacles == {}
    assert recorded._forward._program is not None
    assert eager._forward is eager.module


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_steps_of_all_sizes_are_replayed(folder, encoding):
    """Recorded were two sizes; these are others, up to a step's budget, in an order in which memory grows."""
    recorded, eager = load(folder, encoding=encoding), load(folder, encoding=encoding, enforce_eager=True)
    for num_rows in (1, 7, 300, 2, 1024, 64, 65, 513):
        prompts = [[1 + i % 60 for i in range(num_rows)][start : start + 250] for start in range(0, num_rows, 250)]
        for found, expected in zip(logits_of(recorded, prompts), logits_of(eager, prompts), strict=True):
            assert torch.equal(found, expected), num_rows
    assert recorded._forward.obstacles == {}


def test_memory_is_shared_between_layers(folder):
    """One layer's widest moment, and the cosines and sines, are all that is alive at a time."""
    model = load(folder)
    logits_of(model, [[1, 2, 3]])
    config = model.config
    width = 4 * config.hidden_size + 3 * config.intermediate_size + 6 * config.num_heads * config.head_dim
    assert model._forward._program._memory.bytes_per_row < 4 * width + 20 * 64


def test_an_operation_without_a_kernel(folder):
    model, eager = load(folder, WavingModel), load(folder, WavingModel, enforce_eager=True)
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 1), logits_of(eager, PROMPTS, 1), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacles == {}
    assert model._forward.operations == ("aten.cos.default",)


def test_another_tensor_of_the_step(folder):
    model, eager = load(folder, ReadingModel), load(folder, ReadingModel, enforce_eager=True)
    prompts = [prompt[:40] for prompt in PROMPTS]  # context lengths are tokens here
    for _ in range(2):
        for found, expected in zip(logits_of(model, prompts, 1), logits_of(eager, prompts, 1), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacles == {}
    assert model._forward._program is not None


@pytest.mark.matrix
@pytest.mark.parametrize("obstacle", READ_ON_THE_HOST)
def test_what_is_read_on_the_host_is_never_stale(folder, obstacle, caplog):
    model_class = reading(READ_ON_THE_HOST[obstacle])
    model, eager = load(folder, model_class), load(folder, model_class, enforce_eager=True)
    for chunk in (1, 3, 1):
        for found, expected in zip(logits_of(model, PROMPTS, chunk), logits_of(eager, PROMPTS, chunk), strict=True):
            assert torch.equal(found, expected)
    assert set(model._forward.obstacles.values()) == {obstacle}
    assert [record.name for record in caplog.records] == ["pipezoo"]
    assert obstacle in caplog.text


def test_views_are_replayed(folder):
    model_class = reading(as_views)
    model, eager = load(folder, model_class), load(folder, model_class, enforce_eager=True)
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 1), logits_of(eager, PROMPTS, 1), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacles == {}
    assert model._forward._program is not None


def test_an_obstacle_is_one_of_its_number_of_rows(folder):
    """Steps of three rows read a number on the host; the others are replayed all the same."""
    model_class = reading(lambda self, hidden, tokens, kv: hidden * tokens.sum().item() if len(tokens) == 3 else hidden)
    model, eager = load(folder, model_class), load(folder, model_class, enforce_eager=True)
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 1), logits_of(eager, PROMPTS, 1), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacles == {3: "aten.item.default"}
    assert {1, 2, 4} <= model._forward._checked


def test_a_result_that_is_a_part_of_a_tensor(folder):
    """Columns of a wider one: replayed or not, they are what the module returned."""

    class Module(LlamaForCausalLM):
        def forward(self, tokens_T, kv):
            hidden_TH = super().forward(tokens_T, kv)
            wide = self.model.layers[0].self_attn.qkv_proj.merged(hidden_TH)
            return wide[:, : hidden_TH.shape[-1]]

    class Model(LlamaPipelineModel):
        module_class = Module

    model, eager = load(folder, Model), load(folder, Model, enforce_eager=True)
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 1), logits_of(eager, PROMPTS, 1), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
def test_norms_of_heads_are_replayed(folder, encoding):
    def adapt(tensors, config):
        ones = LazyTensor((32,), torch.float32, lambda rows: torch.linspace(0.5, 1.5, 32)[rows])
        names = [f"model.layers.{i}.self_attn.{x}_norm.weight" for i in range(3) for x in "qk"]
        return {**adapt_safetensors(tensors, config), **dict.fromkeys(names, ones)}

    config = make_llama(head_dim=32, attention_bias=True).config
    settings = {"kv_cache": KVCacheConfig(page_size=32, kv_cache_memory=2**22), "encoding": encoding}
    model = load_model(NormOfHeadsModel, folder, config, adapt, **settings)
    eager = load_model(NormOfHeadsModel, folder, config, adapt, enforce_eager=True, **settings)
    plain = logits_of(load(folder, encoding=encoding, enforce_eager=True), PROMPTS, 1)
    for _ in range(2):
        found = logits_of(model, PROMPTS, 1)
        for one, expected in zip(found, logits_of(eager, PROMPTS, 1), strict=True):
            assert torch.equal(one, expected)
        assert not torch.equal(found[0], plain[0])
    assert model._forward.obstacles == {}
    assert model._forward._program is not None


@pytest.mark.matrix
@pytest.mark.parametrize("attention", ["native", "paged", "reference"])
@pytest.mark.parametrize("place", [0, 3, 30, 38, 39])
@pytest.mark.parametrize("chunk", [None, 40, 25, 8, 1])
def test_a_prompt_with_a_token_that_has_no_numbers(folder, attention, place, chunk):
    """From it on the step that feeds it gives its request logits without numbers; the neighbour has its own."""
    model = load(folder, attention=attention)
    prompts = [[i % 90 for i in range(40)], [5, 6, 7]]
    sound = logits_of(model, prompts, chunk)
    prompts[0][place] = 98
    model.module.model.embed_tokens.weight.data[98] = torch.nan
    first, second = logits_of(model, prompts, chunk)
    step = min(chunk or 40, 40)
    from_it_on = first[place : place // step * step + step]
    assert not from_it_on.isfinite().any()
    assert torch.equal(second, sound[1])


def test_what_depends_on_the_number_of_rows(folder):
    model, eager = load(folder, BranchingModel), load(folder, BranchingModel, enforce_eager=True)
    for prompts in (PROMPTS, [[5] * 60]):
        for found, expected in zip(logits_of(model, prompts, 25), logits_of(eager, prompts, 25), strict=True):
            assert torch.equal(found, expected)
    assert set(model._forward.obstacles.values()) == {"what the module computes depends on the number of rows"}


def layer_norm(x, *parameters):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], *parameters)


COMPUTED = {  # what a module may do with hidden states [T, H], a row [H], and columns [T, H] of a wider tensor
    "times a number": lambda x, row, part: x * 1.7,
    "times a number in place": lambda x, row, part: (x + x).mul_(-0.3),
    "divided by a power of two": lambda x, row, part: x / 4,
    "times a row": lambda x, row, part: x * row,
    "times another": lambda x, row, part: x * (x + row),
    "a sum of three": lambda x, row, part: x + x * 2 + x * 3,
    "a scaled sum": lambda x, row, part: torch.add(x, x * x, alpha=0.3),
    "a difference": lambda x, row, part: x * 3 - x * x,
    "a row added": lambda x, row, part: x + row,
    "a row added in place": lambda x, row, part: (x * 2).add_(row, alpha=0.5),
    "columns": lambda x, row, part: x * part,
    "columns added": lambda x, row, part: part + part,
    "columns times a number": lambda x, row, part: part * 3,
    "clipped": lambda x, row, part: x.clamp(-0.5, 0.25),
    "clipped columns": lambda x, row, part: part.clamp(min=-0.1),
    "clipped in place": lambda x, row, part: (x * 2).clamp_(max=0.1),
    "layer_norm": lambda x, row, part: layer_norm(x, row, row * 2),
    "layer_norm, no bias": lambda x, row, part: layer_norm(x, row),
    "layer_norm, no weight": lambda x, row, part: layer_norm(x),
    "gelu": lambda x, row, part: torch.nn.functional.gelu(x),
    "gelu_tanh": lambda x, row, part: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": lambda x, row, part: torch.relu(x),
    "relu2": lambda x, row, part: torch.relu(x).square(),
    "silu": lambda x, row, part: torch.nn.functional.silu(part),
    "sigmoid": lambda x, row, part: x * torch.sigmoid(x),
    "tanh": lambda x, row, part: torch.tanh(x / 2) * 2,
}
EXACT = {name for name in COMPUTED if not re.match("a scaled|a row|layer|gelu|silu|sigm|tanh", name)}


@pytest.mark.matrix
@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_in_torch_is_replayed(folder, name, encoding):
    class Module(LlamaForCausalLM):
        def forward(self, tokens_T, kv):
            hidden_TH = super().forward(tokens_T, kv)
            wide = self.model.layers[0].self_attn.qkv_proj.merged(hidden_TH)
            return COMPUTED[name](hidden_TH, self.model.norm.weight, wide[:, 32:64])

    class Model(LlamaPipelineModel):
        module_class = Module

    model, eager = (load(folder, Model, encoding=encoding, enforce_eager=is_eager) for is_eager in (False, True))
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 1), logits_of(eager, PROMPTS, 1), strict=True):
            if name in EXACT:
                assert torch.equal(found, expected)
            else:
                tolerance = 1e-4 if encoding == "float32" else 5e-2
                torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert model._forward.obstacles == {}
    assert model._forward._program is not None


WITHOUT_A_KERNEL = {
    "a number of each row": lambda x: x * x[:, :1],
    "columns that lie apart": lambda x: x[:, ::2] * 2,
    "in place in a part": lambda x: x[:, :16].mul_(2),
    "divided by three": lambda x: x / 3,
    "a cube": lambda x: x.pow(3),
    "another dtype": lambda x: x.double() * 2,
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", WITHOUT_A_KERNEL)
def test_what_no_kernel_computes_is_left_to_torch(folder, name):
    def look(self, hidden, tokens, kv):
        return WITHOUT_A_KERNEL[name](hidden).sum(-1, keepdim=True).to(hidden.dtype)

    model, eager = load(folder, reading(look)), load(folder, reading(look), enforce_eager=True)
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 3), logits_of(eager, PROMPTS, 3), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacles == {}
    assert model._forward.operations[0] != "aten.sum.dim_IntList"


def notes(num_rows, *numbers):
    """A kernel that writes a row of 64 bytes for each row, and is given these numbers."""
    row = ((16,), torch.float32)
    return Notes(num_rows, [[1, 0, 0, *numbers]], [Place(0, 2, 0, 0)], [[(0, 1)]], [64 * num_rows], (0, 0), row, [], [])


def test_arguments_grow_with_the_rows():
    program = Program(notes(2, 2, 1152, 576), notes(5, 5, 2880, 576))
    for num_rows in (1, 7, 3):
        [stretch], output = program.prepare(num_rows, [12345], [])
        assert output.shape == (num_rows, 16)
        assert program._calls[:6].tolist() == [1, 12345, output.data_ptr(), num_rows, num_rows * 576, 576]
        assert stretch == (program._calls.ctypes.data, 1, None)


def test_a_third_recording_is_compared():
    program = Program(notes(2, 2, 576), notes(5, 5, 576))
    for same in (notes(3, 3, 576), notes(1, 1, 576)):
        program.check(same)
    with pytest.raises(ValueError, match="depends"):
        program.check(notes(3, 3, 577))


@pytest.mark.parametrize("branch", [1, 7, 64])
def test_a_branch_for_one_number_of_rows_is_noticed(folder, branch):
    model_class = reading(lambda self, hidden, tokens, kv: self.model.norm(hidden) if len(tokens) == branch else hidden)
    model, eager = load(folder, model_class), load(folder, model_class, enforce_eager=True)
    for num_rows in (branch, 5, branch, 5):
        prompts = [[1 + i % 60 for i in range(num_rows)]]
        assert torch.equal(logits_of(model, prompts)[0], logits_of(eager, prompts)[0])
    assert model._forward.obstacles == {branch: "what the module computes depends on the number of rows"}


@pytest.mark.parametrize("others", [(3, 1), (4, 2)])
def test_arguments_that_do_not(others):
    with pytest.raises(ValueError, match="proportion"):
        Program(notes(2, 2, 1), notes(4, *others))


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 1000)).map(
            lambda t: (min(t[:2]), max(t[:2]), t[2])
        ),
        max_size=30,
    )
)
def test_tensors_that_live_together_have_places_apart(tensors):
    lifetimes = {i: (first, last) for i, (first, last, _) in enumerate(tensors)}
    sizes = {i: size for i, (_, _, size) in enumerate(tensors)}
    places = arrange(lifetimes, sizes)
    assert all(place % 64 == 0 for place in places.values())
    for i, (first, last) in lifetimes.items():
        for j, (other_first, other_last) in lifetimes.items():
            if i < j and first <= other_last and other_first <= last:
                assert places[i] + sizes[i] <= places[j] or places[j] + sizes[j] <= places[i]


def test_places_are_used_again():
    assert arrange({0: (0, 1), 1: (1, 2), 2: (2, 3)}, {0: 64, 1: 128, 2: 64}) == {0: 0, 1: 64, 2: 0}
