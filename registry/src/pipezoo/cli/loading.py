"""Loads a model, and shows at a terminal how far it is. Downloads are shown by the Hub's own client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipezoo import registry

if TYPE_CHECKING:
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["load_model", "weights_bar"]


def load_model(model: str, **settings: Any) -> TextGenerationPipeline:
    """Does what `registry.load` does, and raises what it raises.

    Where standard error is a terminal, it shows how many weights are loaded and packed for the kernels.
    """
    with weights_bar("loading and packing weights"):
        return registry.load(model, **settings)


@contextmanager
def weights_bar(text: str) -> Iterator[None]:
    """Shows on standard error, where it is a terminal, how far the weights are that are loaded or written inside."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    with console.status("starting PyTorch"):  # which takes seconds
        from pipezoo_core.weights import observed_weights

    columns = TextColumn(text), BarColumn(), TaskProgressColumn()
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("weights")

    def show(num_done: int, num_all: int) -> None:
        bar.start()  # not before: a download has bars of its own
        bar.update(task, completed=num_done, total=num_all)

    try:
        with observed_weights(show):
            yield
    finally:
        bar.stop()
