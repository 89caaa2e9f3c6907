"""The commands. Each imports what it needs when it runs, so that `pipezoo plugins` answers at once."""

from __future__ import annotations

import importlib.metadata
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from pipezoo import registry

__all__ = ["app"]

app = typer.Typer(
    help="Run language models whose plugins are installed.", no_args_is_help=True, pretty_exceptions_enable=False
)

_LORA_NAME = "lora"

Model = Annotated[str, typer.Argument(help="A Hub id, a folder, a .gguf file, or pkg:NAME.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Plugin = Annotated[str | None, typer.Option(help="Distribution to take where several serve the model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, or a GPU such as cuda:0.")]
Devices = Annotated[str | None, typer.Option(help="Several that compute together, such as cuda:0,cuda:1.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, int8 or int4.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of prompt and answer together.")]
KVCacheMemory = Annotated[str | None, typer.Option(help="Memory for the KV cache, such as 2GiB.")]
LoRA = Annotated[str | None, typer.Option(help="Adapter to answer with: a folder that PEFT saved, or a Hub id.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the most likely token.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens up to this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the most likely tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes the answer repeatable.")]
JSONSchema = Annotated[str | None, typer.Option(help="Answer in JSON of this schema; a schema, or a file with one.")]
Regex = Annotated[str | None, typer.Option(help="Answer with what this regular expression matches.")]
Grammar = Annotated[str | None, typer.Option(help="Answer by this Lark grammar; a grammar, or a file with one.")]
System = Annotated[str | None, typer.Option(help="What the model is told before the chat.")]


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(importlib.metadata.version("pipezoo"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has shown it
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # a terminal may know fewer characters than a model
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@app.command()
def plugins() -> None:
    """List the installed plugins and their state."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with _errors_as_text():
        found = registry.plugins()
    console = Console()
    if not found:
        console.print("No plugins are installed. Try: pip install pipezoo-llama", markup=False)
        return
    table = Table("model type", "plugin", "version", "state", "reason")
    for info in found:
        cells = (info.name, info.distribution, info.version, str(info.state), info.reason or "")
        table.add_row(*map(Text, cells))  # as text, brackets are not taken for markup
    console.print(table)


@app.command()
def why(model: Model, revision: Revision = None, plugin: Plugin = None) -> None:
    """Say which plugin a model gets, and why."""
    with _errors_as_text():
        typer.echo(registry.resolve(model, revision=revision, plugin=plugin))


@app.command()
def info(
    model: Model,
    revision: Revision = None,
    plugin: Plugin = None,
    device: Device = "auto",
    devices: Devices = None,
    dtype: Dtype = "auto",
    max_length: MaxLength = None,
    kv_cache_memory: KVCacheMemory = None,
    lora: LoRA = None,
) -> None:
    """Show config, plugin, settings in force and memory plan.

    Downloads the model, and of its weights reads only the headers.
    """
    from rich.console import Console

    from pipezoo.cli.info import tables

    with _errors_as_text():
        resolution = registry.resolve(model, revision=revision, plugin=plugin)
        settings = _given(
            max_length=max_length,
            kv_cache_memory=kv_cache_memory,
            lora_paths=_one_adapter(lora),
            devices=_names(devices),
        )
        plan = registry.plan(model, revision=revision, plugin=plugin, device=device, dtype=dtype, **settings)
    Console().print(*tables(resolution, plan), sep="\n")


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="Text to complete; - reads it from standard input.")],
    revision: Revision = None,
    plugin: Plugin = None,
    device: Device = "auto",
    devices: Devices = None,
    dtype: Dtype = "auto",
    max_length: MaxLength = None,
    kv_cache_memory: KVCacheMemory = None,
    lora: LoRA = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    json_schema: JSONSchema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask by the model's chat template.")] = False,
) -> None:
    """Complete a text; with --chat, answer it as a message."""
    with _errors_as_text():
        settings = _given(
            max_length=max_length,
            kv_cache_memory=kv_cache_memory,
            lora_paths=_one_adapter(lora),
            devices=_names(devices),
        )
        llm = registry.load(model, revision=revision, plugin=plugin, device=device, dtype=dtype, **settings)
        text = sys.stdin.read() if prompt == "-" else prompt
        sampling = _given(
            lora=lora and _LORA_NAME,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            json_schema=_text_or_file(json_schema),
            regex=regex,
            grammar=_text_or_file(grammar),
        )
        for piece in llm.stream([{"role": "user", "content": text}] if chat else text, **sampling):
            typer.echo(piece, nl=False)
        typer.echo()


@app.command()
def chat(
    model: Model,
    revision: Revision = None,
    plugin: Plugin = None,
    device: Device = "auto",
    devices: Devices = None,
    dtype: Dtype = "auto",
    max_length: MaxLength = None,
    kv_cache_memory: KVCacheMemory = None,
    lora: LoRA = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    system: System = None,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, /reset begins anew, /exit or Ctrl-D ends."""
    from pipezoo.cli.chat import ChatSession

    with _errors_as_text():
        settings = _given(
            max_length=max_length,
            kv_cache_memory=kv_cache_memory,
            lora_paths=_one_adapter(lora),
            devices=_names(devices),
        )
        llm = registry.load(model, revision=revision, plugin=plugin, device=device, dtype=dtype, **settings)
        sampling = _given(
            lora=lora and _LORA_NAME,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        ChatSession(llm, system=system, sampling=sampling).run()


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _names(devices: str | None) -> list[str] | None:
    return None if devices is None else devices.split(",")


def _one_adapter(lora: str | None) -> list[str] | None:
    return None if lora is None else [f"{_LORA_NAME}={lora}"]


def _text_or_file(value: str | None) -> str | None:
    """Returns the contents of the file that the value names, or the value itself where there is no such file."""
    from pipezoo_core.local_file import text_or_file

    return None if value is None else text_or_file(value)


@contextmanager
def _errors_as_text() -> Iterator[None]:
    """Prints errors that are meant for users as text, and ends with status 1; others keep their traceback."""
    from pipezoo_core.errors import PipezooError

    try:
        yield
    except PipezooError as error:
        typer.secho("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error
