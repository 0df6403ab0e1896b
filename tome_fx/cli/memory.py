"""Peak memory of one forward pass, on top of what is there before it (weights, input).

On CUDA it is `max_memory_allocated`. On the CPU the peak resident size of a process says little:
it never falls, and compiling, importing and the allocator's caches are all in it. So there the
profiler's record of every allocation is added up; scratch space of the maths libraries that does
not come from torch's allocator is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch

CUDA_METHOD = "torch.cuda.max_memory_allocated, less what was allocated before the call"
CPU_METHOD = "peak of the allocations of torch's CPU allocator during the call (torch.profiler)"


def method(device: torch.device) -> str:
    """Return how `peak` measures on this device, in words; empty where it cannot."""
    return {"cuda": CUDA_METHOD, "cpu": CPU_METHOD}.get(device.type, "")


def peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the bytes that one call holds at most, or None where the device cannot tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "cpu":
        return highest(_allocations(call))
    return None


def highest(changes: Iterable[int]) -> int:
    """Return the highest point of a running sum that starts at 0."""
    level = top = 0
    for change in changes:
        level += change
        top = max(top, level)
    return top


def _allocations(call: Callable[[], object]) -> list[int]:
    # The profiler's own log lines would break the rule that stderr is for people.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    results = record.profiler and record.profiler.kineto_results
    if not results:
        return []
    events = [event for event in results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
