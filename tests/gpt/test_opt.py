"""OPT against transformers on the same weights, its tokenizer, and which configs are refused."""

import json

import pytest
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    save,
    why_not_replayed,
)
from gguf_files import BYTES, TOKENS
from gpt.architectures import ARCHITECTURES, SPECIAL, saved
from kernels_here import needs_kernels
from safetensors.torch import load_file, save_file
from tiny_models import load_model, randomize
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

OPT = ARCHITECTURES["opt"]
SIZES = {
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 256,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
WIDE = {"hidden_size": 64, "num_attention_heads": 2}  # heads of 32 numbers, for the kernels
CONFIGS = {
    "default": {},
    "activation": {"activation_function": "gelu"},
    "norms_after": {"do_layer_norm_before": False},
    "no_final_norm": {"_remove_final_layer_norm": True},
    "narrow": {"word_embed_proj_dim": 16},
    "350m": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "wide_untied": {"word_embed_proj_dim": 96, "tie_word_embeddings": False},
    "no_bias": {"enable_bias": False},
    "plain_norms": {"layer_norm_elementwise_affine": False},
    "untied": {"tie_word_embeddings": False},
}
PAGE = 8 * 2 * 3 * 4 * 4 * 8  # 8 tokens: keys and values of 3 layers, 4 heads, 4 bytes per number, 8 numbers per head
# Its vocabulary as OPT's files have it, without a tokenizer.json.
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "' s", "1 2"]
WORDS = ["<s>", "<pad>", "</s>", "<unk>", *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
TEXTS = ["hello world", "it's 12 345\n\n x", "  hello", "é café", "hello</s>", ""]


def make(**changes):
    """Its scores are large enough that they matter, and its logits small enough that rounding does not."""
    model = randomize(OPTForCausalLM(OPTConfig(**{**SIZES, **SPECIAL, "attn_implementation": "eager", **changes})))
    for layer in model.model.decoder.layers:
        layer.self_attn.q_proj.weight.data *= 3
    if model.config._remove_final_layer_norm:
        model.lm_head.weight.data *= 0.2
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None,))


@pytest.mark.parametrize("name", ["activation", "norms_after", "no_final_norm", "no_bias", "plain_norms"])
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_files_of_the_model_without_its_head_have_no_prefix(tmp_path):
    reference = make()
    model = saved(reference, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    assert_equal_logits(reference, load_model(*model), chunks=(None,))


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make(**CONFIGS["350m"])
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_are_replayed(name, tiny_folder, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert why_not_replayed(save(reference, tmp_path, tiny_folder), dtype="float32") is None


def test_defaults_are_those_of_transformers():
    config_class = OPT.pipeline_model.config_class
    assert config_class.from_huggingface(OPT.huggingface_config({})) == config_class.from_huggingface(OPTConfig())


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"activation_function": "no_such_function"}, "activation function is unknown"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"num_attention_heads": 0}, "do not divide"),
        ({"word_embed_proj_dim": 0}, "word_embed_proj_dim is not positive"),
    ],
    ids=str,
)
def test_refused(raw, why):
    with pytest.raises(UnsupportedModelError, match=why):
        OPT.pipeline_model.config_class.from_huggingface(OPT.huggingface_config(raw))


def test_adapters_equal_merged_models(tmp_path):
    reference = make(**CONFIGS["narrow"])
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=["q_proj", "out_proj", "fc2"])


def test_texts_have_the_tokens_of_transformers(tmp_path):
    """They begin with `</s>`, as in training, and a text that begins with it gets no second one."""
    make(vocab_size=len(WORDS), pad_token_id=1, bos_token_id=2, eos_token_id=2).save_pretrained(tmp_path)
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False, **special}
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    expected = AutoTokenizer.from_pretrained(tmp_path)
    with registry.load(tmp_path, dtype="float32", device="cpu", kv_cache_memory="1MiB") as llm:
        tokenizer = llm.tokenizer
    for text in TEXTS:
        tokens = tokenizer.encode(text).tolist()
        assert tokens == expected.encode(text) == tokenizer.encode(f"</s>{text}").tolist()
        assert tokens[0] == WORDS.index("</s>")
    assert tokenizer.eos_token_ids == {WORDS.index("</s>")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "350m", "untied"])
def test_ranks_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_answers_in_lower_precision(dtype, tiny_folder, tmp_path):
    folder = save(make(**{**WIDE, **CONFIGS["350m"]}), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="1MiB") as llm:
        output = llm.generate([TextGenerationRequest(prompt=[5, 6, 7])], max_new_tokens=8, ignore_eos=True)[0]
    assert len(output.tokens) == 8
