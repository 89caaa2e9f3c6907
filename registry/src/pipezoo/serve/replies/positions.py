"""Log probabilities by token, out of those by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import TypedDict

from pipezoo_core.request import LogProbabilities, TextGenerationOutput

__all__ = ["Position", "PromptLogprob", "positions_of", "prompt_logprobs"]


class PromptLogprob(TypedDict):
    """How likely a token of the prompt was."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass(frozen=True, slots=True)
class Position:
    """A token, how likely it was, and which were the most likely in its place.

    Attributes:
        token: its id.
        text: its text.
        logprob: the natural logarithm of its probability.
        rank: its place among all tokens, from 1 on; None where the model's own computation gives none.
        top: id, text and log probability of the most likely tokens, the most likely first, and of the token itself,
            last where it is none of them.
    """

    token: int
    text: str
    logprob: float
    rank: int | None
    top: Sequence[tuple[int, str, float]]

    def most_likely(self, count: int, *, with_itself: bool = False) -> list[tuple[int, str, float]]:
        """Returns so many of the most likely tokens, and the token itself where it is to be among them."""
        found = [*self.top[:count]]
        if with_itself and all(token != self.token for token, _, _ in found):
            found.append((self.token, self.text, self.logprob))
        return found


def positions_of(output: TextGenerationOutput, prompt: Sequence[int]) -> tuple[list[Position], list[Position]]:
    """Returns the positions of the prompt, from its second token on, where the output has them, and of the answer.

    Args:
        output: of a step or several.
        prompt: the prompt's tokens.
    """
    before: list[Position] = []
    own: list[Position] = []
    for token, entry in zip(output.tokens, output.log_probabilities or (), strict=False):
        num_before = len(entry.token_log_probabilities) - 1
        found = _positions(entry, [*prompt[len(prompt) - num_before :], token])
        before += found[:-1]
        own.append(found[-1])
    return before, own


def prompt_logprobs(positions: Sequence[Position], count: int) -> list[dict[str, PromptLogprob] | None]:
    """Returns what the field `prompt_logprobs` of a response has: nothing for the first token, which nothing precedes.

    Args:
        positions: of the prompt from its second token on.
        count: how many of the most likely tokens to list.
    """

    def of(position: Position) -> dict[str, PromptLogprob]:
        found = position.most_likely(count, with_itself=True)
        return {
            str(token): PromptLogprob(
                logprob=logprob, rank=position.rank if token == position.token else place, decoded_token=text
            )
            for place, (token, text, logprob) in enumerate(found, start=1)
        }

    return [None, *map(of, positions)]


def _positions(entry: LogProbabilities, tokens: Sequence[int]) -> list[Position]:
    texts = entry.token_texts
    return [
        Position(
            token,
            texts[token],
            logprob,
            entry.token_ranks[place] if entry.token_ranks else None,
            [(other, texts[other], value) for other, value in top.items()],
        )
        for place, (token, logprob, top) in enumerate(
            zip(tokens, entry.token_log_probabilities, entry.top_log_probabilities, strict=True)
        )
    ]
