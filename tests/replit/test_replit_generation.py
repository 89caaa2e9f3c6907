"""Folders as Replit's checkpoints have them, from `registry.load` to tokens; what they bring of code is never run."""

import json
import shutil

import pytest
import sentencepiece
import torch
from gguf_files import TOKENS
from replit.mpt_reference import Reference
from replit.test_mpt_logits import replit_name
from replit.test_mpt_plugin import REPLIT_V1, REPLIT_V1_5, REPLIT_V1_AS_MPT
from safetensors.torch import save_file

from pipezoo import registry
from pipezoo_core.errors import InvalidSettingError

PROMPT = "def pop(self): return"
SETTINGS = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB"}
GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": 24}
TINY = {"d_model": 64, "n_layers": 2, "max_seq_len": 128}


def write(folder, config, weights):
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_replit_lm", "replit_lm", "configuration_mpt", "modeling_mpt"):
        (folder / f"{name}.py").write_text("raise AssertionError('remote code was run')")
    save_file({key: torch.tensor(array).float() for key, array in weights.items()}, folder / "model.safetensors")
    return folder


def check(llm, reference, tokens):
    """A greedy answer, and the same piece by piece, are the reference's."""
    assert llm.tokenizer.encode(PROMPT).tolist() == tokens
    output = llm.generate(PROMPT, **GREEDY)[0]
    assert output.tokens == reference.greedy(tokens, 24)
    assert "".join(llm.stream(PROMPT, **GREEDY)) == output.text
    assert llm.tokenizer.decode(tokens) + output.text == llm.tokenizer.decode(tokens + output.tokens)


@pytest.mark.parametrize("spelling", ["flat", "nested"])
def test_the_first_model(spelling, code_vocabulary, tmp_path):
    folder = shutil.copytree(code_vocabulary, tmp_path / "model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    sizes = {**TINY, "vocab_size": pieces.get_piece_size()}
    reference = Reference({**REPLIT_V1_AS_MPT, **sizes})
    if spelling == "flat":
        weights = {replit_name(name): array for name, array in reference.weights.items()}
        write(folder, {**REPLIT_V1, **sizes}, weights)
    else:
        write(folder, {**REPLIT_V1_AS_MPT, **sizes}, reference.weights)
    llm = registry.load(folder, **SETTINGS)
    assert llm.tokenizer.eos_token_ids == {1}
    check(llm, reference, pieces.encode(PROMPT))


def test_the_grouped_model(tiny_folder, tmp_path):
    """24 query heads, 8 key/value heads."""
    config = {**REPLIT_V1_5, **TINY, "d_model": 96, "vocab_size": len(TOKENS)}
    reference = Reference(config)
    folder = write(tmp_path, config, reference.weights)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    llm = registry.load(folder, **SETTINGS)
    assert llm.model.kv_manager.params.groups[0].num_kv_heads == 8
    check(llm, reference, llm.tokenizer.encode(PROMPT).tolist())


def test_learned_positions_bound_the_length(code_vocabulary, tmp_path):
    folder = shutil.copytree(code_vocabulary, tmp_path / "model")
    config = {**TINY, "model_type": "replit_lm", "n_heads": 4, "max_seq_len": 32, "vocab_size": 400}
    reference = Reference({**config, "no_bias": False, "attn_config": {"alibi": False}})
    write(folder, config, {replit_name(name): array for name, array in reference.weights.items()})
    with pytest.raises(InvalidSettingError, match="at most 32"):
        registry.load(folder, **SETTINGS, max_length=33)
    llm = registry.load(folder, **SETTINGS)
    tokens = llm.tokenizer.encode(PROMPT).tolist()
    output = llm.generate(PROMPT, temperature=0.0, ignore_eos=True)[0]
    assert output.tokens == reference.greedy(tokens, 32 - len(tokens))
    assert max(output.tokens) >= llm.tokenizer.delegate.vocab_size  # which has no text, and does no harm
