"""A tiny llama with a tokenizer, as a GGUF file, as a folder, and as the transformers model both were made from."""

import gc
import random
import shutil
import signal
from itertools import groupby

import pytest
import torch
from gguf_files import TOKENS, write_llama_gguf
from hypothesis import settings
from tiny_models import TINY_LLAMA, make_llama, randomize
from transformers import MistralConfig, MistralForCausalLM, MptConfig, MptForCausalLM

from pipezoo import registry

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


SEED = 18  # of the sample that the quick tests take


def pytest_report_header() -> str:
    return f"matrix: without the slow tests, a tenth of each, sampled with seed {SEED}"


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked as a matrix, a tenth of the cases is quick, and the others are slow."""
    matrices = [item for item in items if item.get_closest_marker("matrix")]
    for name, cases in groupby(matrices, key=lambda item: item.nodeid.partition("[")[0]):
        quick = [item for item in cases if not item.get_closest_marker("slow")]
        random.Random(f"{SEED} {name}").shuffle(quick)
        for item in quick[max(1, len(quick) // 10) :]:
            item.add_marker("slow")


@pytest.fixture(scope="module", autouse=True)
def freeze() -> None:
    """Takes what is there out of what `gc.collect` looks through, which each load calls: a quarter of tests' time."""
    gc.collect()  # what is frozen is never collected
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_reference():
    return make_llama(vocab_size=len(TOKENS), intermediate_size=64)


@pytest.fixture(scope="session")
def tiny_gguf(tiny_reference, tmp_path_factory):
    return write_llama_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_reference)


@pytest.fixture(scope="session")
def tiny_folder(tiny_reference, tiny_gguf, tmp_path_factory):
    from pipezoo_core.tokenizer import tokenizer_from_gguf
    from pipezoo_core.weights import open_gguf

    folder = tmp_path_factory.mktemp("folder")
    tiny_reference.save_pretrained(folder)
    tokenizer_from_gguf(open_gguf(tiny_gguf).metadata).save_pretrained(folder)
    return folder


def make_mistral():
    return randomize(
        MistralForCausalLM(MistralConfig(**{**TINY_LLAMA, "vocab_size": len(TOKENS), "sliding_window": 12}))
    )


def make_mpt():
    config = MptConfig(d_model=32, n_heads=4, n_layers=3, max_seq_len=256, vocab_size=len(TOKENS), use_cache=False)
    return randomize(MptForCausalLM(config))


@pytest.fixture(scope="session", params=["llama", "mistral", "mpt"])
def of_each_plugin(request, tiny_reference, tiny_folder, tmp_path_factory):
    """A tiny transformers model that the plugin serves, and its folder."""
    if request.param == "llama":
        return tiny_reference, tiny_folder
    model = {"mistral": make_mistral, "mpt": make_mpt}[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return model, folder


@pytest.fixture
def load_tiny(tiny_gguf):
    """Loads the tiny model with settings; afterwards every page of it must be free."""
    loaded = []

    def load(model=tiny_gguf, **settings):
        values = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB", **settings}
        loaded.append(registry.load(model, **values))
        return loaded[-1]

    yield load
    for llm in loaded:
        assert_all_free(llm)


def assert_all_free(llm):
    for manager in llm.kv_managers:
        manager.check_integrity()
        assert manager.num_free_pages == manager.total_num_pages
    assert llm.scheduler.num_running == llm.scheduler.num_waiting == 0


@pytest.fixture
def greedy(tiny_reference):
    """Greedy tokens by transformers."""

    def tokens(prompt, num_tokens):
        ids = torch.tensor([prompt])
        output = tiny_reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        return output[0, len(prompt) :].tolist()

    return tokens
