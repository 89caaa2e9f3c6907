"""Loads damaged copies of a model, one after the other, and prints a line of JSON for each.

A process of its own, whose memory is limited: what ends it is the case that it named last.
"""

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

from mutations import mutated

from pipezoo import registry
from pipezoo_core.errors import PipezooError

SETTINGS = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "1MiB"}


def load(folder, name):
    adapter = name.startswith("adapter/")
    model = folder / name if name.endswith(".gguf") else folder / ("model" if adapter else Path(name).parent)
    settings = {**SETTINGS, "lora_paths": [f"a={folder / 'adapter'}"]} if adapter else SETTINGS
    llm = registry.load(model, **settings)
    llm.generate("hi", max_new_tokens=1)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main(base, work):
    load(base, "model/config.json")
    limit = peak() + (2 << 30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for line in sys.stdin:
        name, number = json.loads(line)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)
        path = work / name
        path.write_bytes(mutated(path.read_bytes(), name, number))
        before, began, outcome = peak(), time.process_time(), "loaded"
        print(json.dumps({"begins": [name, number]}), flush=True)
        try:
            load(work, name)
        except PipezooError as error:
            outcome = "typed" if str(error) else "no message"
        except BaseException as error:
            outcome = f"untyped {type(error).__name__}: {str(error)[:200]!a}"
        seconds = time.process_time() - began
        print(json.dumps({"outcome": outcome, "seconds": seconds, "grown": peak() - before}), flush=True)


os.environ["HF_HUB_OFFLINE"] = "1"
main(Path(sys.argv[1]), Path(sys.argv[2]))
