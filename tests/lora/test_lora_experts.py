"""Adapters of experts, saved by peft for `target_parameters`, against the models that peft merges them into."""

import json
import shutil
import weakref

import pytest
import torch
from deepseek import tiny_deepseek
from families import PROMPTS, expected_logits, greedy_tokens
from gpt_oss import tiny_gpt_oss
from lora.peft_adapters import merged, save_adapter
from mistral import test_mixtral as mixtral
from qwen import tiny_qwen
from safetensors.torch import load_file, save_file
from tiny_models import load_model, logits_of

from pipezoo import registry
from pipezoo_core.config import LoRAConfig
from pipezoo_core.distributed import DistributedGroup
from pipezoo_core.errors import CorruptCheckpointError, InvalidSettingError, UnsupportedAdapterError
from pipezoo_core.layers.experts import Expert
from pipezoo_core.lora import AdaptedModule, lora_memory, open_adapter
from pipezoo_core.lora.expert_adapters import stacked_name
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import LazyTensor

pytestmark = pytest.mark.matrix

CPU = torch.device("cpu")
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ADAPTERS = {
    "both": {"target_modules": ["q_proj"], "target_parameters": BOTH, "r": 3},
    "down": {"target_modules": [], "target_parameters": BOTH[1:], "r": 2, "seed": 1, "use_rslora": True},
    "pattern": {
        "target_modules": ["o_proj"],
        "target_parameters": BOTH,
        "r": 2,
        "seed": 2,
        "rank_pattern": {r".*\.gate_up_proj": 4},
        "alpha_pattern": {r".*\.down_proj": 9},
    },
}


def make(family):
    if family == "mixtral":
        return mixtral.make(head_dim=32, intermediate_size=64), mixtral.saved
    if family == "deepseek_v3":
        return tiny_deepseek.make(family, q_lora_rank=None, n_routed_experts=6, n_group=3), tiny_deepseek.saved
    if family == "gpt_oss":
        return tiny_gpt_oss.make(intermediate_size=64), tiny_gpt_oss.saved
    return tiny_qwen.make("qwen3_moe", intermediate_size=64, moe_intermediate_size=32), tiny_qwen.saved


@pytest.fixture(scope="module", params=["deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe"])
def trained(request, tmp_path_factory):
    """A model, what `load_model` takes of it, and a folder with adapters of its experts."""
    folder = tmp_path_factory.mktemp(request.param)
    reference, saved = make(request.param)
    for name, config in ADAPTERS.items():
        save_adapter(reference, folder / name, **config)
    return reference, saved(reference, folder / "model"), folder


def assert_equal_merged(made, reference, folder, chunk=None, most=1e-4, **settings):
    """A batch with all adapters and without computes what peft's merged models do."""
    loras = LoRAConfig(lora_paths=[f"{name}={folder / name}" for name in ADAPTERS])
    model = load_model(*made, lora=loras, **settings)
    names = ["both", None, "down", "pattern"]
    for prompt, name, found in zip(PROMPTS, names, logits_of(model, PROMPTS, chunk, names), strict=True):
        expected = expected_logits(reference if name is None else merged(reference, folder / name), prompt)
        assert (found - expected).abs().max() < most * max(1, expected.abs().max())
    return model


