"""Steps that are recorded and replayed give what the module gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import load_model, logits_of, make_llama

from pipezoo_core.config import KVCacheConfig
from pipezoo_core.native import NativeKernels, kernels
from pipezoo_core.native.recording import _MAX_PROGRAMS, _MAX_ROWS, _arrange
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
    assert recorded._forward.obstacles == {}
    assert len(recorded._forward._programs) > 2


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
    assert recorded._forward.obstacles == {}
    assert len(recorded._forward._programs) > 2
    assert eager._forward is eager.module


def test_only_small_steps_are_recorded(folder):
    model = load(folder)
    logits_of(model, [PROMPTS[1] * 2])
    assert not model._forward._programs
    for rows in range(1, _MAX_PROGRAMS + 5):
        logits_of(model, [[1] * rows])
    assert list(model._forward._programs) == list(range(5, _MAX_PROGRAMS + 5))
    assert max(model._forward._programs) <= _MAX_ROWS


def test_memory_is_shared_between_layers_and_programs(folder):
    """One layer's widest moment, and the cosines and sines, are all that is alive at a time."""
    model = load(folder)
    for rows in (1, 3, 2):
        logits_of(model, [list(range(1, rows + 1))])
    assert len({program.output.untyped_storage().data_ptr() for program in model._forward._programs.values()}) == 1
    eager = load(folder, enforce_eager=True)
    for rows in (1, 2, 3):  # the first was recorded before the memory was as large as it is now
        prompts = [list(range(5, 5 + rows))]
        assert torch.equal(logits_of(model, prompts)[0], logits_of(eager, prompts)[0])
    arena = model._forward._programs[3].output.untyped_storage().nbytes()
    config = model.config
    width = 4 * config.hidden_size + 3 * config.intermediate_size + 6 * config.num_heads * config.head_dim
    assert arena < 3 * 4 * width + 20 * 64


def test_an_operation_without_a_kernel(folder):
    model, eager = load(folder, DoublingModel), load(folder, DoublingModel, enforce_eager=True)
    for _ in range(2):
        for found, expected in zip(logits_of(model, PROMPTS, 1), logits_of(eager, PROMPTS, 1), strict=True):
            assert torch.equal(found, expected)
    assert set(model._forward.obstacles.values()) == {"aten.mul.Tensor"}
    assert not model._forward._programs


def test_another_tensor_of_the_step(folder):
    model, eager = load(folder, ReadingModel), load(folder, ReadingModel, enforce_eager=True)
    prompts = [prompt[:40] for prompt in PROMPTS]  # context lengths are tokens here
    for _ in range(2):
        for found, expected in zip(logits_of(model, prompts, 1), logits_of(eager, prompts, 1), strict=True):
            assert torch.equal(found, expected)
    assert set(model._forward.obstacles.values()) == {"a tensor of the step other than tokens and positions"}


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
    places = _arrange(lifetimes, sizes)
    assert all(place % 64 == 0 for place in places.values())
    for i, (first, last) in lifetimes.items():
        for j, (other_first, other_last) in lifetimes.items():
            if i < j and first <= other_last and other_first <= last:
                assert places[i] + sizes[i] <= places[j] or places[j] + sizes[j] <= places[i]


def test_places_are_used_again():
    assert _arrange({0: (0, 1), 1: (1, 2), 2: (2, 3)}, {0: 64, 1: 128, 2: 64}) == {0: 0, 1: 64, 2: 0}
