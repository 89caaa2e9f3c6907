"""The tokens at which a model ends its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipezoo_core.errors import CorruptCheckpointError, shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["eos_token_ids"]

_TOKENIZER_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a sequence, a turn, a message


def eos_token_ids(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, generation_config: Mapping[str, Any]
) -> frozenset[int]:
    """Returns the tokenizer's end tokens and those of the generation config or, where it has none, of the config.

    The config comes last, as in transformers, because config classes have an end token of their own where the
    config.json names none.

    Args:
        tokenizer: may name the end of a sequence (EOS), and of a turn or a message, too.
        config: with `eos_token_id`, a number, a list, or None.
        generation_config: the parsed generation_config.json, or empty.

    Raises:
        CorruptCheckpointError: what either config names is no token.
    """
    of_model = generation_config.get("eos_token_id")
    if of_model is None:
        of_model = getattr(config, "eos_token_id", None)
    named = of_model if isinstance(of_model, list | tuple) else [of_model]
    for end in named:
        if end is not None and type(end) is not int:
            raise CorruptCheckpointError(
                "the config's eos_token_id is no number of a token",
                found=shown(end),
                allowed="a whole number, or several",
                cure="Correct it in generation_config.json, or in config.json.",
            )
    of_tokenizer = [getattr(tokenizer, name, None) for name in _TOKENIZER_ENDS]
    return frozenset(end for end in [*named, *of_tokenizer] if isinstance(end, int) and end >= 0)
