"""Steps that are recorded and replayed give what the module gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import load_model, logits_of, make_llama

from pipezoo_core.config import KVCacheConfig
from pipezoo_core.native import NativeKernels, kernels
from pipezoo_core.native.program import Notes, Place, Program, arrange
from pipezoo_llama.model import LlamaForCausalLM, LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)
PROMPTS = [list(range(1, n)) for n in (5, 70, 40, 2)]


class Doubling(LlamaForCausalLM):
    """Does something of its own at the end of a step, which has no kernel."""

    def forward(self, tokens_T, kv):
        return super().forward(tokens_T, kv) * 2


class DoublingModel(LlamaPipelineModel):
    module_class = Doubling


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_llama(head_dim=32, attention_bias=True).save_pretrained(folder)
    return folder


def load(folder, model_class=LlamaPipelineModel, **settings):
    config = make_llama(head_dim=32, attention_bias=True).config
    settings = {"kv_cache": KVCacheConfig(page_size=32, memory=2**22), **settings}
    return load_model(model_class, folder, config, adapt_safetensors, **settings)


@pytest.fixture(params=[1, 3, 5])
def num_threads(request):
    """As many, and more than there are cores where these are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("chunk", [1, 25])
def test_however_many_threads(folder, encoding, chunk, num_threads):
    """With 55 rows, their rounded form is made by all threads for all."""
    recorded, eager = load(folder, encoding=encoding), load(folder, encoding=encoding, enforce_eager=True)
    expected = logits_of(eager, PROMPTS, chunk)
    for _ in range(2):
        for found, logits in zip(logits_of(recorded, PROMPTS, chunk), expected, strict=True):
            assert torch.equal(found, logits)
    assert recorded._forward.obstacle is None


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("pooled", [1, kernels._POOLED])
def test_replay_equals_eager(folder, chunk, pooled, monkeypatch):
    """Token by token, and in chunks: with 4 requests that end at different times, many numbers of rows come by."""
    monkeypatch.setattr(kernels, "_POOLED", pooled)
    recorded, eager = load(folder), load(folder, enforce_eager=True)
    expected = logits_of(eager, PROMPTS, chunk)
    for _ in range(2):
        for found, logits in zip(logits_of(recorded, PROMPTS, chunk), expected, strict=True):
            assert torch.equal(found, logits)
    assert recorded._forward.obstacle is None
    assert eager._forward is eager.module


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_steps_of_all_sizes_are_replayed(folder, encoding):
    """Recorded were two sizes; these are others, up to a step's budget, in an order in which memory grows."""
    recorded, eager = load(folder, encoding=encoding), load(folder, encoding=encoding, enforce_eager=True)
    for num_rows in (1, 7, 300, 2, 1024, 64, 65, 513):
        prompts = [[1 + i % 60 for i in range(num_rows)][start : start + 250] for start in range(0, num_rows, 250)]
        for found, expected in zip(logits_of(recorded, prompts), logits_of(eager, prompts), strict=True):
            assert torch.equal(found, expected), num_rows
    assert recorded._forward.obstacle is None


def test_memory_is_shared_between_layers(folder):
    """One layer's widest moment, and the cosines and sines, are all that is alive at a time."""
    model = load(folder)
    logits_of(model, [[1, 2, 3]])
    config = model.config
    width = 4 * config.hidden_size + 3 * config.intermediate_size + 6 * config.num_heads * config.head_dim
    assert model._forward._program._bytes_per_row < 4 * width + 20 * 64


def test_an_operation_without_a_kernel(folder):
    model, eager = load(folder, DoublingModel), load(folder, DoublingModel, enforce_eager=True)
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 1), logits_of(eager, PROMPTS, 1), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacle == "aten.mul.Tensor"


def test_another_tensor_of_the_step(folder):
    model, eager = load(folder, ReadingModel), load(folder, ReadingModel, enforce_eager=True)
    prompts = [prompt[:40] for prompt in PROMPTS]  # context lengths are tokens here
    for _ in range(2):
        for found, expected in zip(logits_of(model, prompts, 1), logits_of(eager, prompts, 1), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacle == "a tensor of the step other than tokens and positions"


def _reads_lists(self, tokens_T, kv):
    return LlamaForCausalLM.forward(self, tokens_T, kv) if kv.batch.prompt_lengths else None


def _reads_a_number(self, tokens_T, kv):
    if int(kv.positions[0]) > 3:
        self.model.embed_tokens(tokens_T)
    return LlamaForCausalLM.forward(self, tokens_T, kv)


def _reads_a_list_of_numbers(self, tokens_T, kv):
    if tokens_T.tolist()[0] > 50:
        self.model.embed_tokens(tokens_T)
    return LlamaForCausalLM.forward(self, tokens_T, kv)


def _counts_requests(self, tokens_T, kv):
    if len(kv.cache_lengths) > 1:
        self.model.embed_tokens(tokens_T)
    return LlamaForCausalLM.forward(self, tokens_T, kv)


def _raises_over_garbage(self, tokens_T, kv):
    hidden = LlamaForCausalLM.forward(self, tokens_T, kv)
    if not kv.batch.pages or tokens_T.max() == 0:
        raise ZeroDivisionError("no token")
    return hidden


@pytest.mark.parametrize(
    ("forward", "obstacle"),
    [
        (_reads_lists, "the step's batch"),
        (_reads_a_number, "aten.item.default"),
        (_reads_a_list_of_numbers, "Tensor.tolist"),
        (_counts_requests, "the step's cache_lengths"),
        (_raises_over_garbage, "the step's batch"),
    ],
)
def test_what_may_differ_the_next_time_is_noticed_and_said(folder, forward, obstacle, caplog):
    module = type("Module", (LlamaForCausalLM,), {"forward": forward})
    model_class = type("Model", (LlamaPipelineModel,), {"module_class": module})
    model, eager = load(folder, model_class), load(folder, model_class, enforce_eager=True)
    for prompts in (PROMPTS, [[60, 7, 8]], PROMPTS):
        for found, expected in zip(logits_of(model, prompts, 3), logits_of(eager, prompts, 3), strict=True):
            assert torch.equal(found, expected)
    assert obstacle in model._forward.obstacle
    assert [record.getMessage() for record in caplog.records if record.name == "pipezoo"] == [
        f"the model's steps are not replayed, which is slower: {model._forward.obstacle}"
    ]


def test_what_depends_on_the_number_of_rows(folder):
    model, eager = load(folder, BranchingModel), load(folder, BranchingModel, enforce_eager=True)
    for prompts in (PROMPTS, [[5] * 60]):
        for found, expected in zip(logits_of(model, prompts, 25), logits_of(eager, prompts, 25), strict=True):
            assert torch.equal(found, expected)
    assert model._forward.obstacle == "what the module computes depends on the number of rows"


def notes(num_rows, *numbers):
    """A kernel that writes a row of 64 bytes for each row, and is given these numbers."""
    row = ((16,), torch.float32)
    return Notes(num_rows, [[1, 0, 0, *numbers]], [Place(0, 2, 0, 0)], [[(0, 1)]], [64 * num_rows], (0, 0), row)


def test_arguments_grow_with_the_rows():
    program = Program(notes(2, 2, 1152, 576), notes(5, 5, 2880, 576))
    for num_rows in (1, 7, 3):
        address, output = program.prepare(num_rows, [12345])
        assert output.shape == (num_rows, 16)
        assert program._calls[:6].tolist() == [1, 12345, output.data_ptr(), num_rows, num_rows * 576, 576]
        assert address == program._calls.ctypes.data


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
