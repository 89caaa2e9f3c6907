"""Measures what a decode step costs on the host: scheduler and KV cache manager, for a model that computes nothing.

    python benchmarks/scheduler.py

32 requests decode while others wait: none, or 10,000. The time per step is that of `schedule`, `fetch`, the contexts'
`advance` and `step`, the median of 200 steps. The last line is JSON, in microseconds.
"""

from __future__ import annotations

import json
import statistics
import time

import torch

from pipezoo_core.attention import AttentionBackends, AttentionSpec
from pipezoo_core.config import AttentionName
from pipezoo_core.context import TextContext
from pipezoo_core.kv_cache import KVCacheParams, PagedKVCacheManager
from pipezoo_core.native import NativeKernels
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import Scheduler

RUNNING, PROMPT, STEPS = 32, 512, 200
WAITING = (0, 10_000)


def context(number: int) -> TextContext:
    return TextContext(
        request_id=str(number),
        prompt_tokens=[number, *range(PROMPT - 1)],
        max_length=PROMPT + STEPS + 64,
        sampling_params=SamplingParams(max_new_tokens=STEPS + 32),
    )


def step(scheduler: Scheduler, manager: PagedKVCacheManager) -> int:
    """Runs a step and returns how many requests were in it."""
    batch = scheduler.schedule().batch
    manager.fetch(batch)
    for one in batch:
        one.advance(1 if one.samples else None)
    manager.step(batch)
    return len(batch)


def microseconds(waiting: int) -> float:
    spec = AttentionSpec(num_heads=9, num_kv_heads=3, head_dim=64, scale=0.125)
    kernels, device = NativeKernels(torch.device("cpu"), torch.bfloat16), torch.device("cpu")
    name = AttentionName.reference if kernels.obstacle else AttentionName.native
    backends = AttentionBackends(name, [spec], kernels, 64)
    params = KVCacheParams(dtype=torch.bfloat16, groups=backends.groups, page_size=64)
    pages = RUNNING * params.num_pages_for(PROMPT + STEPS + 64)
    manager = PagedKVCacheManager(params, [pages], backends, device)
    scheduler = Scheduler([manager], max_batch_size=RUNNING, max_batch_tokens=2048)
    for number in range(RUNNING + waiting):
        scheduler.add(context(number))
    while step(scheduler, manager) < RUNNING or scheduler.num_running < RUNNING:
        pass
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        size = step(scheduler, manager)
        times.append(time.perf_counter() - start)
        assert size == RUNNING, "all requests decode"
    return statistics.median(times) * 1e6


def main() -> None:
    results = {waiting: microseconds(waiting) for waiting in WAITING}
    for waiting, time_ in results.items():
        print(f"{RUNNING} requests decode, {waiting:6,} wait: {time_:.0f} us per step")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
