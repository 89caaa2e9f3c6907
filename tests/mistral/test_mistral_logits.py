"""Logits of the mistral plugin against transformers on the same weights, beyond the sliding window, too."""

import pytest
import torch
from tiny_models import TINY_LLAMA, load_model, logits_of, randomize
from transformers import MistralConfig, MistralForCausalLM

from pipezoo import registry
from pipezoo_mistral.model import MistralPipelineModel
from pipezoo_mistral.weight_adapters import adapt_safetensors

CONFIGS = {
    "window": {"sliding_window": 12},
    "window_of_one_page": {"sliding_window": 8},
    "no_window": {"sliding_window": None},
    "head_dim": {"sliding_window": 12, "head_dim": 20},
    "tied": {"tie_word_embeddings": True},
    "nemo": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None},
}
PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 61)), [3], [(7 * i) % 99 for i in range(97)]]


def make(**changes):
    config = MistralConfig(**{**TINY_LLAMA, "attn_implementation": "eager", **changes})
    return randomize(MistralForCausalLM(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    reference.save_pretrained(tmp_path)
    model = load_model(MistralPipelineModel, tmp_path, reference.config, adapt_safetensors)
    for chunk in (None, 7, 1):
        for prompt, logits in zip(PROMPTS, logits_of(model, PROMPTS, chunk), strict=True):
            with torch.no_grad():
                expected = reference(torch.tensor([prompt])).logits[0]
            assert (logits - expected).abs().max() < 1e-4
            assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_the_window_matters(tmp_path):
    """Without it the oracle above could not fail."""
    reference, other = make(sliding_window=12), make(sliding_window=None)
    tokens = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        assert (reference(tokens).logits - other(tokens).logits)[0, :12].abs().max() == 0
        assert (reference(tokens).logits - other(tokens).logits)[0, 12:].abs().max() > 0.01


def test_generation_beyond_the_window_equals_transformers(tmp_path, tiny_folder):
    from gguf_files import TOKENS

    reference = make(sliding_window=12, vocab_size=len(TOKENS))
    reference.save_pretrained(tmp_path)
    for path in tiny_folder.glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    llm = registry.load(tmp_path, dtype="float32", device="cpu", page_size=8, kv_cache_memory="4MiB")
    prompt = "hello, hello, hello"
    ids = torch.tensor([llm.tokenizer.encode(prompt).tolist()])
    settings = {"max_new_tokens": 40, "min_new_tokens": 40}
    expected = reference.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=0, **settings
    )
    output = llm.generate(prompt, temperature=0.0, ignore_eos=True, max_new_tokens=40)[0]
    assert output.tokens == expected[0, ids.shape[1] :].tolist()
