"""The commands. Each imports what it needs when it runs, so that `pipezoo plugins` answers at once."""

from __future__ import annotations

import importlib.metadata
import io
import sys
from typing import Annotated

import typer

from pipezoo import registry
from pipezoo.cli import options
from pipezoo.cli.failures import errors_as_text
from pipezoo.cli.new_plugin import new_plugin
from pipezoo.cli.options import LORA_NAME, model_settings, sampling_settings
from pipezoo.cli.plugins import doctor, plugins
from pipezoo.cli.quantize import quantize
from pipezoo.cli.serve import serve
from pipezoo.cli.why import why

__all__ = ["app"]

app = typer.Typer(
    help="Run language models whose plugins are installed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


app.command()(plugins)
app.command()(doctor)
app.command()(why)


@app.command()
def models() -> None:
    """List the models in the Hub's cache, with their sizes and the plugins that serve them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipezoo.cli.cached_models import cached_models

    with errors_as_text():
        found = list(cached_models())
    console = Console()
    if not found:
        console.print("The Hub's cache holds no models. pipezoo info org/model downloads one.", markup=False)
        return
    table = Table("model", "size", "plugin")
    for model in found:
        table.add_row(*map(Text, (model.name, f"{model.num_bytes / 2**20:,.1f} MiB", model.plugin)))
    console.print(table)


@app.command()
def check(
    distribution: Annotated[str, typer.Argument(help="A plugin that is installed, such as pipezoo-llama.")],
    reference: Annotated[
        str | None,
        typer.Option(help="The reference implementation, as module:Class; by default what transformers has."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A check to run; give it again for another.")] = None,
    model_type: Annotated[
        list[str] | None, typer.Option("--type", help="A model_type to check; by default all that the plugin claims.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per check.")] = False,
) -> None:
    """Check a plugin against its reference implementation, on tiny configs with random weights."""
    from pipezoo.cli.check import check_plugin

    with errors_as_text():
        is_right = check_plugin(
            distribution, reference=reference, only=only or (), model_types=model_type or (), as_json=as_json
        )
    if not is_right:
        raise typer.Exit(1)


@app.command()
def info(
    model: options.Model,
    revision: options.Revision = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    dtype: options.Dtype = "auto",
    max_length: options.MaxLength = None,
    kv_cache_memory: options.KVCacheMemory = None,
    lora: options.LoRA = None,
) -> None:
    """Show config, plugin, settings in force and memory plan.

    Downloads the model, and of its weights reads only the headers.
    """
    from rich.console import Console

    from pipezoo.cli.info import tables

    settings = model_settings(max_length=max_length, kv_cache_memory=kv_cache_memory, lora=lora, devices=devices)
    with errors_as_text():
        resolution = registry.resolve(model, revision=revision, plugin=plugin)
        plan = registry.plan(model, revision=revision, plugin=plugin, device=device, dtype=dtype, **settings)
    Console().print(*tables(resolution, plan), sep="\n")


@app.command()
def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="Text to complete; - reads it from standard input.")],
    revision: options.Revision = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    dtype: options.Dtype = "auto",
    max_length: options.MaxLength = None,
    kv_cache_memory: options.KVCacheMemory = None,
    load_cache: options.LoadCache = False,
    lora: options.LoRA = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    json_schema: options.JSONSchema = None,
    regex: options.Regex = None,
    grammar: options.Grammar = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask by the model's chat template.")] = False,
    as_json: options.JSON = False,
) -> None:
    """Complete a text, with 512 new tokens at most unless told otherwise; with --chat, answer it as a message."""
    from pipezoo.cli.generation import answer_prompt
    from pipezoo.cli.loading import load_model
    from pipezoo.cli.text_input import prompt_text
    from pipezoo_core.local_file import text_or_file

    settings = model_settings(
        max_length=max_length, kv_cache_memory=kv_cache_memory, lora=lora, devices=devices, load_cache=load_cache
    )
    with errors_as_text():
        sampling = sampling_settings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
            json_schema=json_schema and text_or_file(json_schema),
            regex=regex,
            grammar=grammar and text_or_file(grammar),
        )
        text = prompt_text(prompt)
        llm = load_model(model, revision=revision, plugin=plugin, device=device, dtype=dtype, **settings)
        if lora is not None:
            sampling["lora"] = LORA_NAME
        asked = [{"role": "user", "content": text}] if chat else text
        answer_prompt(llm, asked, as_json=as_json, sampling=sampling)


@app.command()
def chat(
    model: options.ModelOrServed = None,
    revision: options.Revision = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    dtype: options.Dtype = "auto",
    max_length: options.MaxLength = None,
    kv_cache_memory: options.KVCacheMemory = None,
    load_cache: options.LoadCache = False,
    lora: options.LoRA = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    system: options.System = None,
    verbose: options.Verbose = False,
    url: options.URL = None,
) -> None:
    """Talk to a model. /help lists what else it understands; Ctrl-C stops an answer, Ctrl-D ends.

    Where standard input or output is no terminal, each line is a message, and only the answers are printed. With --url
    a running server answers, and nothing is loaded; its API key, if it wants one, is read from PIPEZOO_API_KEY.
    """
    from pipezoo.cli.chat import ChatSession
    from pipezoo.cli.chat_source import loaded_model, served_model
    from pipezoo.cli.line_input import line_input

    if model is None and url is None:
        raise typer.BadParameter("there is no model to talk to. Name one, or give --url.", param_hint="MODEL")
    settings = model_settings(
        max_length=max_length, kv_cache_memory=kv_cache_memory, lora=lora, devices=devices, load_cache=load_cache
    )
    with errors_as_text():
        sampling = sampling_settings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
        )
        choice = {"revision": revision, "plugin": plugin, "device": device, "dtype": dtype, **settings}
        answering = served_model(url, model, choice) if url is not None else loaded_model(model, choice)
        session = ChatSession(answering, system=system, sampling=sampling, is_verbose=verbose)
        if not session.run(line_input()):
            raise typer.Exit(1)


app.command()(quantize)
app.command("new-plugin")(new_plugin)
app.command()(serve)
