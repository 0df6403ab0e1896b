"""The kernels of a compiled program and their times, by name.

Inductor fuses ops of several steps into one kernel, so a kernel has no single step. Its name holds
the ATen ops that it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
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


def kernels(
    modules: Mapping[str, nn.Module], x: Tensor, rounds: int = 5
) -> dict[str, tuple[Kernel, ...]]:
    """Compile modules, run them in turn under torch.profiler and return the kernels of each.

    The slowest come first. Times are of the device where it is an accelerator, else those of the
    thread that calls.
    """
    with _named(), torch.inference_mode():
        compiled = {name: torch.compile(module) for name, module in modules.items()}
        for call in compiled.values():
            call(x)
            call(x)
        times: dict[str, _Times] = {name: {} for name in compiled}
        for _ in range(rounds):
            for name, call in compiled.items():
                _add(times[name], call, x)
    return {name: _slowest_first(found, rounds) for name, found in times.items()}


_Times = dict[str, tuple[int, float]]


def _add(times: _Times, call: Callable[[Tensor], object], x: Tensor) -> None:
    """Add calls and microseconds of one pass, by the name of the kernel."""
    from torch.profiler import ProfilerActivity, profile

    away = x.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * away)]) as record:
        call(x)
    field = "self_device_time_total" if away else "self_cpu_time_total"
    for event in record.key_averages():
        # On a device the call that started a kernel counts its time too.
        if away and event.device_type.name == "CPU":
            continue
        name, micro = plain_name(event.key), float(getattr(event, field))
        if micro > 0:
            calls, before = times.get(name, (0, 0.0))
            times[name] = calls + event.count, before + micro


def _slowest_first(times: _Times, rounds: int) -> tuple[Kernel, ...]:
    rows = [Kernel(name, calls / rounds, us / 1e3 / rounds) for name, (calls, us) in times.items()]
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
