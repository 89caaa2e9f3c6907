"""`pipezoo check` on plugins that fail before there is anything to compare."""

import json
from contextlib import contextmanager

import pytest
from testing.planting import Bug, forget, plant
from typer.testing import CliRunner

from pipezoo.cli.main import app


@contextmanager
def planted(site, file, right, wrong, package="pipezoo_llama", model_type="llama"):
    distribution = plant(Bug("", package, file, right, wrong, model_type, "plain", "", ""), site)
    try:
        yield distribution
    finally:
        forget(distribution)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def check(*arguments):
    result = CliRunner().invoke(app, ["check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def outcomes(output):
    return [tuple(json.loads(line).values()) for line in output.splitlines()]


@pytest.mark.parametrize("wrong", ['{}["rope"]', pytest.param("[][0]", marks=pytest.mark.slow)])
def test_a_lookup_that_fails_in_the_plugin_is_a_failure(site, wrong):
    with planted(site, "config.py", "rope_parameters=rope,", f"rope_parameters={wrong},") as distribution:
        code, output = check(distribution, "--only", "spec", "--json")
    assert code == 1
    assert outcomes(output)[0][:3] == ("llama", "configs", "failed")


@pytest.mark.slow
def test_a_value_that_a_variant_has_and_the_plugin_chokes_on_is_a_failure(site):
    chokes = "rope_parameters={True: [0].remove}.get(config.tie_word_embeddings, lambda _: rope)(1),"
    with planted(site, "config.py", "rope_parameters=rope,", chokes) as distribution:
        code, output = check(distribution, "--only", "spec", "--json")
    assert code == 1
    assert ("llama", "configs", "failed") in [each[:3] for each in outcomes(output)]
    assert any("tie_word_embeddings: ValueError" in each[3] for each in outcomes(output))


@pytest.mark.slow
def test_a_type_that_transformers_does_not_know_is_not_checked(site):
    with planted(site, "plugin.py", "API_VERSION = 2", "API_VERSION = 2", model_type="llama") as distribution:
        source = site / distribution / "plugin.py"
        source.write_text(source.read_text().replace('"llama"', '"nobodys"'))
        entries = site / f"{distribution}-1.0.dist-info" / "entry_points.txt"
        entries.write_text(f"[pipezoo.plugins]\nnobodys = {distribution}.plugin\n")
        code, output = check(distribution, "--only", "spec", "--json")
    assert outcomes(output)[0][:3] == ("nobodys", "configs", "skipped")
    assert code == 1, "nothing was checked"


def test_a_hook_that_raises_is_named(site):
    wrong = "def pipezoo_architectures() -> list[SupportedArchitecture]:\n    raise RuntimeError('no such thing')\n"
    with planted(
        site, "plugin.py", "def pipezoo_architectures() -> list[SupportedArchitecture]:", wrong
    ) as distribution:
        code, output = check(distribution, "--only", "spec")
    assert code == 1
    assert "does not answer (found: RuntimeError: no such thing" in output.replace("\n", " ")


def test_weights_that_do_not_fit_fail_one_check(site):
    wrong = "bias=not config.attention_bias)\n        self.attention ="
    right = "bias=config.attention_bias)\n        self.attention ="
    names = ("weights", "log_probabilities", "echo", "lora", "two_ranks", "memory_plan")
    with planted(site, "model.py", right, wrong) as distribution:
        code, output = check(distribution, "--json", *(part for name in names for part in ("--only", name)))
    assert code == 1
    found = {name: (answer, message) for _, name, answer, message in outcomes(output)}
    assert found.pop("weights")[0] == "failed"
    assert found == dict.fromkeys(found, ("skipped", "the weights do not fit: see the check weights"))
    assert len(found) == len(names) - 1


@pytest.mark.parametrize("module", ["raise OSError('no such thing')", "import nobodys", "def broken("])
def test_a_reference_whose_module_fails_is_named(site, module):
    (site / "a_reference_that_fails.py").write_text(module)
    code, output = check("pipezoo-llama", "--reference", "a_reference_that_fails:Model")
    assert code == 1
    assert "there is no such reference implementation" in output


def test_a_reference_beside_no_package_is_named():
    code, output = check("pipezoo-llama", "--reference", ".reference:Model")
    assert code == 1
    assert "there is no such reference implementation" in output


@pytest.mark.slow
def test_a_type_that_a_plugin_for_any_takes():
    code, output = check("pipezoo-transformers", "--type", "cohere", "--only", "log_probabilities", "--json")
    assert outcomes(output)[-1][:3] == ("cohere", "log_probabilities", "passed")
    assert code == 0


def test_a_type_that_a_plugin_does_not_claim():
    code, output = check("pipezoo-llama", "--type", "cohere", "--only", "spec", "--json")
    assert code == 1
    assert "does not serve model_type 'cohere'" in outcomes(output)[0][3]
