"""The kernels of a compiled program and their times, by name.

Inductor fuses ops of several steps into one kernel, so a kernel has no single step. Its name holds
the ATen ops that it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Each kernel of a program has a number at the end of its name, and its graph's at the front.
_NUMBERED = re.compile(r"^(?:graph_\d+_)?(.*?)_?\d*$")


@dataclass(frozen=True)
class Kernel:
    """All kernels of one name: calls and milliseconds of one pass."""

    name: str
    calls: float
    ms: float


def kernels(module: nn.Module, x: Tensor, rounds: int = 5) -> tuple[Kernel, ...]:
    """Compile ``module``, run it under torch.profiler and return its kernels, the slowest first.

    Times are of the device where it is an accelerator, else those of the thread that calls.
    """
    from torch.profiler import ProfilerActivity, profile

    away = x.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if away else [])]
    with _named(), torch.inference_mode():
        compiled = torch.compile(module)
        for _ in range(2):
            compiled(x)
        with profile(activities=kinds) as record:
            for _ in range(rounds):
                compiled(x)
    field = "self_device_time_total" if away else "self_cpu_time_total"
    times: dict[str, list[float]] = {}
    for event in record.key_averages():
        name, micro = plain_name(event.key), float(getattr(event, field))
        if micro > 0:
            calls, ms = times.setdefault(name, [0.0, 0.0])
            times[name] = [calls + event.count / rounds, ms + micro / 1e3 / rounds]
    rows = [Kernel(name, calls, ms) for name, (calls, ms) in times.items()]
    return tuple(sorted(rows, key=lambda row: -row.ms))


def plain_name(name: str) -> str:
    """``cpp_fused_gelu`` for ``graph_0_cpp_fused_gelu_12``; what is not inductor's as it is."""
    fused = "_fused_" in name
    found = _NUMBERED.match(name) if fused else None
    return found[1] if found else name


@contextmanager
def _named() -> Iterator[None]:
    """Let inductor name kernels by their ops and show those of the CPU to the profiler."""
    changed: dict[str, Any] = {
        "cpp.enable_kernel_profile": True,
        "cpp.descriptive_names": "original_aten",
    }
    torch._dynamo.reset()
    with torch._inductor.config.patch(changed):
        yield
    torch._dynamo.reset()
