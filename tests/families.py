"""What the tests of every family of models ask: is it what transformers computes, in whatever way it is run?

Each function takes transformers' model of random weights, and pipezoo's model, its folder, or what loads it.
"""

import itertools
import shutil
from functools import partial

import pytest
import torch
from distributed.ranks import loaded_on_ranks
from lora.peft_adapters import merged, save_adapter
from tiny_models import load_model, logits_of
from transformers import AutoModelForCausalLM

from pipezoo import registry
from pipezoo_core.config import (
    KVCacheConfig,
    LoRAConfig,
    PipelineConfig,
    ReturnLogits,
    SupportedEncoding,
    WeightsFormat,
)
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import open_gguf

PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 61)), [3], [(7 * i) % 99 for i in range(97)]]
COMMON = [(5 * i + i * i) % 90 for i in range(70)]
LONG_PROMPTS = [[*COMMON, 4, 8], [3, 7, 1], [*COMMON, 9], COMMON[3:27], COMMON[:48]]
NUM_TOKENS = 16
NATIVE = {"attention": "native", "linear": "native", "kv_cache": KVCacheConfig(page_size=32, kv_cache_memory=2**23)}
"""Settings of `load_model` that take the kernels, which want heads of a multiple of 32 numbers."""


def save(reference, folder, tokenizer):
    """Writes a model into a folder, with the tokenizer of another folder; returns the folder."""
    reference.save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@torch.no_grad()
def expected_logits(reference, prompt):
    """Returns transformers' logits [S, V], with attention in plain torch."""
    return reference(torch.tensor([prompt])).logits[0]


def assert_equal_logits(reference, model, chunks=(None, 7), prompts=PROMPTS, limit=1e-4):
    """The logits of prompts in one batch are transformers', whole and in chunks."""
    expected = [expected_logits(reference, prompt) for prompt in prompts]
    for chunk in chunks:
        for found, wanted in zip(logits_of(model, prompts, chunk), expected, strict=True):
            assert (found - wanted).abs().max() < limit
            assert torch.equal(found.argmax(-1), wanted.argmax(-1))


def assert_near_logits(reference, model, most):
    """The logits of prompts in one batch differ from transformers' by at most a part of the greatest."""
    for prompt, found in zip(PROMPTS, logits_of(model, PROMPTS), strict=True):
        expected = expected_logits(reference, prompt)
        assert (found - expected).abs().max() < most * expected.abs().max()


def assert_near(reference, model, limit=0.15):
    """As near as rows rounded to bfloat16 and to 8 bits come; other weights are ten times farther away."""
    for prompt, found in zip(PROMPTS, logits_of(model, PROMPTS), strict=True):
        expected = expected_logits(reference, prompt)
        assert (found - expected).norm() < limit * expected.norm()


def tokens_of(pipeline, prompts):
    requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
    answers = pipeline.generate(requests, max_new_tokens=12, temperature=0.0, ignore_eos=True)
    return [answer.tokens for answer in answers]


def assert_runs_as_it_lies(path, prompts, **settings):
    """The same tokens whatever else is in the batch, and whether steps are replayed or not."""
    with registry.load(path, **settings) as pipeline:
        assert pipeline.pipeline_config.encoding is SupportedEncoding.packed
        together = tokens_of(pipeline, prompts)
        assert [tokens_of(pipeline, [prompt])[0] for prompt in prompts] == together
    with registry.load(path, enforce_eager=True, **settings) as pipeline:
        assert tokens_of(pipeline, prompts) == together


def assert_matters(reference, other):
    """Two models that differ in a switch compute other logits: without it an oracle over the switch could not fail."""
    other.load_state_dict(reference.state_dict(), strict=False)
    difference = expected_logits(reference, PROMPTS[1]) - expected_logits(other, PROMPTS[1])
    assert difference.abs().max() > 0.01


