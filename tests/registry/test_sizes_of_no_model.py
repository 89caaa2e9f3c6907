"""Numbers in a config that no model has are refused by name, before anything of their size is made."""

import dataclasses
import json
from importlib import import_module

import pytest
from granite import tiny_granite
from qwen import tiny_hybrid

from pipezoo import registry
from pipezoo.discovery.published import FALLBACK
from pipezoo_core.errors import CheckpointMismatchError, UnsupportedModelError
from pipezoo_core.testing.tiny_configs import tiny_configs
from pipezoo_core.weights import open_gguf

WHOLE, FLOATS = (-1, 2**31, 2**63, 10**400), (float("nan"), float("inf"), 1e308)


def architectures():
    modules = {info.module for info in registry.plugins() if info.distribution != FALLBACK}
    found = [each for module in modules for each in import_module(module).pipezoo_architectures()]
    return {model_type: each for each in found for model_type in each.model_types}


def changed(config):
    """Yields makers of a config, each of which has another of its numbers, or of its parts', as one that none has."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            for name, make in changed(value):
                yield name, lambda field=field, make=make: dataclasses.replace(config, **{field.name: make()})
        elif isinstance(value, int | float):
            for wrong in WHOLE if isinstance(value, int) else FLOATS:
                yield (
                    f"{field.name} {wrong!s:.9}",
                    lambda field=field, wrong=wrong: dataclasses.replace(config, **{field.name: wrong}),
                )


@pytest.mark.parametrize(
    "model_type",
    ["granitemoehybrid", "lfm2", "lfm2_moe", "llama", "nemotron_h", "qwen3_moe", "qwen3_5_text", "qwen3_next"],
)
def test_a_number_of_a_config_or_of_its_parts(model_type):
    architecture = architectures()[model_type]
    raw = {**tiny_configs(model_type)["plain"], "model_type": model_type}
    config = architecture.pipeline_model.config_class.from_huggingface(architecture.huggingface_config(raw))
    cases = list(changed(config))
    assert len(cases) > 20
    for name, make in cases:
        try:
            made = make()
        except UnsupportedModelError:
            continue
        pytest.fail(f"{name}: {made}")


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (tiny_granite.make, {"residual_multiplier": 1e308}, "residual_scale is that of no model"),
        (lambda: tiny_hybrid.make("qwen3_next"), {"num_experts": 10**9}, "num_experts: at most"),
        (
            lambda: tiny_hybrid.make("qwen3_next"),
            {"num_hidden_layers": 10**9, "layer_types": None},
            "most of 1000000000 layers",
        ),
        (
            lambda: tiny_hybrid.make("qwen3_5_moe_text"),
            {"intermediate_size": 56.0},
            "intermediate_size is no whole number",
        ),
    ],
)
def test_of_a_folder(make, changes, message, tmp_path):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises((CheckpointMismatchError, UnsupportedModelError), match=message):
        registry.plan(tmp_path, dtype="float32")


def test_layers_of_a_gguf_file(tiny_gguf, tmp_path):
    """Of 2³² - 1 a list would take 32 GiB."""
    data = tiny_gguf.read_bytes()
    key = b"llama.block_count"
    at = data.index(key) + len(key) + 4
    file = tmp_path / "tiny.gguf"
    file.write_bytes(data[:at] + (2**32 - 1).to_bytes(4, "little") + data[at + 4 :])
    assert open_gguf(file).metadata["llama.block_count"] == 2**32 - 1
    with pytest.raises(CheckpointMismatchError, match="most of 4294967295 layers"):
        registry.plan(file, dtype="float32")
