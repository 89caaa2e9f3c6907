"""Mistral's tekken.json: byte-level BPE as tiktoken has it. The reference implementation is `mistral_common`.

The file lists byte strings, the most frequent first; a word that is one of them is that token, and in any other the
neighbours that together are the most frequent string are joined, until none are. Special tokens come before them.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipezoo_core.tokenizer import merges_by_score, with_settings_of
from pipezoo_mistral.chat_template import chat_template

__all__ = ["load_tokenizer"]

_FILE = "tekken.json"
_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# Older files do not list their special tokens: these, and then <SPECIAL_20> and on.
_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Reads a folder's tekken.json; returns None where it has none.

    Raises:
        KeyError: the file lacks something.
        ValueError: it is damaged.
    """
    if not (folder / _FILE).is_file():
        return None
    found = json.loads((folder / _FILE).read_bytes())
    special = _special_tokens(found)
    tokenizer = Tokenizer(_bpe(found, special))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(found["config"]["pattern"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = {name: token for name, token in _NAMED.items() if token in special}
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, add_bos_token=True, clean_up_tokenization_spaces=False, **named
    )
    complete = with_settings_of(folder, built)
    if complete.chat_template is None:
        complete.chat_template = chat_template(found["config"].get("version"))
    return complete


def _special_tokens(found: dict[str, Any]) -> list[str]:
    listed = sorted(found["special_tokens"], key=lambda entry: entry["rank"]) if "special_tokens" in found else None
    names = _SPECIAL if listed is None else [entry["token_str"] for entry in listed]
    count = found["config"]["default_num_special_tokens"]
    return [*names, *(f"<SPECIAL_{number}>" for number in range(len(names), count))][:count]


def _bpe(found: dict[str, Any], special: list[str]) -> BPE:
    size = found["config"]["default_vocab_size"] - len(special)  # the file may list more, which no model knows
    strings = [base64.b64decode(entry["token_bytes"]) for entry in found["vocab"][:size]]
    letters = _letters_of_bytes()
    tokens = ["".join(letters[byte] for byte in string) for string in strings]
    merges = merges_by_score({token: -rank for rank, token in enumerate(tokens)})
    return BPE({token: i for i, token in enumerate([*special, *tokens])}, merges, ignore_merges=True)


def _letters_of_bytes() -> list[str]:
    """Returns the character by which byte-level BPE writes each byte: itself, or the next unused one from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]