def greedy_tokens(reference, prompt, num_tokens=NUM_TOKENS):
    """Returns what transformers generates."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "eos_token_id": None, "pad_token_id": 0}
    generated = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
    return generated[0, len(prompt) :].tolist()


def assert_equal_greedy_tokens(reference, folder, *, few_pages, **settings):
    """Greedy tokens are transformers', whatever else happens to the requests.

    Alone, in a batch, in chunks, with what earlier requests left in the prefix cache, and after preemption.

    Args:
        reference: transformers' model.
        folder: with it, and a tokenizer.
        few_pages: a cache's size, as `kv_cache_memory`, in which not all requests have place.
        settings: of `registry.load`.
    """
    settings = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "8MiB", **settings}
    requests = [TextGenerationRequest(prompt=prompt) for prompt in LONG_PROMPTS]
    expected = [greedy_tokens(reference, prompt) for prompt in LONG_PROMPTS]

    def tokens(llm, requests):
        outputs = llm.generate(requests, temperature=0.0, ignore_eos=True, max_new_tokens=NUM_TOKENS)
        return [output.tokens for output in outputs]

    with registry.load(folder, **settings) as llm:
        assert tokens(llm, requests) == expected, "in a batch"
        assert llm.scheduler.num_preemptions == 0
        assert [tokens(llm, [request])[0] for request in requests] == expected, "alone, on prefix hits"
        assert llm.kv_managers[0].metrics.prefix_hit_tokens > 0
    with registry.load(folder, **settings, enable_prefix_caching=False) as llm:
        assert [tokens(llm, [request])[0] for request in requests] == expected, "alone"
    with registry.load(folder, **settings, max_batch_tokens=9) as llm:
        assert tokens(llm, requests) == expected, "in chunks"
    with registry.load(folder, **{**settings, "kv_cache_memory": few_pages}, max_length=128) as llm:
        assert tokens(llm, requests) == expected, "after preemption"
        assert llm.scheduler.num_preemptions > 0
        for manager in llm.kv_managers:
            manager.check_integrity()


def assert_equal_on_ranks(reference, model, folder, num_ranks=2, limit=1e-4, **settings):
    """The logits that several ranks compute are transformers'.

    Args:
        reference: transformers' model.
        model: what `load_model` takes: the class, the checkpoint's folder, the config, the adapter of weights.
        folder: an empty one.
        num_ranks: how many.
        limit: by how much logits may differ.
        settings: of `load_model`.
    """
    with loaded_on_ranks(num_ranks, folder / "ranks", *model, **settings) as divided:
        assert_equal_logits(reference, divided, limit=limit)


def assert_adapters_equal_merged(reference, model, folder, *, targets="all-linear", limit=1e-4, **adapter):
    """A batch with two adapters and without computes what PEFT's merged models do.

    Args:
        reference: transformers' model.
        model: what `load_model` takes, or what loads it with further settings.
        folder: for the adapters.
        targets: the layers that the first adapter changes.
        limit: by how much logits may differ.
        adapter: the second one's config.
    """
    save_adapter(reference, folder / "one", r=5, target_modules=targets)
    save_adapter(reference, folder / "two", r=3, seed=1, **adapter)
    references = {None: reference, **{name: merged(reference, folder / name) for name in ("one", "two")}}
    paths = [f"{name}={folder / name}" for name in ("one", "two")]
    names = ["one", None, "two", "one"]
    load = model if callable(model) else partial(load_model, *model)
    loaded = load(lora=LoRAConfig(lora_paths=paths, max_num_loras=3))
    for chunk in (None, 7):
        for prompt, name, found in zip(PROMPTS, names, logits_of(loaded, PROMPTS, chunk, names), strict=True):
            assert (found - expected_logits(references[name], prompt)).abs().max() < limit
    for one, other in itertools.combinations(references.values(), 2):
        assert (expected_logits(one, PROMPTS[1]) - expected_logits(other, PROMPTS[1])).abs().max() > 0.1


def load_gguf(architecture, path, encoding=SupportedEncoding.float32, group=None, **settings):
    """Loads a GGUF file with what a plugin says of an architecture; of a group's model this rank's part."""
    num_ranks = group.size if group else 1
    file, session = open_gguf(path), InferenceSession([torch.device("cpu")] * num_ranks, group)
    settings = {"tensor_parallel_degree": num_ranks, **settings}
    cache = KVCacheConfig(page_size=8, kv_cache_memory=2**22)
    config = PipelineConfig(model_path=str(path), weight_paths=file.paths, kv_cache=cache, **settings)
    return architecture.pipeline_model(
        pipeline_config=config,
        session=session,
        huggingface_config=architecture.huggingface_config(architecture.config_from_gguf(file)),
        encoding=encoding,
        devices=session.devices,
        kv_cache_config=cache,
        weights=file.weights,
        adapter=architecture.weight_adapters[WeightsFormat.gguf],
        return_logits=ReturnLogits.ALL,
    )


def read_gguf_by_transformers(path):
    """Returns transformers' model of a GGUF file, whose weights it dequantizes."""
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, attn_implementation="eager").eval()


def why_not_replayed(folder, **settings):
    """Returns what stands in the way of replaying the steps of a model in a folder, or None."""
    plan = registry.plan(folder, page_size=32, kv_cache_memory="8MiB", device="cpu", **settings)
    model, config = plan.architecture.pipeline_model, plan.files.huggingface_config
    return model.step_outlook(plan.pipeline_config, config).obstacle


def assert_replayed_as_eager(folder, dtype, *, limit=0.0):
    """Replayed steps give the tokens, and their log probabilities, that the module itself does.

    Args:
        folder: of the model, with a tokenizer.
        dtype: of the run.
        limit: by how much log probabilities may differ: torch and kernels may in the last place of a float32.
    """
    assert why_not_replayed(folder, dtype=dtype) is None
    prompts = [[5, 9, 2], list(range(1, 50)), [3], [7, 7, 1, 8, 2, 8]]
    requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
    settings = {"dtype": dtype, "device": "cpu", "kv_cache_memory": "8MiB", "page_size": 32, "max_batch_tokens": 16}
    found = []
    for enforce_eager in (False, True):
        with registry.load(folder, **settings, enforce_eager=enforce_eager) as llm:
            found.append(llm.generate(requests, temperature=0, max_new_tokens=40, ignore_eos=True, log_probabilities=1))
    for replayed, eager in zip(*found, strict=True):
        assert replayed.tokens == eager.tokens
        wanted = [each.token_log_probabilities[0] for each in eager.log_probabilities]
        given = [each.token_log_probabilities[0] for each in replayed.log_probabilities]
        assert given == (pytest.approx(wanted, abs=limit) if limit else wanted)
