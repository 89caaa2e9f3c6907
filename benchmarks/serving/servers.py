"""How each server is started: a command, its environment, and the weights that it wants."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import compare
import models
import peers
from peers.install import ENVIRONMENTS

__all__ = ["NAMES", "running"]

NAMES = ("pipezoo", "vllm", "llamacpp")
START_SECONDS = 300
MAX_LENGTH = 1024  # tokens of a request
STREAMS = 64  # requests that are answered side by side


def _pipezoo(model: str, port: int) -> tuple[list[str], dict[str, str]]:
    folder = models.safetensors_folder(model)
    command = [str(Path(sys.executable).with_name("pipezoo")), "serve", str(folder), "--port", str(port)]
    settings = ["--dtype", "bfloat16", "--max-length", str(MAX_LENGTH), "--max-batch-size", str(STREAMS)]
    return [*command, "--served-model-name", "model", *settings], {}


def _vllm(model: str, port: int) -> tuple[list[str], dict[str, str]]:
    folder = models.safetensors_folder(model)
    module = "vllm.entrypoints.openai.api_server"  # the command `vllm` looks for a distribution of the GPU's name
    command = [str(ENVIRONMENTS / "vllm/bin/python"), "-m", module, "--model", str(folder), "--port", str(port)]
    settings = ["--dtype", "bfloat16", "--max-model-len", str(MAX_LENGTH), "--max-num-seqs", str(STREAMS)]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    return [*command, "--served-model-name", "model", *settings], environment


def _llamacpp(model: str, port: int) -> tuple[list[str], dict[str, str]]:
    file = models.gguf_file(model, "bf16")
    command = [str(ENVIRONMENTS / "llamacpp/bin/llama-server"), "--model", str(file), "--port", str(port)]
    sizes = ["--ctx-size", str(MAX_LENGTH * STREAMS), "--parallel", str(STREAMS), "--threads", str(peers.NUM_THREADS)]
    return [*command, "--alias", "model", "--no-webui", *sizes], {}


COMMANDS = {"pipezoo": _pipezoo, "vllm": _vllm, "llamacpp": _llamacpp}


@contextlib.contextmanager
def running(name: str, model: str) -> Iterator[int]:
    """Starts a server, yields its port once it answers, and ends it.

    Raises:
        compare.UnavailableError: it is not installed, ended, or did not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = COMMANDS[name](model, port)
    if not Path(command[0]).exists():
        raise compare.UnavailableError(f"not installed; try: python benchmarks/peers/install.py {name}")
    environment = {**os.environ, "OMP_NUM_THREADS": str(peers.NUM_THREADS), "HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait(process, port)
            yield port
        except compare.UnavailableError:
            log.seek(0)
            print(*log.read().decode(errors="replace").splitlines()[-20:], sep="\n", file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise compare.UnavailableError(f"ended with exit code {process.returncode}")
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
            return
        time.sleep(0.2)
    raise compare.UnavailableError(f"did not answer in {START_SECONDS} s")
