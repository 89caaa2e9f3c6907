"""A tokenizer out of a GGUF file's metadata. Knows the keys and their meaning, not the file.

Two models are read: `gpt2`, byte-level BPE, and `llama`, SentencePiece BPE with byte fallback. What the metadata
leaves open is as in llama.cpp, the reference for this format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.panics import panics_as_exceptions
from pipezoo_core.tokenizer.gguf_pre_tokenizers import KNOWN_PRE_TOKENIZERS
from pipezoo_core.tokenizer.gguf_special_tokens import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    end_tokens,
    takes_white_space,
    types_by_text,
)
from pipezoo_core.tokenizer.merges import merges_by_score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["gguf_end_tokens", "tokenizer_from_gguf"]

_UNKNOWN = 2
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_NAMED_ENDS = {"eot_token": "eot_token_id", "eom_token": "eom_token_id"}
_DEFAULT_IDS = {
    "llama": {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": {"bos_token_id": 11, "eos_token_id": 11},  # Falcon's; in other vocabularies this is a word
}
_CURE = "Convert the model again with a current converter."


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, types_are_sure: bool = False) -> PreTrainedTokenizerBase:
    """Builds the tokenizer that a GGUF file describes.

    Ends of a turn or a message, where the file names them, become `eot_token` and `eom_token`.

    Args:
        metadata: key -> value, as in the file, e.g. `tokenizer.ggml.model` -> "gpt2".
        types_are_sure: what kind of token each one is says the metadata, whatever the token's text looks like.

    Raises:
        UnsupportedTokenizerError: the model or the pre-tokenizer is unknown, or a key is missing or does not fit.
    """
    with _typed_errors():
        return _tokenizer(_Metadata(metadata, types_are_sure=types_are_sure), metadata.get("tokenizer.chat_template"))


def gguf_end_tokens(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Returns the tokens at which an answer ends, by the ids that a GGUF file names and by their texts.

    Raises:
        UnsupportedTokenizerError: a key is missing or does not fit.
    """
    with _typed_errors():
        found = _Metadata(metadata)
        return end_tokens(found.vocabulary, found.named_ids)


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        with panics_as_exceptions():
            yield
    except UnsupportedTokenizerError:
        raise
    except Exception as error:  # values of any type; and the tokenizers library raises bare Exception
        raise UnsupportedTokenizerError(
            "the GGUF file's tokenizer cannot be read", found=f"{type(error).__name__}: {error}", cure=_CURE
        ) from error


def _tokenizer(found: _Metadata, chat_template: object) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast  # most of a second, and needed by nobody who only lists models

    kind = found.required("model")
    if kind not in _BUILDERS:
        raise UnsupportedTokenizerError("the GGUF file's tokenizer is unknown", found=kind, allowed=sorted(_BUILDERS))
    if not isinstance(chat_template, str | None):
        raise UnsupportedTokenizerError("the GGUF file's tokenizer.chat_template is no text", cure=_CURE)
    tokenizer, adds_bos = _BUILDERS[kind](found)
    _add_special_tokens(tokenizer, found)
    named = found.tokens_named(_NAMED)
    adds_bos, adds_eos = found.get("add_bos_token", adds_bos), found.get("add_eos_token", False)
    for name, is_added in (("bos_token", adds_bos), ("eos_token", adds_eos)):
        if is_added and name not in named:
            raise UnsupportedTokenizerError(f"the GGUF file wants a {name} added, but names none", cure=_CURE)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        add_bos_token=adds_bos,
        add_eos_token=adds_eos,
        model_specific_special_tokens=found.tokens_named(_NAMED_ENDS),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        **named,
    )


