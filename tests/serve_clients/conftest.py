"""A server of a tiny random model that calls tools as Qwen's do, and clients of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import torch
from gguf_files import BYTES
from tiny_models import make_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipezoo.serve.run import bound, new_server
from pipezoo.serve.settings import ServeSettings

_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools><|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_model(folder) -> None:
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=_TEMPLATE, eos_token="<|im_end|>")
    fast.save_pretrained(folder)
    model = make_llama(
        vocab_size=len(fast), max_position_embeddings=4096, num_hidden_layers=1, eos_token_id=257, bos_token_id=None
    )
    with torch.no_grad():  # it ends its answers now and then
        model.lm_head.weight[257] *= 3
    model.save_pretrained(folder)


@contextmanager
def running(folder, **settings) -> Iterator[str]:
    """Runs a server in a thread, and yields its address."""
    is_ready, holder = threading.Event(), {}

    def run() -> None:
        async def main() -> None:
            load = {"device": "cpu", "dtype": "float32", "kv_cache_memory": "64MiB"}
            holder["server"] = new_server(str(folder), load, serve_settings, on_ready=lambda _: is_ready.set())
            holder["loop"] = asyncio.get_running_loop()
            await holder["server"].run(listener, handles_signals=False)

        asyncio.run(main())

    serve_settings = ServeSettings(port=0, served_model_names=("tiny",), **{"shutdown_timeout": 2, **settings})
    with bound(serve_settings) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert is_ready.wait(120)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            holder["loop"].call_soon_threadsafe(holder["server"].end)
            thread.join(60)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_model(folder)
    return folder


@pytest.fixture(scope="session")
def address(tiny_folder):
    with running(tiny_folder) as found:
        yield found


@pytest.fixture
def http(address):
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
