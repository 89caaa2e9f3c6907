"""The command that rounds a model's weights and writes them to a folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipezoo.cli import options
from pipezoo.cli.failures import errors_as_text

__all__ = ["quantize"]


def quantize(
    model: options.Model,
    out: Annotated[Path, typer.Argument(help="The folder to write, which does not exist yet.")],
    dtype: Annotated[str, typer.Option(help="int8 or int4.")] = "int4",
    revision: options.Revision = None,
    plugin: options.Plugin = None,
) -> None:
    """Write a model with weights of 8 or 4 bits, which loads as fast as it is read.

    It computes what the model does that is loaded with this --dtype.
    """
    from pipezoo import registry
    from pipezoo.cli.loading import weights_bar

    with _ended_by_signals(), errors_as_text(), weights_bar("rounding and writing weights"):
        sizes = registry.quantize(model, out, dtype=dtype, revision=revision, plugin=plugin)
    typer.echo(f"{out}: weights of {_size(sizes.after)}, before {_size(sizes.before)}")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets signals that would end the process at once end it like an interrupt, so that no half of a folder stays."""

    def end(number: int, _: object) -> None:
        for other in ending:  # the first one's cleaning up goes on
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    ending = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ending:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
