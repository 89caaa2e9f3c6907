"""The kit finds the mistakes that authors make, and its message names the cause."""

import re

import pytest
from testing.bugs import BUGS
from testing.planting import folder_of, forget, plant

from pipezoo_core.testing import CHECKS, ConformanceError, NotCheckedError, tiny_configs
from pipezoo_core.testing.bench import Bench

QUICK = {"wrong RoPE base", "dropped weight", "window off by one"}
IN_PROCESSES = {"discovery", "rediscovery"}  # which take seconds, and pass


def first_failure(bug, distribution, folder):
    """Returns the first check that fails, and its message."""
    configs = {bug.config: tiny_configs(bug.model_type)[bug.config]}
    bench = Bench(folder, distribution)
    plugin, subjects = bench.plugin(configs), bench.subjects(configs)
    for check in CHECKS:
        if check.name in IN_PROCESSES:
            continue
        try:
            check.run(plugin, subjects)
        except ConformanceError as error:
            return check.name, str(error)
        except NotCheckedError:
            continue
    return None, ""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_line_that_is_changed_is_in_the_plugin_once(bug):
    assert (folder_of(bug) / bug.file).read_text().count(bug.right) == 1


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, id=bug.name, marks=() if bug.name in QUICK else pytest.mark.slow) for bug in BUGS]
)
def test_planted_bug_is_named(bug, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    distribution = plant(bug, site)
    try:
        check, message = first_failure(bug, distribution, tmp_path / "bench")
    finally:
        forget(distribution)
    assert check == bug.check, message
    assert " … " not in message, "it was shortened"
    assert re.search(bug.cause, message, re.DOTALL), message
