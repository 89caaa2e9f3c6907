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
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
TEKKEN = rf"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)

# DeepSeek's first models know the letters of scripts that have capitals, as of Unicode 11, by these code points.
_CAPITALIZED = """
    0041-005A 0061-007A 00B5-00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF 0370-0373 0376-0377
    037B-037D 037F-037F 0386-0386 0388-038A 038C-038C 038E-03A1 03A3-03F5 03F7-0481 048A-052F 0531-0556 10A0-10C5
    13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D
    1F50-1F57 1F59-1F59 1F5B-1F5B 1F5D-1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE-1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3
    1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102-2102 2107-2107 210A-2113 2115-2115 2119-211D 2124-2124 2126-2126
    2128-2128 212A-212D 212F-2134 2139-2139 213C-213F 2145-2149 214E-214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE
    2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A
    10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_MARKS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_JAPANESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


def _characters(ranges: str) -> str:
    """Returns `A-Za-z` of `0041-005A 0061-007A`."""
    return "".join("-".join(chr(int(bound, 16)) for bound in pair.split("-")) for pair in ranges.split())


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
        "deepseek-coder": GGUFPreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")),
        "deepseek-llm": GGUFPreTokenizer(
            (r"[\r\n]", rf"\s?[{_characters(_CAPITALIZED)}]+", rf"\s?[{_MARKS}]+", r"\s+$", _EAST_ASIAN, r"\p{N}")
        ),
        "deepseek-v3": GGUFPreTokenizer((r"\p{N}{1,3}", _JAPANESE, _DEEPSEEK_V3)),
        "falcon": GGUFPreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
        "qwen35": GGUFPreTokenizer((_QWEN35,)),
        "tekken": GGUFPreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True),
        **dict.fromkeys(("bloom", "gpt3-finnish"), GGUFPreTokenizer((_BLOOM,))),
        **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), _WORDS),
        **dict.fromkeys(
            ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _WORDS_AND_DIGITS
        ),
        **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "lfm2", "pixtral"), _LLAMA3_ITSELF),
        **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3_LIKE),
        **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _QWEN2_LIKE),
        **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O_LIKE),
    }
)
