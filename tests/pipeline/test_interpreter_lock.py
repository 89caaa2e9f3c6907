"""A step hands over the interpreter's lock once, and gets it back soon."""

import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_models import load_model, make_llama
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.config import KVCacheConfig
from pipezoo_core.context import TextContext
from pipezoo_core.native import NativeKernels
from pipezoo_core.pipeline.lock_patience import short_patience
from pipezoo_core.pipeline.model_runner import ModelRunner
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import Scheduler
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors


class Operations(TorchDispatchMode):
    """Notes torch's operations, each of which lets go of the lock; but for those that take over numpy's memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is not torch.ops.aten.lift_fresh.default:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)
@pytest.mark.parametrize("num_requests", [1, 3])
def test_a_decode_step_is_one_long_call(tmp_path, monkeypatch, num_requests):
    make_llama(head_dim=32).save_pretrained(tmp_path)
    cache = KVCacheConfig(page_size=32, kv_cache_memory=2**22)
    model = load_model(LlamaPipelineModel, tmp_path, make_llama(head_dim=32).config, adapt_safetensors, kv_cache=cache)
    scheduler = Scheduler([model.kv_manager], max_batch_size=8, max_batch_tokens=64)
    tokenizer = SimpleNamespace(decode=lambda tokens, *, skip_special_tokens: "x" * len(tokens), special_texts={})
    runner = ModelRunner(model, tokenizer)
    params = SamplingParams(temperature=0.0, max_new_tokens=20)
    for number in range(num_requests):
        context = TextContext(
            request_id=str(number), prompt_tokens=[1, 2, number], max_length=100, sampling_params=params
        )
        scheduler.add(context)
    replays = []
    replay = model._kernels.replay
    monkeypatch.setattr(model._kernels, "replay", lambda *program: (replays.append(program), replay(*program)))
    for _ in range(2):
        runner.step(scheduler.schedule().batch)
    replays.clear()
    with Operations() as operations:
        outputs = runner.step(scheduler.schedule().batch)
    assert [len(output.tokens) for output in outputs.values()] == [1] * num_requests
    assert len(replays) == 1
    assert len(operations.names) <= 6, operations.names  # `torch.empty`, and what `Tensor.numpy` asks for


@pytest.fixture
def interval():
    """The setting of the process, restored."""
    before = sys.getswitchinterval()
    yield before
    sys.setswitchinterval(before)


def test_patience_is_short_while_a_step_runs(interval):
    with short_patience():
        assert sys.getswitchinterval() == pytest.approx(5e-4)
        with short_patience():
            assert sys.getswitchinterval() == pytest.approx(5e-4)
        assert sys.getswitchinterval() == pytest.approx(5e-4)
    assert sys.getswitchinterval() == pytest.approx(interval)


def test_patience_is_restored_after_an_error(interval):
    with pytest.raises(KeyError), short_patience():
        raise KeyError
    assert sys.getswitchinterval() == pytest.approx(interval)


@pytest.mark.parametrize("own", [1e-4, 0.2])
def test_what_others_set_stays(interval, own):
    with short_patience():
        sys.setswitchinterval(own)
    assert sys.getswitchinterval() == pytest.approx(own, rel=0.05)


def test_a_shorter_one_is_kept(interval):
    sys.setswitchinterval(1e-4)
    with short_patience():
        assert sys.getswitchinterval() == pytest.approx(1e-4, rel=0.05)
    assert sys.getswitchinterval() == pytest.approx(1e-4, rel=0.05)
