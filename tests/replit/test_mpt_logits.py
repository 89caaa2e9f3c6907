"""Logits of the replit plugin against transformers on the same weights, and what it refuses."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import load_model, logits_of, randomize
from torch import nn
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from pipezoo import registry
from pipezoo_core.errors import CheckpointMismatchError, PluginNotFoundError, UnsupportedModelError
from pipezoo_core.layers import alibi_slopes
from pipezoo_replit.config import read_huggingface_config
from pipezoo_replit.model import MptPipelineModel
from pipezoo_replit.weight_adapters import adapt_safetensors

TINY = {"vocab_size": 99, "d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": 256}
CONFIGS = {
    "default": {},
    "heads_not_a_power_of_two": {"n_heads": 6},
    "three_heads": {"n_heads": 3},
    "bias_max": {"attn_config": {"alibi_bias_max": 16}},
    "clip": {"attn_config": {"clip_qkv": 0.5}},
    "scale": {"attn_config": {"softmax_scale": 0.3}},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "storywriter": {"attn_config": {"alibi_bias_max": 16, "clip_qkv": 1, "attn_pdrop": 0.0}},
    "unused": {"learned_pos_emb": True, "embedding_fraction": 0.5, "resid_pdrop": 0.1},
}
# What transformers' config has and its model leaves out; the reference gets it from `changed`.
LEFT_OUT = {
    "expansion_ratio": {"expansion_ratio": 2},
    "bias": {"no_bias": False},
    "logit_scale": {"logit_scale": 3},
    "logit_scale_inverse_root": {"logit_scale": "inv_sqrt_d_model"},
}
GROUPED = {
    "replit": {"n_heads": 6, "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}},
    "grouped_and_clipped": {
        "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "clip_qkv": 0.5, "alibi_bias_max": 4}
    },
    "multi_query": {"attn_config": {"attn_type": "multiquery_attention"}},
}
PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 61)), [3], [(7 * i) % 99 for i in range(97)]]


def make(**changes):
    """A transformers model of multi-head attention, with all that its config has."""
    config = read_huggingface_config({**TINY, **changes})
    reference = changed(MptForCausalLM(config))
    bias_max = config.attn_config.alibi_bias_max

    def build(num_heads, length, *_, device=None):
        """transformers has the setting but does not pass it on; the original code does."""
        return build_mpt_alibi_tensor(num_heads, length, bias_max, device)

    reference.transformer.build_mpt_alibi_tensor = build
    return randomize(reference)


def changed(reference):
    config, size = reference.config, reference.config.d_model
    inner, bias = config.expansion_ratio * size, not config.no_bias
    for block in reference.transformer.blocks:
        block.attn.Wqkv, block.attn.out_proj = nn.Linear(size, 3 * size, bias=bias), nn.Linear(size, size, bias=bias)
        block.ffn.up_proj, block.ffn.down_proj = nn.Linear(size, inner, bias=bias), nn.Linear(inner, size, bias=bias)
        if bias:
            block.norm_1.bias, block.norm_2.bias = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))
    if bias:
        reference.transformer.norm_f.bias = nn.Parameter(torch.zeros(size))
    return reference


def share_kv_heads(reference, num_kv_heads):
    """Makes the heads of each group equal and returns the weights with one of each, as a checkpoint stores them."""
    weights = {name: tensor.clone() for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
    size, num_heads = reference.config.d_model, reference.config.n_heads
    for i, block in enumerate(reference.transformer.blocks):
        q, k, v = block.attn.Wqkv.weight.detach().split(size)
        k, v = (part.unflatten(0, (num_heads, -1))[:num_kv_heads] for part in (k, v))
        weights[f"transformer.blocks.{i}.attn.Wqkv.weight"] = torch.cat((q, k.flatten(0, 1), v.flatten(0, 1)))
        repeated = (part.repeat_interleave(num_heads // num_kv_heads, 0).flatten(0, 1) for part in (k, v))
        block.attn.Wqkv.weight.data = torch.cat((q, *repeated))
    return weights


def load(folder, weights, raw):
    save_file(weights, folder / "model.safetensors")
    return load_model(MptPipelineModel, folder, read_huggingface_config(raw), adapt_safetensors)


def assert_equal_logits(reference, model, scale=1.0):
    for chunk in (None, 7, 1):
        for prompt, logits in zip(PROMPTS, logits_of(model, PROMPTS, chunk), strict=True):
            with torch.no_grad():
                expected = scale * reference(torch.tensor([prompt])).logits[0]
            assert (logits - expected).abs().max() < 1e-4
            assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    reference.save_pretrained(tmp_path)
    for raw in ({**TINY, **CONFIGS[name]}, json.loads((tmp_path / "config.json").read_text())):
        model = load_model(MptPipelineModel, tmp_path, read_huggingface_config(raw), adapt_safetensors)
        assert_equal_logits(reference, model)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_transformers_leaves_out(name, tmp_path):
    raw = {**TINY, **LEFT_OUT[name]}
    reference = make(**raw)
    scale = {"logit_scale": 3.0, "logit_scale_inverse_root": 48**-0.5}.get(name, 1.0)
    weights = {key: tensor.clone() for key, tensor in reference.state_dict().items()}
    assert_equal_logits(reference, load(tmp_path, weights, raw), scale)


@pytest.mark.parametrize("name", GROUPED)
def test_shared_kv_heads_equal_transformers_with_repeated_ones(name, tmp_path):
    raw = {**TINY, **GROUPED[name]}
    reference = make(**raw)
    num_kv_heads = raw["attn_config"].get("kv_n_heads", 1)
    model = load(tmp_path, share_kv_heads(reference, num_kv_heads), raw)
    assert model.kv_manager.params.num_kv_heads == num_kv_heads
    assert_equal_logits(reference, model)


def test_weights_of_other_heads_than_the_config_says_are_refused(tmp_path):
    weights = share_kv_heads(make(), 2)
    with pytest.raises(CheckpointMismatchError, match="Wqkv"):
        load(tmp_path, weights, TINY)


def test_generation_from_a_raw_config_equals_transformers(tmp_path, tiny_folder):
    """From a config.json as Replit's to tokens."""
    from gguf_files import TOKENS

    raw = {"architectures": ["MPTForCausalLM"], "model_type": "mpt", **TINY, **GROUPED["replit"]}
    raw["vocab_size"] = len(TOKENS)
    reference = make(**raw)
    save_file(share_kv_heads(reference, 2), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for path in tiny_folder.glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    llm = registry.load(tmp_path, dtype="float32", device="cpu", page_size=8, kv_cache_memory="4MiB")
    prompt = "hello, hello, hello"
    ids = llm.tokenizer.encode(prompt).tolist()
    expected = list(ids)
    for _ in range(24):
        with torch.no_grad():
            expected.append(int(reference(torch.tensor([expected])).logits[0, -1].argmax()))
    output = llm.generate(prompt, temperature=0.0, ignore_eos=True, max_new_tokens=24)[0]
    assert output.tokens == expected[len(ids) :]


def test_slopes_of_the_docstring():
    assert alibi_slopes(3) == (2.0**-4, 2.0**-8, 2.0**-2)
    assert alibi_slopes(4) == (2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8)
    assert alibi_slopes(1) == (2.0**-8,)


@pytest.mark.parametrize("bias_max", [8, 16])
@pytest.mark.parametrize("num_heads", range(1, 34))
def test_slopes_equal_transformers(num_heads, bias_max):
    """Whose bias grows by one slope per key."""
    bias = build_mpt_alibi_tensor(num_heads, 2, bias_max)[:, 0]
    assert torch.allclose(bias[:, 1] - bias[:, 0], torch.tensor(alibi_slopes(num_heads, bias_max)), rtol=1e-6, atol=0)


REFUSED = [
    ({"logit_scale": "sqrt"}, "the logit scale 'sqrt'"),
    ({"tie_word_embeddings": False}, "head of its own"),
    ({"norm_type": "rmsnorm"}, "another norm"),
    ({"norm_eps": 1e-6}, "epsilon"),
    ({"final_logit_softcapping": 30.0}, "capped logits"),
    ({"block_overrides": {"order": []}}, "layers that differ"),
    ({"attn_config": {"alibi": False}}, "learned or rotary positions"),
    ({"attn_config": {"attn_type": "mla"}}, "another attention"),
    ({"attn_config": {"kv_n_heads": 3}}, "3 key/value heads for 4 heads"),
    ({"attn_config": {"kv_n_heads": 0}}, "0 key/value heads"),
    ({"attn_config": {"qk_ln": True}}, "normalized"),
    ({"attn_config": {"qk_gn": True}}, "normalized"),
    ({"attn_config": {"rope": True}}, "rotary"),
    ({"attn_config": {"prefix_lm": True}}, "prefix"),
    ({"attn_config": {"attn_uses_sequence_id": True}}, "sequence ids"),
    ({"attn_config": {"attn_logit_softcapping": 50.0}}, "capped attention scores"),
    ({"attn_config": {"sliding_window_size": 128}}, "sliding window"),
    ({"ffn_config": {"ffn_type": "mptglu"}}, "feed-forward layer"),
    ({"ffn_config": {"ffn_act_fn": {"name": "silu"}}}, "activation"),
    ({"ffn_config": {"ffn_hidden_size": 64}}, "feed-forward size"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_it_does_not_compute_is_refused(changes, reason, tmp_path):
    config = {"model_type": "mpt", "architectures": ["MPTForCausalLM"], **TINY, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=reason):
        registry.resolve(tmp_path)


def test_another_model_type_is_not_served(tmp_path):
    """Replit's first model is of another type, with other names."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "replit_lm", "architectures": ["ReplitLM"]}))
    with pytest.raises(PluginNotFoundError, match="replit_lm"):
        registry.resolve(tmp_path)


@pytest.mark.parametrize("name", ["MPTForCausalLM", "MptForCausalLM"])
@pytest.mark.parametrize("attn_config", [None, {}, MptConfig().attn_config.to_dict()], ids=["none", "empty", "full"])
def test_both_names_are_served(name, attn_config, tmp_path):
    config = {"model_type": "mpt", "architectures": [name], "attn_config": attn_config, **TINY}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert registry.resolve(tmp_path).architecture.name == name
