"""What `pipezoo generate` does with a loaded model."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from pipezoo.cli.answer import Answer
from pipezoo.cli.answer_text import show_piece
from pipezoo_core.request import FinishReason, Prompt

if TYPE_CHECKING:
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["answer_prompt"]

_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}  # of control characters that JSON may hold
_MAX_NEW_TOKENS = 512  # where neither the user nor the model says: a small model may never end by itself


def answer_prompt(llm: TextGenerationPipeline, prompt: Prompt, *, as_json: bool, sampling: dict[str, Any]) -> None:
    """Prints the answer to one prompt: as text while it comes, or as one JSON object when it is there.

    Args:
        llm: answers.
        prompt: a text or a chat.
        as_json: the object has `text`, `finish_reason`, `stop_reason`, `usage` and `timing` of a
            `TextGenerationOutput`.
        sampling: settings that the user gave.
    """
    is_ours = "max_new_tokens" not in sampling and llm.sampling_params.max_new_tokens is None
    answer = Answer()
    limit = {"max_new_tokens": _MAX_NEW_TOKENS} if is_ours else {}
    answer.stream(llm, prompt, _ignore if as_json else show_piece, **sampling, **limit)
    typer.echo(_as_json(answer) if as_json else "")
    assert answer.last is not None, "what ends early raises"
    is_cut = answer.last.finish_reason is FinishReason.LENGTH and answer.num_tokens == _MAX_NEW_TOKENS
    if is_ours and not as_json and is_cut:
        typer.echo(f"Stopped after {_MAX_NEW_TOKENS} tokens; --max-new-tokens asks for more.", err=True)


def _ignore(_: str) -> None:
    """Shows nothing yet."""


def _as_json(answer: Answer) -> str:
    assert answer.last is not None, "what ends early raises"
    named = ("finish_reason", "stop_reason", "usage", "timing")
    content = {"text": answer.text, **{name: getattr(answer.last, name) for name in named}}
    return json.dumps(content, ensure_ascii=False, default=asdict).translate(_JSON_ESCAPES)