@pytest.mark.parametrize("linear", ["torch", "auto"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_logits_equal_merged_models(trained, linear, chunk):
    reference, made, folder = trained
    assert_equal_merged(made, reference, folder, chunk, linear=linear)


def test_greedy_tokens_equal_merged_models(trained, tiny_folder):
    """With the kernels where there are any, in steps with adapters and in steps without."""
    reference, made, folder = trained
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, made[1])
    paths = [f"{name}={folder / name}" for name in ADAPTERS]
    with registry.load(made[1], device="cpu", dtype="float32", kv_cache_memory="8MiB", lora_paths=paths) as llm:
        for names in ([None], ["both", None, "down"], [None, None]):
            requests = [
                TextGenerationRequest(prompt=prompt, lora=name) for prompt, name in zip(PROMPTS, names, strict=False)
            ]
            outputs = llm.generate(requests, temperature=0.0, ignore_eos=True, max_new_tokens=8)
            for request, output in zip(requests, outputs, strict=True):
                expected = reference if request.lora is None else merged(reference, folder / request.lora)
                assert output.tokens == greedy_tokens(expected, request.prompt, 8)


def test_the_adapters_matter(trained):
    reference, _, folder = trained
    plain = expected_logits(reference, PROMPTS[1])
    for name in ADAPTERS:
        assert (expected_logits(merged(reference, folder / name), PROMPTS[1]) - plain).abs().max() > 0.1


def test_a_slot_that_another_adapter_gets_has_nothing_of_the_first(trained):
    reference, made, folder = trained
    paths = [f"{name}={folder / name}" for name in ADAPTERS]
    model = load_model(*made, lora=LoRAConfig(lora_paths=paths, max_num_loras=1))
    for name in ("both", "down", "both"):
        (found,) = logits_of(model, PROMPTS[:1], loras=[name])
        assert (found - expected_logits(merged(reference, folder / name), PROMPTS[0])).abs().max() < 1e-3


def test_a_model_without_room_for_them_says_so(trained):
    _, made, folder = trained
    model = load_model(*made, lora=LoRAConfig(max_num_loras=1))
    assert not any(".experts." in name for name in model._adapted.targets)
    with pytest.raises(UnsupportedAdapterError, match=r"changes experts, for which .* lora_experts=True"):
        model.lora_manager.load_adapter(str(folder / "both"))


def test_a_model_that_shall_have_none_does_not_ask_for_what_it_has(trained):
    _, made, folder = trained
    paths = [f"both={folder / 'both'}"]
    with pytest.raises(UnsupportedAdapterError, match=r"lora_experts=True\.$"):
        load_model(*made, lora=LoRAConfig(lora_paths=paths, max_num_loras=1, max_lora_rank=4, lora_experts=False))


def test_room_may_be_asked_for(trained):
    _, made, folder = trained
    model = load_model(*made, lora=LoRAConfig(max_num_loras=1, lora_experts=True))
    model.lora_manager.load_adapter(str(folder / "both"))
    kept = load_model(*made, lora=LoRAConfig(lora_paths=[], lora_experts=False))
    assert len(model._adapted.targets) > len(kept._adapted.targets)


def test_several_devices_refuse_them(trained):
    _, made, folder = trained
    config = LoRAConfig(lora_paths=[f"both={folder / 'both'}"], max_num_loras=1, max_lora_rank=4, lora_experts=True)
    settings = {"device": CPU, "dtype": torch.float32, "group": DistributedGroup.__new__(DistributedGroup)}
    with pytest.raises(InvalidSettingError, match="experts are not computed on several devices"):
        AdaptedModule(load_model(*made).module, config, **settings)


def test_room_is_planned(trained):
    _, made, _ = trained
    module = load_model(*made, linear="torch").module
    without, with_ = (
        lora_memory(LoRAConfig(max_num_loras=2, max_lora_rank=4, lora_experts=experts), module, CPU)
        for experts in (False, True)
    )
    experts = [part for part in module.modules() if isinstance(part, Expert)]
    shapes = [(2, layer.gate_up_proj.merged.weight.shape) for layer in experts]
    shapes += [(1, layer.down_proj.weight.shape) for layer in experts]
    assert with_ - without == sum(2 * 4 * 4 * parts * sum(shape) for parts, shape in shapes)


def test_its_rank_is_that_of_an_expert(trained):
    _, _, folder = trained
    assert [open_adapter(str(folder / name)).rank for name in ADAPTERS] == [3, 2, 4]


def test_all_experts_are_read_once_and_those_of_one_layer_are_kept(trained, monkeypatch):
    _, _, folder = trained
    read, load = [], LazyTensor.load

    def recorded(tensor):
        found = load(tensor)
        if tensor.shape[1] == 6 * 3:  # experts, their rank
            read.append(weakref.ref(found))
        return found

    monkeypatch.setattr(LazyTensor, "load", recorded)
    adapter = open_adapter(str(folder / "both"))
    for weights in adapter.layers.values():
        weights.b.load()
        assert sum(whole() is not None for whole in read) <= 1
    num_experts = sum(".experts." in name for name in adapter.layers)
    assert len(read) == num_experts / 6 > 2
    del adapter, weights
    assert all(whole() is None for whole in read)


def changed(source, folder, tensors=lambda tensors: tensors, **entries):
    """A copy of an adapter with other tensors or entries of its config."""
    folder.mkdir()
    save_file(tensors(load_file(source / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **entries}))
    return str(folder)


@pytest.mark.parametrize("targets", [None, [], BOTH[1:], ["mlp.experts.other"]], ids=str)
def test_parameters_that_the_config_does_not_name_are_refused(trained, targets, tmp_path):
    _, _, folder = trained
    with pytest.raises(UnsupportedAdapterError, match="does not say which parameters of the experts"):
        open_adapter(changed(folder / "both", tmp_path / "changed", target_parameters=targets))


@pytest.mark.parametrize(("gated", "first"), [(True, "gate_up_proj"), (False, "up_proj")])
def test_parameters_that_the_model_lacks_are_passed_over(gated, first):
    of_one, of_two = (["m.experts"], ["m.experts.base_layer", "m.experts"])
    firsts, last = ["gate_up_proj", "up_proj"], "down_proj"
    for wrapped, targets, meant in ((of_one, firsts, [first]), (of_two, [*firsts, last], [first, last])):
        found = [stacked_name(layer, dict.fromkeys(wrapped), targets, gated=gated) for layer in wrapped]
        assert found == [f"m.experts.{name}" for name in meant]


@pytest.mark.parametrize("rank", [5, 7])
def test_another_rank_than_the_configs_is_damage(trained, rank, tmp_path):
    _, _, folder = trained
    with pytest.raises(CorruptCheckpointError, match="of each expert"):
        open_adapter(changed(folder / "down", tmp_path / "changed", r=rank))


@pytest.mark.parametrize(("rank", "num_experts"), [(1, 12), (4, 3)])
def test_another_number_of_experts_is_refused(trained, rank, num_experts, tmp_path):
    _, made, folder = trained
    path = changed(folder / "down", tmp_path / "changed", r=rank)  # instead of 6 experts of rank 2
    model = load_model(*made, lora=LoRAConfig(max_num_loras=1, lora_experts=True))
    why = "is no linear layer that" if num_experts > 6 else "is the last of 3 experts, and the model has more"
    with pytest.raises(UnsupportedAdapterError, match=rf"experts\.{num_experts - 1}\.down_proj {why}"):
        model.lora_manager.load_adapter(path)


def one_by_one(tensors):
    """An adapter of all experts as one of each expert's layers, as it is trained on Mixtral's older classes."""
    found = {}
    for name, b in tensors.items():
        if not name.endswith("lora_B.weight"):
            continue
        a, prefix = tensors[name.replace("lora_B", "lora_A")], name.removesuffix(".lora_B.weight")
        if not prefix.removesuffix(".base_layer").endswith(".experts"):
            found |= {f"{prefix}.lora_A.weight": a, name: b}
            continue
        parts = {"w1": slice(0, 64), "w3": slice(64, 128)} if "base_layer" in prefix else {"w2": slice(0, 32)}
        mixture = prefix.removesuffix(".base_layer").replace(".mlp.", ".block_sparse_moe.")
        for number, rows_of_a in enumerate(a.chunk(6)):
            for part, rows in parts.items():
                found[f"{mixture}.{number}.{part}.lora_A.weight"] = rows_of_a.clone()
                found[f"{mixture}.{number}.{part}.lora_B.weight"] = b[rows, number::6].contiguous()
    return found


def test_an_adapter_of_each_expert_by_itself(tmp_path):
    reference, saved = make("mixtral")
    save_adapter(reference, tmp_path / "all", **ADAPTERS["both"])
    path = changed(tmp_path / "all", tmp_path / "each", one_by_one, target_parameters=None)
    model = load_model(*saved(reference, tmp_path / "model"), lora=LoRAConfig(lora_paths=[f"each={path}"]))
    for prompt, found in zip(PROMPTS, logits_of(model, PROMPTS, loras=["each"] * len(PROMPTS)), strict=True):
        expected = expected_logits(merged(reference, tmp_path / "all"), prompt)
        assert (found - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
