"""Devices as four numbers each, for an estimate of what a program takes there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

import torch

from tome_fx.errors import ConfigError
from tome_fx.measuring.machine import best


@dataclass(frozen=True)
class DeviceModel:
    """What kernels reach on a device; not what its data sheet promises.

    Attributes:
        name: what the report calls it.
        half: operations a second of products in float16 and bfloat16; a multiply-add is two.
        single: the same in float32, and of all that is no product.
        bandwidth: bytes a second from and to memory.
        launch: seconds that a kernel takes at least, its start by the host included.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    launch: float

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0.0 < value < float("inf"):
                raise ConfigError(f"DeviceModel: {field.name}={value!r} is not a number above 0.")

    def seconds(self, half: int, single: int, moved: int) -> float:
        """Time of one kernel: the longest of its start, its operations and its bytes."""
        work = half / self.half + single / self.single
        return max(self.launch, work, moved / self.bandwidth)

    @staticmethod
    def measure(device: str | torch.device = "cpu") -> DeviceModel:
        """The numbers of this machine's device, with the threads that torch has now.

        Takes about a second and wants the machine to itself.
        """
        place = torch.device(device)
        wide, long = (1024, 1 << 24) if place.type == "cpu" else (4096, 1 << 28)
        half = torch.bfloat16

        def product(dtype: torch.dtype) -> float:
            a = torch.randn(wide, wide, device=place, dtype=dtype)
            return 2 * wide**3 / best(lambda: a @ a, place, 5)

        with torch.no_grad():
            row = torch.zeros(long, device=place)
            little = torch.zeros(8, device=place)
            copied = best(lambda: row.add_(1.0), place, 5)
            started = best(lambda: [little.add_(1.0) for _ in range(100)], place, 5) / 100
            return DeviceModel(
                f"this {place.type}", product(half), product(torch.float32), 8 * long / copied,
                started,
            )  # fmt: skip


def _gpu(name: str, half: float, single: float, bandwidth: float, launch: float) -> DeviceModel:
    """From a data sheet: dense peaks without sparsity, of which kernels reach a part."""
    return DeviceModel(name, 0.6 * half, 0.6 * single, 0.8 * bandwidth, launch)


# Compiled code starts a kernel from Python in a few microseconds; replayed by a CUDA graph, the
# gap between two kernels is below two. TF32 is off, as torch has it by default. The CPU is one core
# with 512-bit vectors, whose half precision runs at the speed of float32, for want of matrix units;
# the time that a kernel takes at least is what explains the measured speed of small batches.
DEVICES: Mapping[str, DeviceModel] = MappingProxyType(
    {
        device.name: device
        for device in (
            _gpu("h200", 989e12, 67e12, 4.8e12, 4e-6),
            _gpu("h200-graphs", 989e12, 67e12, 4.8e12, 1.5e-6),
            _gpu("h100", 989e12, 67e12, 3.35e12, 4e-6),
            _gpu("h100-graphs", 989e12, 67e12, 3.35e12, 1.5e-6),
            _gpu("a100", 312e12, 19.5e12, 2.0e12, 4e-6),
            _gpu("a100-graphs", 312e12, 19.5e12, 2.0e12, 1.5e-6),
            DeviceModel("cpu", 1.3e11, 1.3e11, 1e10, 2e-5),
        )
    }
)


def device_model(value: object) -> DeviceModel | None:
    """A device by its name, its numbers, or itself; None stays None.

    Raises:
        ConfigError: it is none of these.
    """
    if value is None or isinstance(value, DeviceModel):
        return value
    if isinstance(value, str) and value in DEVICES:
        return DEVICES[value]
    if isinstance(value, Mapping) and set(value) == {field.name for field in fields(DeviceModel)}:
        return DeviceModel(**value)
    raise ConfigError(
        f"hardware={value!r} is not one of {', '.join(sorted(DEVICES))}, nor a "
        "tome_fx.DeviceModel. DeviceModel.measure(device) makes one of this machine."
    )


def device_of(value: torch.Tensor | None) -> DeviceModel:
    """The model of the device that a program was captured on.

    Raises:
        ConfigError: there is none for it.
    """
    kind = value.device.type if value is not None else "cpu"
    if kind == "cpu":
        return DEVICES["cpu"]
    name = torch.cuda.get_device_name() if kind == "cuda" and torch.cuda.is_available() else kind
    for known in ("h200", "h100", "a100"):
        if known in name.lower():
            return DEVICES[known]
    raise ConfigError(
        f"There is no model of the device {name!r} to estimate with. Pass hardware=, one of "
        f"{', '.join(sorted(DEVICES))}, or tome_fx.DeviceModel.measure({kind!r})."
    )
