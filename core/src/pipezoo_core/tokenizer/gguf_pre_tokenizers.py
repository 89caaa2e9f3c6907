r"""How byte-level vocabularies of GGUF files cut text into words, by the name under `tokenizer.ggml.pre`.

The names and what they stand for are llama.cpp's (`llama-vocab.cpp`). Its expressions are written here in the form of
the models' own tokenizer.json: `(?i:'s|…)` for `'[sS]|…`, Unicode classes where llama.cpp works around their lack,
and the last `|\s+`, without which the text between two matches would be the same word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["KNOWN_PRE_TOKENIZERS", "TEKKEN", "GGUFPreTokenizer"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"  # signs that end sentences and clauses
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
TEKKEN = rf"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class GGUFPreTokenizer:
    """How text becomes words, and words become tokens.

    Attributes:
        splits: regular expressions, one after the other; each cuts what the one before it left whole into its
            matches and the text between them.
        ignore_merges: a word that is a token is that token, whatever the merges say.
        adds_bos: a text begins with the BOS token where the file does not say.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


_WORDS = GGUFPreTokenizer((_GPT2,))
_WORDS_AND_DIGITS = GGUFPreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_LIKE = GGUFPreTokenizer((_LLAMA3,))
_LLAMA3_ITSELF = GGUFPreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True)
_QWEN2_LIKE = GGUFPreTokenizer((_QWEN2,))
_GPT4O_LIKE = GGUFPreTokenizer((_GPT4O,))

KNOWN_PRE_TOKENIZERS: Mapping[str, GGUFPreTokenizer] = MappingProxyType(
    {
        "default": GGUFPreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
        "falcon": GGUFPreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
        "tekken": GGUFPreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True),
        **dict.fromkeys(("bloom", "gpt3-finnish"), GGUFPreTokenizer((_BLOOM,))),
        **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), _WORDS),
        **dict.fromkeys(
            ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _WORDS_AND_DIGITS
        ),
        **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral"), _LLAMA3_ITSELF),
        **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3_LIKE),
        **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _QWEN2_LIKE),
        **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O_LIKE),
    }
)
