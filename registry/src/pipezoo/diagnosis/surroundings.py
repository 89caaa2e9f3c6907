"""What computes here, and where models are kept."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipezoo.diagnosis.finding import Finding, Status

__all__ = ["hub_findings", "kernel_findings", "torch_findings"]

_KERNELS = "pipezoo-kernels"


def torch_findings() -> Iterator[Finding]:
    """Yields torch's version, threads and GPUs; imports it."""
    try:
        import torch
    except Exception as error:  # a torch that was built for another system fails in its own ways
        cure = "Install it again, as https://pytorch.org/get-started says for this system."
        yield Finding("torch", f"cannot be imported: {type(error).__name__}: {error}", Status.broken, cure)
        return
    yield Finding("torch", torch.__version__)
    yield _threads(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    count = torch.cuda.device_count()
    yield Finding("GPUs", ", ".join(torch.cuda.get_device_name(index) for index in range(count)) or "none")


def _threads(num_threads: int, num_cpus: int) -> Finding:
    found = f"{num_threads}, on {num_cpus} CPUs"
    if num_threads > num_cpus:
        cure = f"Set OMP_NUM_THREADS={num_cpus} or less: threads that share a CPU wait for each other."
        return Finding("threads", found, Status.note, cure)
    if num_threads == 1 < num_cpus:
        cure = "OMP_NUM_THREADS is how many compute, if that is not what was meant."
        return Finding("threads", found, Status.note, cure)
    return Finding("threads", found)


def kernel_findings() -> Iterator[Finding]:
    """Yields whether the kernels are installed, for which CPU, and of which interface. Imports torch."""
    try:
        import torch

        from pipezoo_core.native.variants import INTERFACE, MODULE, VARIANT, obstacle_to
    except Exception as error:  # what is wrong with torch is told where torch is
        yield Finding(_KERNELS, f"cannot be looked at: {type(error).__name__}", Status.note)
        return
    try:
        found = importlib.metadata.version(_KERNELS)
    except importlib.metadata.PackageNotFoundError:
        cure = "On an x86 CPU they are worth it: pip install 'pipezoo-core[kernels]'"
        yield Finding(_KERNELS, "not installed; torch computes alone", Status.note, cure)
        return
    obstacle = obstacle_to(torch.device("cpu"), torch.float32)
    if obstacle is None:
        yield Finding(_KERNELS, f"{found}, for {VARIANT}, interface {INTERFACE}")
    elif "CPU lacks" in obstacle:
        yield Finding(_KERNELS, f"{found}, and {obstacle}; torch computes alone", Status.note)
    else:
        cure = f"Try: pip install --upgrade --force-reinstall 'pipezoo-core[kernels]' ({MODULE} is what is imported)"
        yield Finding(_KERNELS, f"{found}, and cannot be used: {obstacle}", Status.broken, cure)


def hub_findings() -> Iterator[Finding]:
    """Yields the Hub's cache, whether it can be written, and how the Hub is asked. Asks it nothing."""
    from huggingface_hub import constants, get_token

    folder = Path(constants.HF_HUB_CACHE)
    yield _cache(folder)
    yield Finding("Hub", "not asked: HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else constants.ENDPOINT)
    yield Finding("token for the Hub", "there is one" if get_token() else "none; gated models need one")


def _cache(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    cure = "Set HF_HUB_CACHE to a folder that can be written."
    if not existing.is_dir():
        return Finding("cache", f"{folder}, and {existing} is no folder", Status.broken, cure)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("cache", f"{folder}, which cannot be written", Status.broken, cure)
    free = f"{shutil.disk_usage(existing).free / 2**30:,.0f} GiB free"
    if existing != folder:
        return Finding("cache", f"{folder}, made at the first download, {free}")
    return Finding("cache", f"{folder}, models in it: {len(list(folder.glob('models--*')))}, {free}")
