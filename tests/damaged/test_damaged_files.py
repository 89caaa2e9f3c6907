"""Whatever is damaged in a model's files: a typed error or an answer, in seconds, and no end of the process."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from families import save
from granite import tiny_granite
from lfm2 import tiny_lfm2
from quantized_files import affine, gptq_config, gptq_parts, packed_config, packed_parts, write_quantized
from qwen import tiny_hybrid
from safetensors.torch import save_file

NAMES = (
    "model/config.json", "model/generation_config.json", "model/tokenizer.json", "model/tokenizer_config.json",
    "model/model.safetensors.index.json", "model/model-1.safetensors", "tiny.gguf", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)  # fmt: skip
QUANTIZED = {
    "gptq": (gptq_config(4, 32, desc_act=True), gptq_parts, {"act_order": True}),
    "packed": (packed_config(4, 32), packed_parts, {"dtype": torch.bfloat16}),
}
STATES = {
    "granite": tiny_granite.make,
    "lfm2": tiny_lfm2.make,
    "lfm2_moe": tiny_lfm2.make_moe,
    **{family: partial(tiny_hybrid.make, family) for family in tiny_hybrid.CLASSES},
}
OTHERS = {kind: (f"{kind}/config.json", f"{kind}/model.safetensors") for kind in (*QUANTIZED, *STATES)}
MAX_SECONDS, MAX_GROWN = 5, 1 << 30


@pytest.fixture(scope="module")
def base(tiny_folder, tiny_gguf, tmp_path_factory):
    """A model in a shard with its index, the same as a GGUF file, and an adapter."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(tiny_folder, folder / "model")
    shutil.copy(tiny_gguf, folder / "tiny.gguf")
    weights = folder / "model" / "model.safetensors"
    weights.rename(weights.with_name("model-1.safetensors"))
    header = weights.with_name("model-1.safetensors").read_bytes()
    names = [name for name in json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")]) if name[0] != "_"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "adapter").mkdir()
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{layer}A.weight": torch.ones(2, 32), f"{layer}B.weight": torch.ones(32, 2)}
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {}, "bias": "none"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    for kind, (config, parts_of, settings) in QUANTIZED.items():
        shutil.copytree(tiny_folder, folder / kind)
        write_quantized(folder / kind, config, parts_of, lambda _, values, how=settings: affine(values, **how))
    for kind, make in STATES.items():
        save(make(), folder / kind, tiny_folder)
    return folder


def faults(base, work, cases):
    """Runs the cases in one child after the other, each until it ends; returns what went wrong, by case."""
    wrong, left = {}, list(cases)
    while left:
        text = "".join(json.dumps(case) + "\n" for case in left)
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(base), str(work)]
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=False)
            output, end = done.stdout, f"exit {done.returncode}: {done.stderr[-300:]}"
        except subprocess.TimeoutExpired as error:
            output, end = (error.stdout or b"").decode(), "no end after minutes"
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        results = [line for line in lines if "outcome" in line]
        for case, result in zip(left, results, strict=False):
            is_good = result["outcome"] in ("loaded", "typed") and result["seconds"] < MAX_SECONDS
            if not is_good or result["grown"] > MAX_GROWN:
                wrong[tuple(case)] = result
        if len(results) == len(left):
            return wrong
        assert any("begins" in line for line in lines), end
        wrong[tuple(left[len(results)])] = end
        left = left[len(results) + 1 :]
    return wrong


@pytest.mark.slow
@pytest.mark.alone
def test_a_sample(base, tmp_path):
    cases = [[name, number] for name in NAMES for number in range(2)]
    cases += [[name, 0] for names in OTHERS.values() for name in names]
    assert faults(base, tmp_path / "work", cases) == {}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("name", NAMES)
def test_two_thousand(base, tmp_path, name):
    """The number of a case is the seed of its damage."""
    assert faults(base, tmp_path / "work", [[name, number] for number in range(2, 230)]) == {}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_forms(kind, base, tmp_path):
    """Quantized numbers, and layers that keep a state."""
    assert faults(base, tmp_path / "work", [[name, number] for name in OTHERS[kind] for number in range(1, 11)]) == {}
