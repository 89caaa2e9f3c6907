"""MAX's server, asked over HTTP for the completions of a list of token lists. On a CPU it computes in float32 only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from peers import Prompts

WEIGHTS = {"float32": "safetensors"}
MAX_BATCH_SIZE = 32
MEMORY_SHARE = 0.3  # of the machine's, for weights and KV cache


class Engine:
    def __init__(self, path: Path, dtype: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "model": path,
            "quantization-encoding": dtype,
            "devices": "cpu",
            "host": "127.0.0.1",
            "port": port,
            "served-model-name": "model",
            "max-batch-size": MAX_BATCH_SIZE,
            "device-memory-utilization": MEMORY_SHARE,
        }
        command = [Path(sys.executable).with_name("max"), "serve", "--enable-prefix-caching"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        self.server = subprocess.Popen(command, env={**os.environ, "MAX_SERVE_DISABLE_TELEMETRY": "1"})
        while not self._is_ready():
            if self.server.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {self.server.returncode}")
            time.sleep(0.1)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        request = {
            "model": "model",
            "prompt": prompts,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = self._ask("/v1/completions", request)
        return [choice["token_ids"] for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]

    def _is_ready(self) -> bool:
        try:
            self._ask("/v1/models")
        except urllib.error.URLError:
            return False
        return True

    def _ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)
