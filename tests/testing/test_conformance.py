"""Shipped plugins by the conformance kit."""

import pytest

from pipezoo_core.testing import PluginConformance, tiny_configs


class TestQwen2(PluginConformance):
    @pytest.fixture
    def configs(self):
        return tiny_configs("qwen2")
