"""Which devices a model runs on: all ways to name them, and what names none."""

import pytest
import torch

from pipezoo import registry
from pipezoo.loading.devices import place_model
from pipezoo.loading.settings import LoadSettings
from pipezoo_core.errors import InvalidSettingError

SETTINGS = {"dtype": "float32", "kv_cache_memory": "1MiB"}


@pytest.mark.parametrize(
    "devices", [["cpu", "cpu"], ["cpu", " cpu "], ["cpu:0", "cpu:1"], (torch.device("cpu"), "cpu")]
)
def test_names_of_several(devices, tiny_folder):
    assert LoadSettings(devices=devices).device_names == ("cpu", "cpu")
    plan = registry.plan(tiny_folder, devices=devices, **SETTINGS)
    assert plan.pipeline_config.tensor_parallel_degree == 2
    plan = registry.plan(tiny_folder, devices=devices, data_parallel_degree=2, **SETTINGS)
    assert plan.devices == (torch.device("cpu"),) * 2


@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:0", "CUDA:0", torch.device("cuda"), torch.device("cuda", 0)])
def test_the_first_gpu_has_several_names(device):
    assert LoadSettings(device=device).device_names == LoadSettings(devices=[device]).device_names == ("cuda:0",)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu")])
def test_names_of_one(device, tiny_folder):
    assert registry.plan(tiny_folder, device=device, **SETTINGS).pipeline_config.tensor_parallel_degree == 1


@pytest.mark.parametrize(
    ("devices", "degree", "message"),
    [
        (["foo", "foo"], 1, "no such device"),
        (["foo", "foo"], 2, "no such device"),
        (["cuda:77", "cuda:78"], 1, "no such device"),
        (["cuda:77", "cuda:78"], 2, "no such device"),
        (["cuda:x"], 1, "no such device"),
        ([None], 1, "no such device"),
        ([""], 1, "no such device"),
        (["auto", "auto"], 1, "`auto` cannot be one of several"),
        (["meta"], 1, "no such device .found: .meta.; allowed: auto, cpu, or a GPU"),
        (["meta", "meta"], 1, "no such device"),
        (["meta", "meta"], 2, "no such device"),
        (["mps"], 1, "no such device"),
        (["cpu", "cuda:0"], 1, "different kinds"),
        ([], 1, "Give either `device` or `devices`"),
        ("cpu,cpu", 1, "Give either `device` or `devices`"),
        (["cpu", "cpu"], 4, "4 replicas on 2 devices"),
        (["cpu"] * 3, 2, "2 replicas on 3 devices"),
        (["cpu"] * 5000, 1, "setting 'devices' .*allowed: 1 to 1,024 names"),
    ],
)
def test_what_names_none(devices, degree, message, tiny_folder):
    for ask in (registry.plan, registry.load):
        with pytest.raises(InvalidSettingError, match=message):
            ask(tiny_folder, devices=devices, data_parallel_degree=degree, **SETTINGS)


def test_no_device_at_all(tiny_folder):
    with pytest.raises(InvalidSettingError, match="no such device"):
        registry.load(tiny_folder, device=None, **SETTINGS)


def test_gpus(monkeypatch):
    """Of a host with four, without one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    def gpus(*indices):
        return tuple(torch.device("cuda", index) for index in indices)

    assert place_model(["cuda:1"], 3) == gpus(1, 2, 3)
    assert place_model(["cuda:0", "cuda:3"], 1) == gpus(0, 3)
    assert place_model(["cuda:2", "cuda:2"], 2) == gpus(2, 2)
    assert place_model(["cuda:0", "cuda:1", "cuda:2", "cuda:3"], 2) == gpus(0, 1, 2, 3)
    with pytest.raises(InvalidSettingError, match="two parts of a model"):
        place_model(["cuda:0", "cuda:1", "cuda:1", "cuda:0"], 2)
    with pytest.raises(InvalidSettingError, match="fewer GPUs than replicas"):
        place_model(["cuda:1"], 4)
    for same in (["cuda:1", "cuda:1"], ["cuda", "cuda:0"]):
        with pytest.raises(InvalidSettingError, match="two parts of a model"):
            place_model(same, 1)


@pytest.mark.parametrize("names", [["cuda:0", "cuda:1"] * 2, ["cuda:0", "cuda:4", "cuda:5", "cuda:1"], ["cuda:0"] * 4])
def test_gpus_of_launched_processes(names, monkeypatch):
    """Each knows its own: another host has others, and a process may see no more than one, by whatever name."""
    launched = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert place_model(names, 1) == tuple(map(torch.device, names))
    for rank, name in enumerate(names):
        if name != "cuda:0":
            monkeypatch.setenv("RANK", str(rank))
            with pytest.raises(InvalidSettingError, match=f"no such device .found: {name} "):
                place_model(names, 1)
