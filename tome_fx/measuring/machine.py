"""The machine that something is measured on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def best(call: Callable[[], object], device: torch.device, tries: int) -> float:
    """Seconds of the fastest of ``tries`` calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(tries):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def replayed(call: Callable[[], object], device: torch.device, tries: int = 8) -> float:
    """Seconds that a CUDA device takes for a call, replayed as a CUDA graph: without the host's.

    Raises RuntimeError where it cannot be recorded.
    """
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()
        return best(graph.replay, device, tries)


def device_name(device: torch.device) -> str:
    """Return the name of the device as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """Return the name of the processor as the system tells it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
