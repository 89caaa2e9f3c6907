"""What the replit plugin tells the registry, which configs it reads, and which it refuses."""

import json
import subprocess
import sys

import pytest
from transformers import MptConfig as TransformersConfig

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding, WeightsFormat
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import alibi_slopes
from pipezoo_replit import plugin
from pipezoo_replit.config import MptConfig
from pipezoo_replit.huggingface_config import read_huggingface_config

# As the checkpoints' config.json files, cut to what matters.
REPLIT_V1 = {
    "alibi": True,
    "alibi_bias_max": 8,
    "architectures": ["ReplitLM"],
    "attn_clip_qkv": None,
    "attn_impl": "torch",
    "attn_pdrop": 0,
    "attn_qk_ln": False,
    "attn_uses_sequence_id": False,
    "auto_map": {"AutoConfig": "configuration_replit_lm.ReplitLMConfig", "AutoModelForCausalLM": "replit_lm.ReplitLM"},
    "d_model": 2560,
    "embedding_fraction": 1.0,
    "init_device": "cpu",
    "logit_scale": None,
    "low_precision_layernorm": True,
    "max_seq_len": 2048,
    "mlp_ratio": 4,
    "model_type": "replit_lm",
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "prefix_lm": False,
    "resid_pdrop": 0,
    "softmax_scale": None,
    "torch_dtype": "float32",
    "use_cache": False,
    "vocab_size": 32768,
}
REPLIT_V1_AS_MPT = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
    "d_model": 2560,
    "eos_token_id": 1,
    "expansion_ratio": 4,
    "init_config": {"name": "kaiming_normal_", "verbose": 0},
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "vocab_size": 32768,
}
REPLIT_V1_5 = {
    **REPLIT_V1_AS_MPT,
    "attn_config": {
        **REPLIT_V1_AS_MPT["attn_config"],
        "attn_impl": "triton",
        "attn_type": "grouped_query_attention",
        "kv_n_heads": 8,
    },
    "d_model": 3072,
    "max_seq_len": 4096,
    "n_heads": 24,
}


