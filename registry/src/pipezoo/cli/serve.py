"""The command that serves a model over HTTP."""

from __future__ import annotations

from pipezoo.cli import options
from pipezoo.cli.failures import errors_as_text
from pipezoo.cli.options import model_settings

__all__ = ["serve"]


def serve(
    model: options.Model,
    revision: options.Revision = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    dtype: options.Dtype = "auto",
    max_length: options.MaxLength = None,
    kv_cache_memory: options.KVCacheMemory = None,
    load_cache: options.LoadCache = False,
    lora: options.LoRAs = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    served_model_name: options.ServedModelName = None,
    max_batch_size: options.MaxBatchSize = None,
    speculative: options.Speculative = "off",
    max_queue: options.MaxQueue = 1024,
    api_key_file: options.APIKeyFile = None,
    cors_origin: options.CORSOrigin = None,
    enable_adapters: options.EnableAdapters = False,
    on_engine_death: options.OnEngineDeath = "restart",
    shutdown_timeout: options.ShutdownTimeout = 30.0,
    metrics_prefix: options.MetricsPrefix = "vllm:",
    otlp_traces_endpoint: options.OTLPTracesEndpoint = None,
    kv_events_endpoint: options.KVEventsEndpoint = None,
    kv_events_replay_endpoint: options.KVEventsReplayEndpoint = None,
    kv_events_topic: options.KVEventsTopic = "",
    log_format: options.LogFormat = "text",
) -> None:
    """Serve a model over HTTP, as OpenAI's clients know it; needs the extra `serve` of pipezoo."""
    from pipezoo.cli.serving import serve_model

    settings = model_settings(
        max_length=max_length, kv_cache_memory=kv_cache_memory, lora=None, devices=devices, load_cache=load_cache
    )
    settings["speculative"] = speculative
    if max_batch_size is not None:
        settings["max_batch_size"] = max_batch_size
    if lora:
        settings["lora_paths"] = lora
    with errors_as_text():
        serve_model(
            model,
            {"revision": revision, "plugin": plugin, "device": device, "dtype": dtype, **settings},
            api_key_file=api_key_file,
            host=host,
            port=port,
            served_model_names=served_model_name or (),
            max_queue=max_queue,
            cors_origins=cors_origin or (),
            enable_adapters=enable_adapters,
            on_engine_death=on_engine_death,
            shutdown_timeout=shutdown_timeout,
            metrics_prefix=metrics_prefix,
            otlp_traces_endpoint=otlp_traces_endpoint,
            kv_events_endpoint=kv_events_endpoint,
            kv_events_replay_endpoint=kv_events_replay_endpoint,
            kv_events_topic=kv_events_topic,
            log_format=log_format,
        )
