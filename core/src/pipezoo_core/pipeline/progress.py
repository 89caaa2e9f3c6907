"""How many answers are there, as a bar in the terminal."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pipezoo_core.request import TextGenerationOutput

__all__ = ["with_progress"]


def with_progress(
    steps: Iterator[list[TextGenerationOutput]], num_answers: int
) -> Generator[list[TextGenerationOutput]]:
    """Yields what the steps yield, and shows on standard error how far they are, if that is a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    num_tokens = 0
    with tqdm(total=num_answers, unit="answer", disable=None) as bar:
        for outputs in steps:
            yield outputs
            num_tokens += sum(len(output.tokens) for output in outputs)
            bar.set_postfix(tokens=num_tokens, refresh=False)
            bar.update(sum(output.is_done for output in outputs))