def resolve(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return registry.resolve(folder)


def test_architecture():
    [architecture] = plugin.pipezoo_architectures()
    assert architecture.names == ("MPTForCausalLM", "MptForCausalLM", "ReplitLM", "ReplitLMForCausalLM")
    assert architecture.model_types == ("mpt", "replit_lm")
    assert issubclass(architecture.pipeline_model, DecoderPipelineModel)
    assert list(architecture.weight_adapters) == [WeightsFormat.safetensors]
    assert architecture.supported_encodings == tuple(SupportedEncoding)
    assert architecture.config_from_gguf is None


@pytest.mark.parametrize("model_type", ["mpt", "replit_lm"])
@pytest.mark.parametrize("name", [None, "MPTForCausalLM", "MptForCausalLM", "ReplitLM", "ReplitLMForCausalLM"])
def test_all_names_lead_to_it(model_type, name, tmp_path):
    resolution = resolve(tmp_path, {"model_type": model_type} | ({"architectures": [name]} if name else {}))
    assert resolution.plugin.distribution == "pipezoo-replit"
    assert resolution.plugin.name == model_type
    assert resolution.architecture.name == "MPTForCausalLM"


@pytest.mark.parametrize(
    ("raw", "kv_heads", "head_dim", "max_seq_len"),
    [(REPLIT_V1, 32, 80, 2048), (REPLIT_V1_AS_MPT, 32, 80, 2048), (REPLIT_V1_5, 8, 128, 4096)],
    ids=["v1", "v1_as_mpt", "v1_5"],
)
def test_configs_of_the_checkpoints(raw, kv_heads, head_dim, max_seq_len, tmp_path):
    resolve(tmp_path, raw)
    read = MptConfig.from_huggingface(read_huggingface_config(raw))
    num_heads = 24 if raw is REPLIT_V1_5 else 32
    assert read == MptConfig(
        vocab_size=32768,
        hidden_size=num_heads * head_dim,
        intermediate_size=4 * num_heads * head_dim,
        num_layers=32,
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_seq_len=max_seq_len,
        layer_norm_epsilon=1e-5,
        bias=False,
        softmax_scale=head_dim**-0.5,
        clip_qkv=None,
        qk_ln=False,
        alibi_slopes=alibi_slopes(num_heads),
        learned_positions=False,
        tie_word_embeddings=True,
        logit_scale=None,
    )


def test_the_end_token_of_a_config_is_kept():
    assert read_huggingface_config(REPLIT_V1_AS_MPT).eos_token_id == 1
    assert read_huggingface_config(REPLIT_V1).eos_token_id is None


def test_what_mpt_leaves_out_is_as_in_transformers():
    ours, theirs = read_huggingface_config({"model_type": "mpt"}), TransformersConfig()
    for name in ("d_model", "n_heads", "n_layers", "expansion_ratio", "max_seq_len", "vocab_size", "no_bias"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("layer_norm_epsilon", "logit_scale", "tie_word_embeddings", "learned_pos_emb"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("attn_type", "alibi", "alibi_bias_max", "qk_ln", "clip_qkv", "softmax_scale"):
        assert getattr(ours, name) == getattr(theirs.attn_config, name)


@pytest.mark.parametrize("attn_config", [None, {}, TransformersConfig().attn_config.to_dict()])
def test_an_empty_and_a_full_part_say_the_same(attn_config, tmp_path):
    raw = {"model_type": "mpt", "architectures": ["MPTForCausalLM"], "attn_config": attn_config}
    resolve(tmp_path, raw)
    [ours, theirs] = (MptConfig.from_huggingface(read_huggingface_config(config)) for config in (raw, {}))
    assert ours == theirs


def test_reading_a_config_leaves_it_as_it_was():
    raw = {"attn_config": {"attn_type": "multiquery_attention", "clip_qkv": 6}, "logit_scale": 2}
    before = json.dumps(raw)
    read_huggingface_config(raw)
    assert json.dumps(raw) == before


MPT, REPLIT = {"model_type": "mpt", "n_heads": 4}, {"model_type": "replit_lm", "n_heads": 4}
REFUSED = [
    ({**MPT, "logit_scale": "sqrt"}, "the logit scale 'sqrt'"),
    ({**MPT, "norm_type": "rmsnorm"}, "another norm"),
    ({**MPT, "final_logit_softcapping": 30.0}, "capped logits"),
    ({**MPT, "block_overrides": {"order": []}}, "layers that differ"),
    ({**MPT, "attn_config": "flash"}, "an attn_config that is no object"),
    ({**MPT, "attn_config": {"attn_type": "mla"}}, "another attention"),
    ({**MPT, "attn_config": {"kv_n_heads": 3}}, "3 key/value heads for 4 heads"),
    ({**MPT, "attn_config": {"kv_n_heads": 0}}, "0 key/value heads"),
    ({**MPT, "attn_config": {"qk_gn": True}}, "normalized head by head"),
    ({**MPT, "attn_config": {"rope": True}}, "rotary"),
    ({**MPT, "attn_config": {"prefix_lm": True}}, "prefix"),
    ({**MPT, "attn_config": {"attn_uses_sequence_id": True, "alibi": True}}, "several sequences in one"),
    ({**MPT, "attn_config": {"attn_logit_softcapping": 50.0}}, "capped attention scores"),
    ({**MPT, "attn_config": {"sliding_window_size": 128}}, "sliding window"),
    ({**MPT, "ffn_config": "mptmlp"}, "an ffn_config that is no object"),
    ({**MPT, "ffn_config": {"ffn_type": "mptglu"}}, "feed-forward layer"),
    ({**MPT, "ffn_config": {"ffn_act_fn": {"name": "silu"}}}, "activation"),
    ({**MPT, "ffn_config": {"ffn_hidden_size": 64}}, "feed-forward size"),
    ({**REPLIT, "prefix_lm": True}, "prefix"),
    ({**REPLIT, "attn_uses_sequence_id": True, "alibi": True}, "several sequences in one"),
    ({**REPLIT, "logit_scale": "sqrt"}, "the logit scale 'sqrt'"),
]


@pytest.mark.parametrize(("raw", "reason"), REFUSED)
def test_what_it_does_not_compute_is_refused(raw, reason, tmp_path):
    with pytest.raises(UnsupportedModelError, match=f"'pipezoo-replit' refuses this model.*{reason}"):
        resolve(tmp_path, raw)


@pytest.mark.parametrize(
    "changes",
    [{"n_heads": "four"}, {"n_heads": 5}, {"n_heads": 0}, {"expansion_ratio": 0.3}, {"attn_config": {"qk_ln": "yes"}}],
)
def test_a_config_that_makes_no_sense_is_refused(changes, tmp_path):
    from safetensors.torch import save_file

    save_file({}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpt", "d_model": 48, **changes}))
    with pytest.raises(UnsupportedModelError, match="the config is not one of MPTForCausalLM"):
        registry.plan(tmp_path, device="cpu", dtype="float32")


def test_importing_the_plugin_imports_nothing_heavy():
    code = "import sys, pipezoo_replit.plugin; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
