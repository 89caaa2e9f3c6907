"""What can be said to `registry.load`: other spellings, names of other programs, and what type checkers know."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from pipezoo.loading.options import LoadOptions
from pipezoo.loading.settings import LoadSettings
from pipezoo_core.config import AttentionName, LinearName
from pipezoo_core.errors import InvalidSettingError

ROOT = Path(__file__).parents[2]
MEMBERS = ["core", "registry"]


@pytest.mark.parametrize(
    ("spelling", "dtype"),
    [
        *(("auto", "auto"), ("int4", "int4"), ("float32", "float32"), (" bfloat16 ", "bfloat16")),
        *((torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.half, "float16"), (torch.int8, "int8")),
        *(("torch.bfloat16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16")),
        *(("fp32", "float32"), ("float", "float32"), ("BF16", "bfloat16")),
    ],
)
def test_a_dtype_may_be_torchs_or_have_its_short_name(spelling, dtype):
    assert LoadSettings(dtype=spelling).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, "fp8", "q4_k_m", 16, None, "", int, object()])
def test_other_dtypes_are_refused_with_all_there_are(dtype):
    with pytest.raises(InvalidSettingError, match=r"dtype.*allowed: auto, float32, bfloat16, float16, int8, int4"):
        LoadSettings(dtype=dtype)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        *(("max_model_len", "max_length"), ("n_ctx", "max_length"), ("torch_dtype", "dtype"), ("device_map", "device")),
        *(("device_map", "devices"), ("tensor_parallel_size", "devices"), ("max_num_seqs", "max_batch_size")),
        *(("gpu_memory_utilization", "kv_cache_memory"), ("block_size", "page_size"), ("n_gpu_layers", "device")),
    ],
)
def test_a_name_of_another_program_leads_to_ours(name, ours):
    with pytest.raises(InvalidSettingError, match=f"unknown setting '{name}'") as caught:
        LoadSettings(**{name: 1})
    assert caught.value.cure.startswith("Write ")
    assert ours in caught.value.cure


def test_names_of_other_programs_are_not_ours_and_lead_to_settings():
    for name, instead in LoadSettings.elsewhere.items():
        assert name not in LoadSettings.model_fields
        assert any(ours in instead for ours in LoadSettings.model_fields), name


def test_adapters_are_possible_where_any_of_their_settings_is_given():
    assert LoadSettings().lora is None
    assert LoadSettings(max_num_loras=None).lora is None
    assert LoadSettings(lora_paths=[]).lora.lora_paths == ()
    assert LoadSettings(max_lora_rank=3).lora.max_lora_rank == 3
    assert LoadSettings(lora_paths=Path("a")).lora.lora_paths == LoadSettings(lora_paths=("a",)).lora.lora_paths


def test_the_settings_of_a_plan_make_the_same_plan(tiny_folder):
    """They travel to other ranks as JSON, which may not leave anything open."""
    from pipezoo import registry

    asked = {"kv_cache_memory": "1MiB", "page_size": 8, "linear": "torch", "max_num_loras": 2, "lora_paths": []}
    decided = registry.plan(tiny_folder, **asked)
    told = LoadSettings(**json.loads(decided.settings.model_dump_json(exclude_unset=True)))
    assert told == decided.settings
    assert told.dtype != "auto"
    assert told.max_length == decided.memory.max_length
    again = registry.plan(tiny_folder, **told.given(LoadSettings))
    shown = {"exclude": {"huggingface_config"}}
    assert again.pipeline_config.model_dump(**shown) == decided.pipeline_config.model_dump(**shown)


def test_each_replica_has_its_devices():
    settings = LoadSettings(devices=["cuda:0", "cuda:1", "cuda:2", "cuda:3"], data_parallel_degree=2, page_size=8)
    first, second = settings.of_replica(0), settings.of_replica(1)
    assert (first.devices, second.devices) == (("cuda:0", "cuda:1"), ("cuda:2", "cuda:3"))
    assert first.data_parallel_degree == second.data_parallel_degree == 1
    assert first.page_size == 8
    assert settings.has_several_ranks
    assert not LoadSettings(devices=["cuda:0", "cuda:1"], data_parallel_degree=2).has_several_ranks


def test_type_checkers_know_every_setting():
    kinds = get_type_hints(LoadOptions, localns={"torch": torch})
    assert kinds.keys() == LoadSettings.model_fields.keys()
    assert set(get_args(kinds["attention"])) == set(AttentionName)
    assert set(get_args(kinds["linear"])) == set(LinearName)


GOOD = """
import pipezoo
import torch
from pipezoo import SamplingParams, TextGenerationRequest, registry

version: str = pipezoo.__version__
error: type[Exception] = pipezoo.PipezooError
request = TextGenerationRequest(prompt="Hello", sampling_params=SamplingParams(seed=1))
same = pipezoo.load("org/model", max_length=8)
llm = registry.load("org/model", device="cpu", dtype=torch.bfloat16, kv_cache_memory="2GiB", lora_paths=["a"])
plan = registry.plan("org/model", devices=["cuda:0", torch.device("cuda", 1)], attention="native")
texts: list[str] = [output.text for output in llm.generate("Hello")]
size: int = plan.memory.weights
"""


MYPY = """
[mypy]
follow_imports = silent
[mypy-huggingface_hub.*,numpy.*,torch.*,transformers.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_misspelt_setting_does_not_type_check(tmp_path):
    scripts = {
        "good.py": GOOD,
        "name.py": GOOD.replace("kv_cache_memory", "kv_cache_memroy"),
        "value.py": GOOD.replace('"native"', '"flash"'),
        "kind.py": GOOD.replace('"2GiB"', "2.5"),
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "mypy.ini").write_text(MYPY)
    environment = {
        **os.environ,
        "MYPYPATH": os.pathsep.join(str(ROOT / member / "src") for member in MEMBERS),
        "MYPY_CACHE_DIR": "cache",
    }
    command = [sys.executable, "-m", "mypy", "--strict", *scripts]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540)
    wrong = {line.partition(":")[0] for line in done.stdout.splitlines() if ": error:" in line}
    assert wrong == {"name.py", "value.py", "kind.py"}, done.stdout
    assert 'Unexpected keyword argument "kv_cache_memroy" for "load"' in done.stdout
