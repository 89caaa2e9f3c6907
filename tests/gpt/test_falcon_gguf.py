"""GGUF files of Falcon: the logits of the transformers model they were written from, and of what it reads."""

import gguf
import numpy as np
import pytest
from families import assert_equal_logits, load_gguf, read_gguf_by_transformers
from gguf_files import END
from gpt import gpt_gguf
from gpt.tiny_falcon import FALCON, NEW, make

from pipezoo import registry
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_gpt.falcon.config import config_from_gguf

pytestmark = pytest.mark.matrix

NAMES = {
    "word_embeddings": "token_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
KINDS = gguf.GGMLQuantizationType
CONFIGS = {
    "7b": {},
    "40b": NEW,
    "11b": {**NEW, "num_ln_in_parallel_attn": 1},
    "untied": {"tie_word_embeddings": False},
    "eps": {"layer_norm_epsilon": 1e-3},
}


def num_kv_heads(config):
    return config.num_kv_heads if config.new_decoder_architecture else 1


def by_part(values, num_heads, num_kv):
    """The converter's order: queries of all heads, keys of all heads, values of all heads."""
    groups = values.reshape(num_kv, num_heads // num_kv + 2, -1, *values.shape[1:])
    parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])


def write(folder, reference, quantization=KINDS.F32, **metadata):
    config = reference.config
    num_heads, num_kv = config.num_attention_heads, num_kv_heads(config)
    sizes = {
        "context_length": 256,
        "tensor_data_layout": "jploski",
        "embedding_length": config.hidden_size,
        "feed_forward_length": 4 * config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": num_heads,
        "attention.head_count_kv": num_kv,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    tensors = {
        name: by_part(tensor.numpy(), num_heads, num_kv) if ".query_key_value." in name else tensor.numpy()
        for name, tensor in reference.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    return gpt_gguf.write(
        folder / "m.gguf", "falcon", sizes, gpt_gguf.named(tensors, NAMES), quantization, pre="falcon"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_gguf(FALCON, write(tmp_path, reference)))


def test_theta(tmp_path):
    reference = make(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert_equal_logits(reference, load_gguf(FALCON, write(tmp_path, reference, rope__freq_base=1e6)))


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "BF16"])
def test_logits_equal_what_transformers_reads(quantization, tmp_path):
    """It reads Falcon 7B's architecture alone."""
    path = write(tmp_path, make(), KINDS[quantization])
    theirs = read_gguf_by_transformers(path)
    assert theirs.config.model_type == "falcon"
    assert_equal_logits(theirs, load_gguf(FALCON, path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_it_answers(dtype, tmp_path):
    path = write(tmp_path, make(**NEW), KINDS.Q8_0)
    with registry.load(path, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {END}


def test_what_is_missing_is_named(tmp_path):
    file = open_gguf(write(tmp_path, make()))
    del file.metadata["falcon.attention.layer_norm_epsilon"]
    with pytest.raises(CorruptCheckpointError, match=r"lacks 'falcon\.attention\.layer_norm_epsilon'"):
        config_from_gguf(file)


def test_rope_that_no_config_can_say_is_refused(tmp_path):
    file = open_gguf(write(tmp_path, make(), rope__scaling__type="longrope"))
    with pytest.raises(UnsupportedModelError, match="scales RoPE in an unknown way"):
        config_from_gguf(file)
