"""How the fallback finds out what a model computes: masks, norms, linear layers, calls that it must not answer."""

import pytest
import torch
from fallback.tiny_configs import tiny_config
from torch import nn
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, chunked_overlay
from transformers.masking_utils import sliding_window_causal_mask_function as window_of
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import RMSNorm
from pipezoo_transformers.config import TransformersConfig, read_huggingface_config
from pipezoo_transformers.interface import ASKING, HANDLER, register
from pipezoo_transformers.masks import Sight, sight_of
from pipezoo_transformers.norms import norm_like
from pipezoo_transformers.refusals import why_not
from pipezoo_transformers.watched_linear import LinearWatch


def chunks_of(size):
    overlay = chunked_overlay(size, torch.zeros(1, dtype=torch.int64))
    return lambda *at: causal_mask_function(*at) & overlay(*at)


@pytest.mark.parametrize(
    ("function", "size", "expected"),
    [
        (causal_mask_function, None, Sight()),
        (causal_mask_function, 12, Sight()),
        (window_of(12), 12, Sight(sliding_window=12)),
        (window_of(1), 1, Sight(sliding_window=1)),
        (chunks_of(12), 12, Sight(chunk=12)),
    ],
)
def test_masks(function, size, expected):
    assert sight_of(function, size, 256) == expected


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (bidirectional_mask_function, None),
        (window_of(12), None),
        (window_of(12), 13),
        (chunks_of(12), 13),
        (lambda batch, head, query, key: (key <= query) & (key % 2 == 0), None),
    ],
)
def test_other_masks_are_refused(function, size):
    with pytest.raises(UnsupportedModelError, match="sees other tokens"):
        sight_of(function, size, 256)


@pytest.mark.parametrize(("norm_class", "offset"), [(LlamaRMSNorm, 0.0), (GemmaRMSNorm, 1.0)])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_norms(norm_class, offset, eps):
    with torch.device("meta"):
        found = norm_like(norm_class(32, eps=eps))
    assert isinstance(found, RMSNorm)
    assert (found.offset, found.eps, found.weight.shape, found.weight.device.type) == (offset, eps, (32,), "meta")


class HalfNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        return 0.5 * super().forward(hidden_states)


@pytest.mark.parametrize("module", [HalfNorm(32), NemotronLayerNorm1P(32), nn.Linear(4, 4), nn.Embedding(4, 4)])
def test_what_is_no_norm_stays(module):
    assert norm_like(module) is None


def test_weights_that_other_code_uses():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    watch = LinearWatch(module)
    module(torch.zeros(2, 4))
    assert not watch.asked
    assert module[1].weight.dtype is torch.float32
    assert watch.asked == {module[1]}


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"scaling": 0.1, "position_bias": torch.zeros(1)}, "what it cannot do"),
        ({"scaling": 0.1, "is_causal": False}, "sees later tokens"),
    ],
)
def test_calls_that_are_not_understood(keywords, reason):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    register()
    module = nn.Module()
    object.__setattr__(module, HANDLER, [])
    tensors = [torch.zeros(1, 2, 7, 8)] * 3
    with pytest.raises(UnsupportedModelError, match=reason):
        ALL_ATTENTION_FUNCTIONS[ASKING](module, *tensors, None, dropout=0.0, **keywords)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotations_of_a_batch_are_refused(rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8} if rope_type == "longrope" else {}
    raw = tiny_config("llama").to_dict() | {"rope_parameters": rope | factors}
    assert "depends on the longest request of a batch" in why_not(raw)


def test_layers_that_differ():
    register()
    config = TransformersConfig.from_huggingface(read_huggingface_config(tiny_config("gemma2").to_dict()))
    assert [spec.sliding_window for spec in config.layers] == [12, None]
    assert {spec.softcap for spec in config.layers} == {50.0}
    assert config.found.names == ("model.layers.0.self_attn", "model.layers.1.self_attn")
