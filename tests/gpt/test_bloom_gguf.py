"""GGUF files of BLOOM: the logits of the transformers model they were written from, and of what it reads."""

import gguf
import pytest
from families import assert_equal_logits, load_gguf, read_gguf_by_transformers
from gguf_files import END
from gpt import gpt_gguf
from gpt.tiny_bloom import BLOOM, make

from pipezoo import registry
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_gpt.bloom.config import config_from_gguf

pytestmark = pytest.mark.matrix

NAMES = {
    "word_embeddings": "token_embd",
    "word_embeddings_layernorm": "token_embd_norm",
    "ln_f": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
KINDS = gguf.GGMLQuantizationType


def by_part(values, num_heads):
    """The converter's order: queries of all heads, keys of all heads, values of all heads."""
    return values.reshape(num_heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def write(folder, reference, quantization=KINDS.F32, **metadata):
    config = reference.config
    sizes = {
        "context_length": 256,
        "embedding_length": config.hidden_size,
        "feed_forward_length": 4 * config.hidden_size,
        "block_count": config.n_layer,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_head,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    tensors = {
        name: by_part(tensor.numpy(), config.n_head) if ".query_key_value." in name else tensor.numpy()
        for name, tensor in reference.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    return gpt_gguf.write(folder / "m.gguf", "bloom", sizes, gpt_gguf.named(tensors, NAMES), quantization, pre="bloom")


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"layer_norm_epsilon": 1e-3}, {"n_head": 3, "hidden_size": 48}],
    ids=["plain", "untied", "eps", "three_heads"],
)
def test_logits_equal_transformers(changes, tmp_path):
    reference = make(**changes)
    assert_equal_logits(reference, load_gguf(BLOOM, write(tmp_path, reference)))


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "BF16"])
def test_logits_equal_what_transformers_reads(quantization, tmp_path):
    path = write(tmp_path, make(), KINDS[quantization])
    theirs = read_gguf_by_transformers(path)
    assert theirs.config.model_type == "bloom"
    assert_equal_logits(theirs, load_gguf(BLOOM, path))


def test_a_head_besides_the_embedding_is_taken(tmp_path):
    """Older converters wrote one, which may have another quantization."""
    reference = make()
    alone = make(tie_word_embeddings=False)
    alone.load_state_dict(reference.state_dict())
    path = write(tmp_path, alone)
    assert "output.weight" in open_gguf(path).weights
    assert_equal_logits(reference, load_gguf(BLOOM, path), chunks=(None,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_it_answers(dtype, tmp_path):
    path = write(tmp_path, make(), KINDS.Q8_0)
    with registry.load(path, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {END}


def test_what_is_missing_is_named(tmp_path):
    file = open_gguf(write(tmp_path, make()))
    del file.metadata["bloom.attention.layer_norm_epsilon"]
    with pytest.raises(CorruptCheckpointError, match=r"lacks 'bloom\.attention\.layer_norm_epsilon'"):
        config_from_gguf(file)


def test_another_width_is_refused(tmp_path):
    file = open_gguf(write(tmp_path, make(), feed_forward_length=96))
    with pytest.raises(UnsupportedModelError, match="found: 96; allowed: 128"):
        config_from_gguf(file)
