"""Logits of the mistral plugin against transformers on the same weights, beyond the sliding window, too."""

import pytest
import torch
from families import PROMPTS, assert_equal_logits, greedy_tokens
from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, cache_memory, load_model, logits_of, randomize
from transformers import MistralConfig, MistralForCausalLM

from pipezoo import registry
from pipezoo_core.config import KVCacheConfig
from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.errors import InsufficientPagesError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_mistral.model import MistralPipelineModel
from pipezoo_mistral.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

CONFIGS = {
    "window": {"sliding_window": 12},
    "window_of_one_page": {"sliding_window": 8},
    "no_window": {"sliding_window": None},
    "head_dim": {"sliding_window": 12, "head_dim": 20},
    "tied": {"tie_word_embeddings": True},
    "nemo": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None},
}


def make(**changes):
    config = MistralConfig(**{**TINY_LLAMA, "attn_implementation": "eager", **changes})
    return randomize(MistralForCausalLM(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    reference.save_pretrained(tmp_path)
    model = load_model(MistralPipelineModel, tmp_path, reference.config, adapt_safetensors)
    assert_equal_logits(reference, model, chunks=(None, 7, 1))


def test_the_window_matters(tmp_path):
    """Without it the oracle above could not fail."""
    reference, other = make(sliding_window=12), make(sliding_window=None)
    tokens = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        assert (reference(tokens).logits - other(tokens).logits)[0, :12].abs().max() == 0
        assert (reference(tokens).logits - other(tokens).logits)[0, 12:].abs().max() > 0.01


@pytest.mark.parametrize("attention", ["paged", "reference"])
@pytest.mark.parametrize("chunk", [None, 7, 1])
def test_pages_behind_the_window_are_never_read(tmp_path, attention, chunk):
    """Whatever no request owns is overwritten before every step, and the cache is smaller than the longest prompt."""
    reference = make(sliding_window=12)
    reference.save_pretrained(tmp_path)
    memory = cache_memory(26) if chunk is None else cache_memory(13)
    model = load_model(
        MistralPipelineModel,
        tmp_path,
        reference.config,
        adapt_safetensors,
        attention=attention,
        kv_cache=KVCacheConfig(page_size=8, kv_cache_memory=memory, enable_prefix_caching=False),
    )
    manager, fetch = model.kv_manager, model.kv_manager.fetch

    def spoil_and_fetch(batch, num_steps=1):
        inputs = fetch(batch, num_steps)
        owned = {page for claim in manager._claims.values() for page in claim.holdings[0].own_pages}
        free = [page for page in range(manager.total_num_pages) if page not in owned]
        for tensor in manager.device_tensors:
            tensor[free] = 1e3
        return inputs

    manager.fetch = spoil_and_fetch
    prompts = PROMPTS if attention == "paged" else PROMPTS[:2]
    for prompt, logits in zip(prompts, logits_of(model, prompts, chunk), strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([prompt])).logits[0]
        assert (logits - expected).abs().max() < 1e-4


def test_prefix_hits_beyond_the_window_equal_transformers(tmp_path):
    """Requests that go on where an earlier one, of which only the last pages are left, has been."""
    reference = make(sliding_window=12)
    reference.save_pretrained(tmp_path)
    model = load_model(MistralPipelineModel, tmp_path, reference.config, adapt_safetensors)
    common = PROMPTS[3][:80]
    seen = []
    for i, prompt in enumerate([common, [*common, 3, 4], [*common, 5], common[:61], [*common, 3, 4, *PROMPTS[1]]]):
        context = TextContext(
            request_id=str(i), prompt_tokens=prompt, max_length=1000, sampling_params=SamplingParams()
        )
        model.kv_manager.external_claim(context)
        seen.append(context.cache_length)
        cached = context.cache_length
        context.set_chunk(context.num_pending)
        assert model.kv_manager.maybe_reserve(context)
        outputs = model.execute(model.prepare_initial_token_inputs([context], model.kv_manager.fetch([context])))
        context.advance(0)
        model.kv_manager.step([context])
        model.kv_manager.release(context.request_id)
        model.kv_manager.check_integrity()
        with torch.no_grad():
            expected = reference(torch.tensor([prompt])).logits[0]
        assert (outputs.logits - expected[cached:]).abs().max() < 1e-4
    assert seen == [0, 80, 80, 56, 80]


@pytest.fixture(scope="module")
def reference():
    return make(sliding_window=12, vocab_size=len(TOKENS))


@pytest.fixture(scope="module")
def folder(reference, tiny_folder, tmp_path_factory):
    """The tiny Mistral with the tiny Llama's tokenizer."""
    folder = tmp_path_factory.mktemp("mistral")
    reference.save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def load(folder, num_pages, **settings):
    memory = cache_memory(num_pages)
    return registry.load(folder, dtype="float32", device="cpu", page_size=8, kv_cache_memory=memory, **settings)


LONG_PROMPTS = [[(5 * i + i * i) % 90 for i in range(length)] for length in (100, 3, 61, 24, 90)]
GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": 40}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_pages", "settings"),
    [
        (200, {}),
        (200, {"max_batch_tokens": 5}),
        (3, {}),
        (6, {"max_batch_tokens": 9}),
        (3, {"max_batch_tokens": 9, "enable_prefix_caching": False}),
        (8, {"attention": "reference", "max_batch_tokens": 30}),
    ],
)
def test_generation_beyond_the_window_equals_transformers(reference, folder, num_pages, settings):
    """However few pages there are: 3 hold the window of 12 tokens, and a token more, in pages of 8."""
    llm = load(folder, num_pages, **settings)
    prompts = LONG_PROMPTS if settings.get("attention") is None else LONG_PROMPTS[2:4]
    requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
    for _ in range(2):  # the second time with what the prefix cache has kept
        for prompt, output in zip(prompts, llm.generate(requests, **GREEDY), strict=True):
            assert output.tokens == greedy_tokens(reference, prompt, 40)
    manager = llm.kv_managers[0]
    manager.check_integrity()
    assert manager.num_free_pages == manager.total_num_pages
    assert (llm.scheduler.num_preemptions > 0) == (num_pages == 3)
    assert manager.metrics.prefix_hit_tokens > 0 or num_pages < 200


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 9, 40])
def test_several_steps_at_once_beyond_the_window_equal_transformers(reference, folder, num_steps):
    llm = load(folder, 200)
    params = SamplingParams(**GREEDY)
    requests = [TextGenerationRequest(prompt=prompt, sampling_params=params) for prompt in LONG_PROMPTS]
    contexts = [llm.tokenizer.new_context(request) for request in requests]
    while batch := {context.request_id: context for context in contexts if not context.status.is_done}:
        for context in batch.values():
            context.set_chunk(context.num_pending)
        llm.execute(TextGenerationInputs([batch], num_steps=num_steps))
        llm.kv_managers[0].check_integrity()
    used = llm.kv_managers[0].total_num_pages - llm.kv_managers[0].num_free_pages
    assert used <= 3 * len(contexts)
    for context, prompt in zip(contexts, LONG_PROMPTS, strict=True):
        llm.release(context.request_id)
        assert context.generated_tokens == greedy_tokens(reference, prompt, 40)


def test_memory_plan_counts_the_window_and_not_the_length(folder):
    plan = load(folder, 20).memory_plan
    assert plan.max_length == 256
    assert (plan.num_cache_tokens, plan.concurrency) == (160, 160 / 24)
    assert plan.concurrency == pytest.approx(160 / 24)
    assert load(folder, 2).memory_plan.max_length == 16
    with pytest.raises(InsufficientPagesError, match=f"at least {cache_memory(3)} bytes"):
        load(folder, 2, max_length=20)


def test_optimal_batch_size_is_how_many_requests_hold_their_window_at_once(folder):
    llm = load(folder, 20, max_batch_tokens=10)
    found = llm.model.infer_optimal_batch_size(
        llm.pipeline_config,
        llm.memory_plan.kv_cache,
        llm.model.huggingface_config,
        llm.model.devices,
        llm.pipeline_config.kv_cache,
        llm.model.dtype,
    )
    assert found == 5  # 12 tokens that are seen and 9 more of a chunk lie in up to 4 pages of 8
