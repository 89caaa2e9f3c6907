"""What tokens of a GGUF vocabulary are by their texts, because files often do not say.

Converters forget the end of a turn, or write a control token as an ordinary one. llama.cpp then goes by the texts, and
so do we; the lists are those of its `llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

__all__ = ["CONTROL", "NORMAL", "USER_DEFINED", "end_tokens", "takes_white_space", "types_by_text"]

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
}  # fmt: skip
# Of tokens between the parts of code that is filled in, by the key that names their id.
_FILL_IN_ENDS = {
    "fim_pad_token_id": {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"},
    "fim_rep_token_id": {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"},
    "fim_sep_token_id": {"<|file_sep|>"},
}
_OTHERS = {
    "eot_token_id": {"<｜end▁of▁sentence｜>"},
    "fim_pre_token_id": {
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"
    },
    "fim_suf_token_id": {
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"
    },
    "fim_mid_token_id": {
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"
    },
}  # fmt: skip
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id", *_FILL_IN_ENDS)
_TAKE_NO_WHITE_SPACE = {"<unk>", "<s>", "<|endoftext|>"}  # of Phi-3
_PHI3_NAMES = ("phi-3", "phi3")
_SHOWN = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}  # parts of an answer that readers take apart


def end_tokens(ids: Mapping[str, int], named: Mapping[str, int]) -> frozenset[int]:
    """Returns the tokens at which an answer ends.

    Args:
        ids: text -> token, the vocabulary.
        named: the tokens that the file names, `eos_token_id` and the like.
    """
    texts = _ENDS | _not_named({**_FILL_IN_ENDS, "eot_token_id": _OTHERS["eot_token_id"]}, named)
    ends = {named[key] for key in _END_KEYS if key in named} | {ids[text] for text in texts & ids.keys()}
    return frozenset(ends - {ids[text] for text in _no_ends(ids)})


def types_by_text(ids: Mapping[str, int], types: Sequence[int], named: Collection[str]) -> list[int]:
    """Returns the types of the tokens, where their texts say more than the file.

    Args:
        ids: text -> token, the vocabulary.
        types: of each token, as in the file.
        named: the keys under which the file names a token; of these, texts are not searched.
    """
    control = _ENDS | _not_named({**_FILL_IN_ENDS, **_OTHERS}, named)
    no_ends = _no_ends(ids)
    found = list(types)
    for type_, texts in (
        (CONTROL, control),
        (USER_DEFINED, _SHOWN | (no_ends & {"<|end|>"})),
        (NORMAL, no_ends & {"</s>"}),
    ):
        for text in texts & ids.keys():
            found[ids[text]] = type_
    return found


def takes_white_space(text: str, *, architecture: str, kind: str, name: str) -> bool:
    """Returns whether white space behind a special token belongs to the token, as behind most of Phi-3's.

    A file cannot say that. llama.cpp goes by the name, which not every copy of Phi-3 keeps.

    Args:
        text: the token's.
        architecture: `general.architecture`.
        kind: `tokenizer.ggml.model`; Phi-4, of the same architecture, has another than Phi-3.
        name: `general.name`.
    """
    is_phi3 = (architecture, kind) == ("phi3", "llama") or any(part in name.lower() for part in _PHI3_NAMES)
    return is_phi3 and text not in _TAKE_NO_WHITE_SPACE


def _not_named(texts: Mapping[str, set[str]], named: Collection[str]) -> set[str]:
    return {text for key, of_key in texts.items() if key not in named for text in of_key}


def _no_ends(ids: Mapping[str, int]) -> set[str]:
    """Returns the tokens that look like an end and are none, by the other tokens of the vocabulary."""
    has_calls = "<|call|>" in ids or "<|calls|>" in ids
    marks_parts = has_calls and ("<|return|>" in ids or "<|flush|>" in ids)
    no_ends = ({"<|end|>"} if marks_parts else set()) | ({"</s>"} if "<|tool_response>" in ids else set())
    return no_ends & ids.keys()
