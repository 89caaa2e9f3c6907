"""The engine's process: `python -m pipezoo.serve.engine.process DESCRIPTOR`, which the server starts.

It has the pipeline and nothing else, so that no other thread of Python's keeps the steps from their lock. It ends when
the server's process is gone, and with it alone: a signal to end is the server's business, whoever else gets it, too.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import traceback
from queue import SimpleQueue

from pipezoo import registry
from pipezoo.serve.engine.channel import Channel
from pipezoo.serve.engine.kv_events import check_pages_suffice
from pipezoo.serve.engine.loop import EngineLoop, Inbox, counts_of
from pipezoo.serve.engine.messages import Load, LoadFailed, Loading, Ready, decode_to_engine, encode
from pipezoo_core.errors import PipezooError
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.weights import observed_weights

__all__ = ["main"]

_NUM_REPORTS = 100  # of a load


def main() -> None:
    """Loads the model that the first message names, and serves. An error ends the process, whatever threads it has."""
    try:
        _serve()
    except Exception:  # threads that still work would keep the process, and its socket, alive
        traceback.print_exc()
        os._exit(1)


def _serve() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not ignored, which the processes of other ranks would inherit
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    inbox: Inbox = SimpleQueue()
    first = channel.receive()
    if first is None:
        return
    threading.Thread(target=_read, args=(channel, inbox), daemon=True, name="pipezoo-messages").start()
    message = decode_to_engine(first)
    assert isinstance(message, Load), "a model is what comes first"
    pipeline = _load(message, channel)
    gc.collect()
    gc.freeze()  # what is there now stays: no collection between two steps looks through it
    channel.send(encode(_ready(pipeline)))
    EngineLoop(pipeline, channel, inbox, reports_pages=message.reports_pages).run()


def _read(channel: Channel, inbox: Inbox) -> None:
    while (data := channel.receive()) is not None:
        inbox.put(decode_to_engine(data))
    os._exit(0)  # whatever the other threads wait for


def _load(message: Load, channel: Channel) -> TextGenerationPipeline:
    num_reported = -1

    def report(num_done: int, num_all: int) -> None:
        nonlocal num_reported
        if (part := num_done * _NUM_REPORTS // max(1, num_all)) != num_reported:
            num_reported = part
            channel.send(encode(Loading(num_done, num_all)))

    try:
        with observed_weights(report):
            pipeline = registry.load(message.model, **message.settings)
        if message.reports_pages:
            check_pages_suffice(pipeline.model.kv_manager)
        return pipeline
    except Exception as error:  # is told to the server's process, which says it
        if not isinstance(error, PipezooError):
            traceback.print_exc()
        channel.send(encode(LoadFailed(error, list(getattr(error, "__notes__", [])))))
        sys.exit(1)


def _ready(pipeline: TextGenerationPipeline) -> Ready:
    config, lora_manager = pipeline.pipeline_config, pipeline.model.lora_manager
    return Ready(
        max_length=pipeline.tokenizer.max_length,
        max_batch_size=config.max_batch_size * len(pipeline.models),
        page_size=config.kv_cache.page_size,
        max_num_loras=0 if lora_manager is None else lora_manager.max_num_loras,
        adapters=pipeline.adapters,
        counts=counts_of(pipeline),
        num_replicas=len(pipeline.models),
    )


if __name__ == "__main__":
    main()
