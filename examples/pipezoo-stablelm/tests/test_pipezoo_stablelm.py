"""The conformance kit of pipezoo-core: the plugin against transformers' `StableLmForCausalLM`.

Every check runs on tiny configs with random weights, so that each number matters; `pytest -k weights` runs one of them.
"""

from typing import Any

import pytest
from pipezoo_core.testing import PluginConformance, tiny_configs


class TestStableLm(PluginConformance):
    """What the plugin does is what the reference implementation does."""

    distribution = "pipezoo-stablelm"

    @pytest.fixture
    def configs(self) -> dict[str, dict[str, Any]]:
        """What config.json says, by names: add one for each thing that makes the model another one."""
        return tiny_configs("stablelm")