class _Metadata:
    """The entries under `tokenizer.ggml`."""

    def __init__(self, metadata: Mapping[str, Any], *, types_are_sure: bool = False) -> None:
        self._metadata = metadata
        self.tokens: Sequence[str] = self.required("tokens")
        types: Sequence[int] = self.get("token_type", [NORMAL] * len(self.tokens))
        self.vocabulary = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.vocabulary) < len(self.tokens) or len(types) < len(self.tokens):
            raise UnsupportedTokenizerError(
                "the GGUF file's vocabulary is not sound",
                found=f"{len(self.tokens)} tokens, {len(self.vocabulary)} different, {len(types)} types",
                cure=_CURE,
            )
        self.named_ids = self._named_ids(types)
        self.types = types if types_are_sure else types_by_text(self.vocabulary, types, self.named_ids)

    def get(self, key: str, default: Any) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def required(self, key: str) -> Any:
        value = self.get(key, None)
        if value is None:
            raise UnsupportedTokenizerError(f"the GGUF file lacks tokenizer.ggml.{key}", cure=_CURE)
        return value

    def takes_white_space(self, token: str) -> bool:
        architecture, name = (str(self._metadata.get(f"general.{key}", "")) for key in ("architecture", "name"))
        return takes_white_space(token, architecture=architecture, kind=self.required("model"), name=name)

    def tokens_named(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Returns name -> token of those that the file names."""
        return {name: self.tokens[self.named_ids[key]] for name, key in keys.items() if key in self.named_ids}

    def _named_ids(self, types: Sequence[int]) -> dict[str, int]:
        """Returns the tokens that the file names by their ids, or that every file of its kind has."""
        prefix = "tokenizer.ggml."
        keys = [key.removeprefix(prefix) for key in self._metadata if key.startswith(prefix)]
        found = {key: self._metadata[prefix + key] for key in keys if key.endswith("_token_id")}
        for key, value in found.items():
            if type(value) is not int:
                raise UnsupportedTokenizerError(
                    f"the GGUF file's {prefix}{key} is no number of a token", found=repr(value), cure=_CURE
                )
        kind = self.required("model")
        defaults = _DEFAULT_IDS.get(kind, {}) if kind != "gpt2" or list(types[11:12]) == [CONTROL] else {}
        return {key: token for key, token in [*defaults.items(), *found.items()] if self._has(token)}

    def _has(self, token: int) -> bool:
        return 0 <= token < len(self.tokens)

    def of_type(self, *types: int) -> list[str]:
        return [token for token, type_ in zip(self.tokens, self.types, strict=False) if type_ in types]


def _byte_level(found: _Metadata) -> tuple[Tokenizer, bool]:
    name = found.required("pre")
    known = KNOWN_PRE_TOKENIZERS.get(name)
    if known is None:
        raise UnsupportedTokenizerError(
            "the GGUF file cuts text into words in an unknown way (tokenizer.ggml.pre)",
            found=name,
            allowed=", ".join(sorted(KNOWN_PRE_TOKENIZERS)),
        )
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in found.required("merges"))]
    tokenizer = Tokenizer(_bpe(found.vocabulary, merges, ignore_merges=known.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in known.splits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, known.adds_bos


def _sentencepiece(found: _Metadata) -> tuple[Tokenizer, bool]:
    pieces = found.of_type(NORMAL, USER_DEFINED)
    scores = dict(zip(found.tokens, found.required("scores"), strict=False))
    if len(scores) < len(found.tokens):
        raise UnsupportedTokenizerError(
            "the GGUF file's vocabulary has tokens without a score",
            found=f"{len(found.tokens)} tokens, {len(scores)} scores",
            cure=_CURE,
        )
    unknown = next(
        iter([*found.tokens_named({"unk_token": "unknown_token_id"}).values(), *found.of_type(_UNKNOWN)]), None
    )
    has_prefix = found.get("add_space_prefix", True)
    tokenizer = Tokenizer(
        _bpe(
            found.vocabulary,
            merges_by_score({piece: scores[piece] for piece in pieces}),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # As a normalizer, and not as the Metaspace pre-tokenizer, a space comes before every text between special tokens.
    prefix = [normalizers.Prepend("▁")] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return tokenizer, True


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], **settings: Any) -> BPE:
    try:
        with panics_as_exceptions():
            return BPE(vocabulary, merges, **settings)
    except Exception as error:  # the library raises nothing more precise
        raise UnsupportedTokenizerError("the GGUF file's merges do not fit its vocabulary", found=error) from error


def _add_special_tokens(tokenizer: Tokenizer, found: _Metadata) -> None:
    """Has control and user-defined tokens found in text before it is cut into words."""
    for types, special in (((CONTROL, _UNKNOWN), True), ((USER_DEFINED,), False)):
        tokenizer.add_tokens(
            [
                AddedToken(token, special=special, normalized=False, rstrip=found.takes_white_space(token))
                for token in found.of_type(*types)
                if token
            ]
        )
