"""The conformance kit: is a plugin right, and where is it wrong?

A test class is one fixture:

    from pipezoo_core.testing import PluginConformance, tiny_configs


    class TestSeedOss(PluginConformance):
        @pytest.fixture
        def configs(self):
            return tiny_configs("seed_oss")

`pipezoo check pipezoo-seed-oss` runs the same checks without it. Importing this package imports neither torch nor
pytest.
"""

from pipezoo_core.testing.catalogue import CHECKS, Check
from pipezoo_core.testing.conformance import PluginConformance, overrides_check
from pipezoo_core.testing.failures import ConformanceError, NotCheckedError
from pipezoo_core.testing.tiny_configs import tiny_configs

__all__ = [
    "CHECKS",
    "Check",
    "ConformanceError",
    "NotCheckedError",
    "PluginConformance",
    "overrides_check",
    "tiny_configs",
]
