"""How much longer a tokenizer.json makes a text before it cuts it into words, and after it has joined its tokens.

Forty replacements of `a` by `aa`, one after the other, make 2^40 letters of one. Such a file is refused when it is
loaded, because a library at work on them cannot be interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from pipezoo_core.errors import UnsupportedTokenizerError

__all__ = ["check_growth"]

_MOST = 64  # those of models that are in use: 2


def check_growth(tokenizer: Tokenizer) -> None:
    """Checks that a tokenizer makes no text much longer.

    Raises:
        UnsupportedTokenizerError: its normalizer or its decoder may.
    """
    for name, part in (("normalizer", tokenizer.normalizer), ("decoder", tokenizer.decoder)):
        growth = 1.0
        for step in _steps(json.loads(part.__getstate__())) if part is not None else ():
            growth = min(growth * _growth(step), 1e9)
        if growth > _MOST:
            raise UnsupportedTokenizerError(
                f"the tokenizer's {name} may make a text much longer",
                found=f"{growth:.0f} times as long",
                allowed=f"at most {_MOST} times",
            )


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for step in part.get("normalizers") or part.get("decoders") or [part]:
        if step is part:
            yield part
        else:
            yield from _steps(step)


def _growth(step: dict[str, Any]) -> float:
    """Returns how many times as long a text of at least one character becomes, at most."""
    if step.get("type") == "Prepend":
        return 1.0 + len(step["prepend"])
    if step.get("type") != "Replace":
        return 1.0
    literal = step["pattern"].get("String")
    if literal:
        return max(1.0, len(step["content"]) / len(literal))
    return 1.0 + len(step["content"])  # an expression may match between any two characters
