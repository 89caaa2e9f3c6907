"""Shipped plugins by the conformance kit, as their authors would use it."""

import pytest

from pipezoo_core.testing import PluginConformance, tiny_configs

pytestmark = pytest.mark.slow


class TestLlama(PluginConformance):
    """Everything that a plugin can claim, GGUF files among it."""

    @pytest.fixture
    def configs(self):
        made = tiny_configs("llama")
        return {name: made[name] for name in ("plain", "tie_word_embeddings")}


class TestQwen2(PluginConformance):
    """Layers with windows of their own."""

    @pytest.fixture
    def configs(self):
        return tiny_configs("qwen2")
