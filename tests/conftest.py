"""A tiny llama with a tokenizer, as a GGUF file, as a folder, and as the transformers model both were made from."""

import pytest
import torch
from gguf_files import TOKENS, write_llama_gguf
from tiny_models import make_llama

from pipezoo import registry


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


@pytest.fixture
def load_tiny(tiny_gguf):
    """Loads the tiny model with settings; afterwards every page of it must be free."""
    loaded = []

    def load(**settings):
        values = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB", **settings}
        loaded.append(registry.load(tiny_gguf, **values))
        return loaded[-1]

    yield load
    for llm in loaded:
        assert_all_free(llm)


def assert_all_free(llm):
    manager = llm.kv_managers[0]
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
