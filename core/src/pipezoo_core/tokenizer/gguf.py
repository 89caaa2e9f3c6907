"""A tokenizer out of a GGUF file's metadata. Knows the keys and their meaning, not the file.

Two models are read: `gpt2`, byte-level BPE, and `llama`, SentencePiece BPE with byte fallback. What the metadata
leaves open is as in llama.cpp, the reference for this format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.tokenizer.gguf_pre_tokenizers import KNOWN_PRE_TOKENIZERS
from pipezoo_core.tokenizer.merges import merges_by_score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["tokenizer_from_gguf"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_NAMED_ENDS = {"eot_token": "eot_token_id", "eom_token": "eom_token_id"}
_CURE = "Convert the model again with a current converter."


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Builds the tokenizer that a GGUF file describes.

    Ends of a turn or a message, where the file names them, become `eot_token` and `eom_token`.

    Args:
        metadata: key -> value, as in the file, e.g. `tokenizer.ggml.model` -> "gpt2".

    Raises:
        UnsupportedTokenizerError: the model or the pre-tokenizer is unknown, or a key is missing or does not fit.
    """
    try:
        return _tokenizer(_Metadata(metadata), metadata.get("tokenizer.chat_template"))
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

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: Sequence[str] = self.required("tokens")
        self.types: Sequence[int] = self.get("token_type", [_NORMAL] * len(self.tokens))
        self.vocabulary = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.vocabulary) < len(self.tokens) or len(self.types) < len(self.tokens):
            raise UnsupportedTokenizerError(
                "the GGUF file's vocabulary is not sound",
                found=f"{len(self.tokens)} tokens, {len(self.vocabulary)} different, {len(self.types)} types",
                cure=_CURE,
            )

    def get(self, key: str, default: Any) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def required(self, key: str) -> Any:
        value = self.get(key, None)
        if value is None:
            raise UnsupportedTokenizerError(f"the GGUF file lacks tokenizer.ggml.{key}", cure=_CURE)
        return value

    def tokens_named(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Returns name -> token of those that the file has."""
        ids = {name: self._token_id(key) for name, key in keys.items()}
        return {name: self.tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(self.tokens)}

    def _token_id(self, key: str) -> int | None:
        value = self.get(key, None)
        if not isinstance(value, int | None):
            raise UnsupportedTokenizerError(
                f"the GGUF file's tokenizer.ggml.{key} is no number of a token", found=repr(value), cure=_CURE
            )
        return value

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
    pieces = found.of_type(_NORMAL, _USER_DEFINED)
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
        return BPE(vocabulary, merges, **settings)
    except Exception as error:  # the library raises nothing more precise
        raise UnsupportedTokenizerError("the GGUF file's merges do not fit its vocabulary", found=error) from error


def _add_special_tokens(tokenizer: Tokenizer, found: _Metadata) -> None:
    """Has control and user-defined tokens found in text before it is cut into words."""
    for types, special in (((_CONTROL, _UNKNOWN), True), ((_USER_DEFINED,), False)):
        tokenizer.add_tokens(
            [AddedToken(token, special=special, normalized=False) for token in found.of_type(*types) if token]
        )
