"""How many tokens a request took, in the words of clients."""

from __future__ import annotations

from typing_extensions import TypedDict

from pipezoo_core.request import TextGenerationOutput

__all__ = ["PromptTokensDetails", "Usage", "UsageCount"]


class PromptTokensDetails(TypedDict):
    """Of the prompt's tokens, those that were in the prefix cache."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens of a request: those of its prompts, each counted once, and those of all its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class UsageCount:
    """Adds up what the answers to a request took."""

    def __init__(self) -> None:
        self._num_prompt = self._num_cached = self._num_generated = 0

    def add(self, output: TextGenerationOutput) -> None:
        """Adds an answer that has ended, by its last output; of several to one prompt, the first has the prompt's."""
        if output.usage is None:
            return
        if output.index == 0:
            self._num_prompt += output.usage.num_prompt_tokens
            self._num_cached += output.usage.num_cached_tokens
        self._num_generated += output.usage.num_generated_tokens

    def total(self) -> Usage:
        """Returns the sums."""
        return Usage(
            prompt_tokens=self._num_prompt,
            completion_tokens=self._num_generated,
            total_tokens=self._num_prompt + self._num_generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._num_cached),
        )
