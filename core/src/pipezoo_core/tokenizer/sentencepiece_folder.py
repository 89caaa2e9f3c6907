"""A folder's SentencePiece vocabulary with what the files beside it say of tokens and spaces.

The oracle is transformers: a `tokenizer.model` knows neither the tokens that a chat model has got since, nor what comes
before a text behind a special token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import pre_tokenizers

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.tokenizer.gguf import tokenizer_from_gguf
from pipezoo_core.tokenizer.gguf_special_tokens import CONTROL, USER_DEFINED
from pipezoo_core.tokenizer.sentencepiece_model import sentencepiece_metadata

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["read_sentencepiece"]

_UNUSED = 5
_MAX_ADDED = 1 << 16
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_sentencepiece(folder: Path) -> PreTrainedTokenizerBase:
    """Builds the tokenizer of a folder that has a tokenizer.model.

    With `legacy: false` in tokenizer_config.json only the first text begins with a space of its own; otherwise each
    text behind a special token does, too, as transformers had it first.

    Raises:
        UnsupportedTokenizerError: the vocabulary is of another kind, or the ids of the added tokens do not fit it.
        ValueError: a file is damaged.
    """
    settings = _json_object(folder / "tokenizer_config.json")
    metadata = sentencepiece_metadata((folder / "tokenizer.model").read_bytes())
    has_prefix = settings.get("add_prefix_space")
    if isinstance(has_prefix, bool):
        metadata["tokenizer.ggml.add_space_prefix"] = has_prefix
    _add_tokens(metadata, _added_tokens(folder, settings))
    tokenizer = tokenizer_from_gguf(metadata, types_are_sure=True)
    if settings.get("legacy") is False:
        scheme = "first" if metadata["tokenizer.ggml.add_space_prefix"] else "never"
        backend = tokenizer.backend_tokenizer
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    return tokenizer


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    """Returns id -> text and whether it is special; what tokenizer_config.json says goes before added_tokens.json."""
    special = _special_texts(settings) | _special_texts(_json_object(folder / "special_tokens_map.json"))
    added = {id_: (text, text in special) for text, id_ in _json_object(folder / "added_tokens.json").items()}
    listed = settings.get("added_tokens_decoder", {})
    return added | {int(id_): (token["content"], bool(token.get("special"))) for id_, token in listed.items()}


def _special_texts(settings: dict[str, Any]) -> set[str]:
    further = [settings.get("additional_special_tokens"), settings.get("extra_special_tokens")]
    lists = [value.values() if isinstance(value, dict) else value or () for value in further]
    named = [settings.get(name) for name in _SPECIAL_NAMES]
    entries = [*named, *(entry for of_list in lists for entry in of_list)]
    texts = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
    return {text for text in texts if isinstance(text, str)}


def _add_tokens(metadata: dict[str, Any], added: dict[int, tuple[str, bool]]) -> None:
    """Puts tokens into the vocabulary, at their ids, in place. Ids in between stand for tokens that no text has."""
    tokens, types, scores = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores"))
    num_pieces = len(tokens)
    for id_, (text, is_special) in sorted(added.items()):
        if not 0 <= id_ < num_pieces + _MAX_ADDED:
            raise UnsupportedTokenizerError(
                "an added token is far from the vocabulary",
                found=f"{text!r}, token {id_}",
                allowed=f"0 to {num_pieces + _MAX_ADDED - 1}",
            )
        missing = range(len(tokens), id_ + 1)
        tokens += [f"<|unused {unused}|>" for unused in missing]
        types += [_UNUSED] * len(missing)
        scores += [0.0] * len(missing)
        if id_ >= num_pieces or is_special or tokens[id_] != text:
            tokens[id_], types[id_] = text, CONTROL if is_special else USER_DEFINED


def _json_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes()) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return found
