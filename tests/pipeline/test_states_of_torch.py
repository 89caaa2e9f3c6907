"""Whatever state a caller leaves torch in, answers are those without it, of models loaded in it or before."""

import contextlib
import shutil

import pytest
import torch
from gguf_files import TOKENS
from lora.peft_adapters import save_adapter
from tiny_models import make_llama

from pipezoo import registry
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.slow

PROMPTS = [[(7 * i) % 250 for i in range(70)], [5, 9, 13], [(3 * i) % 250 for i in range(33)]]
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 0.8, "seed": 3, "top_p": 0.9, "min_p": 0.02, "frequency_penalty": 0.3, "logit_bias": {7: 0.3}}
KINDS = {
    "native float32": {"dtype": "float32"},
    "native bfloat16": {"dtype": "bfloat16"},
    "native int8": {"dtype": "int8"},
    "native int4": {"dtype": "int4"},
    "eager float32": {"dtype": "float32", "enforce_eager": True},
    "paged float32": {"dtype": "float32", "attention": "paged", "linear": "torch"},
    "paged bfloat16": {"dtype": "bfloat16", "attention": "paged", "linear": "torch"},
    "paged float16": {"dtype": "float16", "attention": "paged", "linear": "torch"},
    "paged int4": {"dtype": "int4", "attention": "paged", "linear": "torch"},
    "onednn float32": {"dtype": "float32", "attention": "paged", "linear": "onednn"},
    "reference float32": {"dtype": "float32", "attention": "reference", "linear": "torch"},
}


@contextlib.contextmanager
def changed(set_, get, value):
    before = get()
    set_(value)
    try:
        yield
    finally:
        set_(before)


def default_dtype(dtype):
    return changed(torch.set_default_dtype, torch.get_default_dtype, dtype)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES = {
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default device meta": lambda: default_device("meta"),
    "default device cpu": lambda: default_device("cpu"),
    "device context": lambda: torch.device("meta"),
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference mode": torch.inference_mode,
    "inference mode off": lambda: torch.inference_mode(False),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "deterministic": lambda: changed(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True
    ),
    "one thread": lambda: changed(torch.set_num_threads, torch.get_num_threads, 1),
    "three threads": lambda: changed(torch.set_num_threads, torch.get_num_threads, 3),
    "matmul precision": lambda: changed(
        torch.set_float32_matmul_precision, torch.get_float32_matmul_precision, "medium"
    ),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "two at once": lambda: two_at_once(),
}


@contextlib.contextmanager
def two_at_once():
    with default_dtype(torch.float16), default_device("meta"):
        yield


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_llama(vocab_size=len(TOKENS), hidden_size=64, intermediate_size=64, head_dim=32).save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    save_adapter(make_llama(vocab_size=len(TOKENS), hidden_size=64, intermediate_size=64, head_dim=32), path)
    return path


def same(found, expected, state, kind):
    """Bit for bit, but for torch's own products: the caller may allow less exact ones, and more threads divide sums."""
    (tokens, numbers), (expected_tokens, expected_numbers) = found, expected
    if state.endswith(("thread", "threads")) and kind.startswith(("paged", "onednn", "reference")):
        numbers, expected_numbers = torch.tensor(numbers), torch.tensor(expected_numbers)
        return tokens == expected_tokens and torch.allclose(numbers, expected_numbers, rtol=0, atol=1e-5)
    return tokens == expected_tokens and (numbers == expected_numbers or state == "matmul precision")


def load(folder, **settings):
    values = {"device": "cpu", "page_size": 32, "kv_cache_memory": "4MiB", "max_batch_tokens": 40}
    values |= {"enable_prefix_caching": False, **settings}  # a hit may differ from a miss in float16
    return registry.load(folder, **values)


def answers(llm, settings=(GREEDY, SEEDED), loras=(None,)):
    """Returns each answer's tokens, and the log probabilities of one."""
    requests = [TextGenerationRequest(prompt=prompt, lora=lora) for prompt in PROMPTS for lora in loras]
    found = [llm.generate(requests, max_new_tokens=6, ignore_eos=True, **own) for own in settings]
    logged = llm.generate(requests[:1], max_new_tokens=2, temperature=0.0, ignore_eos=True, log_probabilities=2)
    numbers = [entry.token_log_probabilities for entry in logged[0].log_probabilities]
    return [output.tokens for outputs in found for output in outputs], numbers


@pytest.fixture(scope="module")
def loaded(folder):
    """A model of each kind, and what it answers."""
    models = {name: load(folder, **settings) for name, settings in KINDS.items()}
    return {name: (llm, answers(llm)) for name, llm in models.items()}


@pytest.mark.parametrize("state", STATES)
def test_models_loaded_before(state, loaded):
    for name, (llm, expected) in loaded.items():
        with STATES[state]():
            found = answers(llm)
        assert same(found, expected, state, name), name


@pytest.mark.parametrize("state", STATES)
def test_models_loaded_in_it(state, folder, loaded):
    for name, settings in KINDS.items():
        with STATES[state]():
            found = answers(load(folder, **settings))
        assert same(found, loaded[name][1], state, name), name


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["native float32", "paged bfloat16", "native int8"])
def test_adapters(state, kind, folder, adapter):
    def found():
        llm = load(folder, lora_paths=[f"a={adapter}"], **KINDS[kind])
        first = answers(llm, (GREEDY,), ("a", None))
        llm.model.lora_manager.load_adapter(f"b={adapter}")
        return first, answers(llm, (GREEDY,), ("b",))

    expected = found()
    with STATES[state]():
        inside = found()
    assert all(same(one, other, state, kind) for one, other in zip(inside, expected, strict=True))
