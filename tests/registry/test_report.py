"""What the log says of a load, against the pipeline that was loaded."""

import importlib.metadata
import logging

import pytest
import torch

from pipezoo import registry
from pipezoo_core.decoder.recorded_module import RecordedModule
from pipezoo_core.layers import Linear
from pipezoo_core.native import NativeKernels

SETTINGS = {"device": "cpu", "dtype": "float32", "page_size": 32, "kv_cache_memory": "4MiB"}
NATIVE = NativeKernels(torch.device("cpu"), torch.float32).obstacle is None


def loaded(caplog, source, **settings):
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipezoo"):
        llm = registry.load(source, **{**SETTINGS, **settings})
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("loaded ")]
    return llm, line


@pytest.mark.parametrize("attention", ["auto", "paged", "reference"])
@pytest.mark.parametrize("linear", ["auto", "torch"])
def test_one_line_tells_how_a_model_runs(caplog, tiny_folder, attention, linear):
    llm, line = loaded(caplog, tiny_folder, attention=attention, linear=linear)
    version = importlib.metadata.version("pipezoo-llama")
    assert line.startswith(f"loaded {tiny_folder} by pipezoo-llama {version}: float32 on cpu, ")
    assert f"KV cache {llm.kv_managers[0].total_num_pages} pages of 32 tokens (4 MiB)" in line
    used = {type(part._product).__name__ for part in llm.model.module.modules() if isinstance(part, Linear)}
    name = {"NoneType": "torch", "NativeProduct": "native", "OneDNNProduct": "onednn"}[used.pop()]
    assert not used
    assert f", linear {name}" in line
    told = "replayed steps: yes" if isinstance(llm.model._forward, RecordedModule) else "replayed steps: no: "
    assert told in line
    if linear == "torch":
        assert name == "torch"
    if attention != "auto":
        assert f", attention {attention}, " in line


def test_several_replicas_are_told(caplog, tiny_folder):
    _, line = loaded(
        caplog, tiny_folder, device="auto", devices=["cpu", "cpu"], data_parallel_degree=2, dtype="bfloat16"
    )
    assert "bfloat16 on 2 × cpu," in line
    assert line.endswith(" (4 MiB) of each of 2 replicas")


def test_nothing_is_said_unless_asked_for(caplog, capfd, tiny_folder):
    registry.load(tiny_folder, **SETTINGS)
    assert not [record for record in caplog.records if record.name == "pipezoo"]
    assert capfd.readouterr() == ("", "")
