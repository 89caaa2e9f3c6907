"""Shipped plugins by the conformance kit, as their authors would use it."""

import pytest
from gguf_files import TOKENS, write_llama_gguf

from pipezoo_core.testing import PluginConformance, tiny_configs

pytestmark = pytest.mark.slow


class TestLlama(PluginConformance):
    """Everything that a plugin can claim, GGUF files among it."""

    @pytest.fixture
    def configs(self):
        made = tiny_configs("llama")
        return {name: {**made[name], "vocab_size": len(TOKENS)} for name in ("plain", "tie_word_embeddings")}

    def write_gguf(self, reference, path):
        write_llama_gguf(path, reference)


class TestQwen2(PluginConformance):
    """Layers with windows of their own."""

    @pytest.fixture
    def configs(self):
        return tiny_configs("qwen2")
