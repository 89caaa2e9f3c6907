"""The options that commands share, as typer reads them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = [
    "JSON",
    "LORA_NAME",
    "URL",
    "APIKeyFile",
    "CORSOrigin",
    "Device",
    "Devices",
    "Dtype",
    "EnableAdapters",
    "Grammar",
    "Host",
    "JSONSchema",
    "KVCacheMemory",
    "LoRA",
    "LoRAs",
    "LoadCache",
    "LogFormat",
    "MaxBatchSize",
    "MaxLength",
    "MaxNewTokens",
    "MaxQueue",
    "MetricsPrefix",
    "MinP",
    "Model",
    "ModelOrServed",
    "OTLPTracesEndpoint",
    "OnEngineDeath",
    "Plugin",
    "Port",
    "Regex",
    "RepetitionPenalty",
    "Revision",
    "Seed",
    "ServedModelName",
    "ShutdownTimeout",
    "Speculative",
    "Stop",
    "System",
    "Temperature",
    "TopK",
    "TopP",
    "Verbose",
    "model_settings",
    "sampling_settings",
]

LORA_NAME = "lora"
"""What the adapter of `--lora` is called in requests."""

_MODEL = "A Hub id, a folder, a .gguf file, or pkg:NAME."
Model = Annotated[str, typer.Argument(help=_MODEL, show_default=False)]
ModelOrServed = Annotated[
    str | None, typer.Argument(help=f"{_MODEL} With --url, a name that the server has.", show_default=False)
]
URL = Annotated[str | None, typer.Option("--url", help="Talk to a running server, such as http://127.0.0.1:8000.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Plugin = Annotated[str | None, typer.Option(help="Distribution to take where several serve the model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, or a GPU such as cuda:0.")]
Devices = Annotated[str | None, typer.Option(help="Several that compute together, such as cuda:0,cuda:1.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, int8, int4 or packed.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of prompt and answer together.")]
KVCacheMemory = Annotated[str | None, typer.Option(help="Memory for the KV cache, such as 2GiB.")]
LoadCache = Annotated[bool, typer.Option("--load-cache", help="Keep packed weights for the next start.")]
LoRA = Annotated[str | None, typer.Option(help="Adapter to answer with: a folder that PEFT saved, or a Hub id.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the most likely token.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens up to this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the most likely tokens.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens less likely than this times the most likely one.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1, tokens that were there become less likely.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; give it again for another.")]
Seed = Annotated[int | None, typer.Option(help="Makes the answer repeatable.")]
JSONSchema = Annotated[str | None, typer.Option(help="Answer in JSON of this schema; a schema, or a file with one.")]
Regex = Annotated[str | None, typer.Option(help="Answer with what this regular expression matches.")]
Grammar = Annotated[str | None, typer.Option(help="Answer by this Lark grammar; a grammar, or a file with one.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object: text, why it ended, counts, seconds.")]
System = Annotated[str | None, typer.Option(help="What the model is told before the chat.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say after each answer how fast it was.")]

LoRAs = Annotated[
    list[str] | None,
    typer.Option("--lora", help="Adapter for requests: NAME=PATH; again for another."),
]
Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of the machine.")]
Port = Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")]
ServedModelName = Annotated[list[str] | None, typer.Option(help="What clients call the model; again for another name.")]
MaxBatchSize = Annotated[int | None, typer.Option(help="Most answers that are worked on at the same time.")]
Speculative = Annotated[str, typer.Option(help="lookup verifies drafts, from what is in prompt and answer; or off.")]
MaxQueue = Annotated[int, typer.Option(help="Most answers that wait beside those; further ones are refused.")]
APIKeyFile = Annotated[str | None, typer.Option(help="File with the keys that clients need, one a line.")]
CORSOrigin = Annotated[list[str] | None, typer.Option(help="Web page that may ask, or *; again for another.")]
EnableAdapters = Annotated[bool, typer.Option("--enable-adapters", help="Let clients load and unload LoRA adapters.")]
OnEngineDeath = Annotated[str, typer.Option(help="restart the engine when its process dies, or exit.")]
MetricsPrefix = Annotated[str, typer.Option(help="What the names at /metrics begin with.")]
OTLPTracesEndpoint = Annotated[
    str | None, typer.Option(help="Where traces go, as http://localhost:4318/v1/traces. Needs the extra `otel`.")
]
KVEventsEndpoint = Annotated[
    str | None,
    typer.Option(help="Where KV events are published, as tcp://127.0.0.1:5557. Needs the extra `kv-events`."),
]
KVEventsReplayEndpoint = Annotated[str | None, typer.Option(help="Where past KV events are given out again.")]
KVEventsTopic = Annotated[str, typer.Option(help="What KV events are published under.")]
LogFormat = Annotated[str, typer.Option(help="text for warnings, or json for a line for each request, too.")]
ShutdownTimeout = Annotated[float, typer.Option(help="Seconds that answers get to end when the server is to.")]


def _given(**options: Any) -> dict[str, Any]:
    """Returns the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def sampling_settings(**options: Any) -> dict[str, Any]:
    """Returns the settings of `SamplingParams` that the user gave, before a model is downloaded or loaded for them.

    Raises:
        InvalidSettingError: one is not valid.
        InvalidGrammarError: the schema, the regular expression or the grammar cannot be used with any model.
        MissingDependencyError: one of these is given, and llguidance is not installed.
    """
    from pipezoo_core.sampling_params import SamplingParams
    from pipezoo_core.structured_output import check_constraint

    settings = _given(**options)
    check_constraint(SamplingParams(**settings))
    return settings


def model_settings(
    *,
    max_length: int | None,
    kv_cache_memory: str | None,
    lora: str | None,
    devices: str | None,
    load_cache: bool = False,
) -> dict[str, Any]:
    """Returns what these options mean as settings of `registry.load`."""
    return _given(
        max_length=max_length,
        kv_cache_memory=kv_cache_memory,
        lora_paths=None if lora is None else [f"{LORA_NAME}={lora}"],
        devices=None if devices is None else devices.split(","),
        load_cache=load_cache or None,
    )
