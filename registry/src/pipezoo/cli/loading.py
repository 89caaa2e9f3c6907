"""Loads a model, and shows at a terminal how far it is. Downloads are shown by the Hub's own client."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pipezoo import registry

if TYPE_CHECKING:
    from rich.console import Console

    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["load_model"]


def load_model(model: str, **settings: Any) -> TextGenerationPipeline:
    """Does what `registry.load` does, and raises what it raises.

    Where standard error is a terminal, it shows how many weights are loaded and packed for the kernels.
    """
    if not sys.stderr.isatty():
        return registry.load(model, **settings)
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting PyTorch"):
        import pipezoo.loading.build  # noqa: F401  # takes seconds

    return _load_with_bar(console, model, settings)


def _load_with_bar(console: Console, model: str, settings: dict[str, Any]) -> TextGenerationPipeline:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from pipezoo_core.weights import observed_weights

    columns = TextColumn("loading and packing weights"), BarColumn(), TaskProgressColumn()
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("weights")

    def show(num_done: int, num_all: int) -> None:
        bar.start()  # not before: a download has bars of its own
        bar.update(task, completed=num_done, total=num_all)

    try:
        with observed_weights(show):
            return registry.load(model, **settings)
    finally:
        bar.stop()
