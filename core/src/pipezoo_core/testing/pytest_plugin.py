"""The fixtures of `PluginConformance`. pytest always loads this: it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pipezoo_core.testing.bench import Bench

__all__ = ["conformance", "conformance_bench"]


@pytest.fixture(scope="class")
def conformance_bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What the checks of a class share."""
    from pipezoo_core.testing.bench import Bench

    of_class: Any = request.cls
    write_gguf = None if of_class.write_gguf is None else of_class().write_gguf
    return Bench(tmp_path_factory.mktemp("conformance"), of_class.distribution, of_class.reference, write_gguf)


@pytest.fixture
def conformance(conformance_bench: Bench, configs: Any) -> Callable[[str], None]:
    """Runs a check by its name, on the configs of the class; one that does not apply is skipped, with its reason."""
    from pipezoo_core.testing.catalogue import CHECKS
    from pipezoo_core.testing.failures import NotCheckedError

    by_name = {check.name: check for check in CHECKS}

    def run(name: str) -> None:
        __tracebackhide__ = True
        subjects = conformance_bench.subjects(configs) if by_name[name].is_of_models else ()
        try:
            by_name[name].run(conformance_bench.plugin(configs), subjects)
        except NotCheckedError as error:
            pytest.skip(f"{name}: {error}")

    return run
