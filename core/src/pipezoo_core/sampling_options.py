"""The settings of `SamplingParams` as keywords of a call, for type checkers and editors. Knows no values' bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

__all__ = ["SamplingOptions"]


class SamplingOptions(TypedDict, total=False):
    """Sampling settings by keyword; `SamplingParams` says what each of them means."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    max_new_tokens: int | None
    min_new_tokens: int
    ignore_eos: bool
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    seed: int | None
    log_probabilities: int | None
    echo: bool
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None
    choice: Sequence[str] | None
    n: int
    bad_words: str | Sequence[str]
    allowed_token_ids: Sequence[int] | None
    logits_processors: Callable[[Sequence[int], Any], Any] | Sequence[Callable[[Sequence[int], Any], Any]]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    truncate_prompt_tokens: int | None
    cache_salt: str | None
    priority: int
