"""Devices as a few numbers each, for an estimate of what a program takes there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType

import torch

from tome_fx.errors import ConfigError
from tome_fx.kernels.choice import chosen
from tome_fx.measuring.machine import best, replayed


@dataclass(frozen=True)
class DeviceModel:
    """What kernels reach on a device; not what its data sheet promises.

    Attributes:
        name: what the report calls it.
        half: operations a second of products in float16 and bfloat16; a multiply-add is two.
        single: the same in float32, and of all that is no product.
        bandwidth: bytes a second from and to memory.
        launch: seconds that a kernel takes at least.
        host: seconds that the host takes to start one, while the device is at those before it; 0
            where it starts them all at once (CUDA graphs) or is the device itself.
        kernels: does it run our own Triton kernels, which take fewer launches and less memory
            traffic for a merge than the plain ops that it stands for?
    """

    name: str
    half: float
    single: float
    bandwidth: float
    launch: float
    host: float = 0.0
    kernels: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.kernels, bool):
            raise ConfigError(f"DeviceModel: kernels={self.kernels!r} is not True or False.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "kernels"):
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            none = number and value == 0.0 and field.name == "host"
            if not none and (not number or not 0.0 < value < float("inf")):
                raise ConfigError(f"DeviceModel: {field.name}={value!r} is not a number above 0.")

    def seconds(self, half: int, single: int, moved: int) -> float:
        """Time of one kernel on the device: the longest of its start, operations and bytes."""
        work = half / self.half + single / self.single
        return max(self.launch, work, moved / self.bandwidth)

    @staticmethod
    def measure(device: str | torch.device = "cpu") -> DeviceModel:
        """The numbers of this machine's device, with the threads that torch has now.

        Takes about a second and wants the machine to itself.

        Raises:
            ConfigError: there is no such device here.
        """
        try:
            place = torch.zeros((), device=device).device
            if place.type == "meta":
                raise RuntimeError("nothing is computed there")
        except (RuntimeError, AssertionError, TypeError) as error:  # a build without CUDA asserts
            first = str(error).partition("\n")[0]
            raise ConfigError(f"device={device!r} is no device of this machine: {first}") from None
        wide, long = (1024, 1 << 24) if place.type == "cpu" else (4096, 1 << 28)
        half = torch.bfloat16

        def product(dtype: torch.dtype) -> float:
            a = torch.randn(wide, wide, device=place, dtype=dtype)
            return 2 * wide**3 / best(lambda: a @ a, place, 5)

        with torch.no_grad():
            row = torch.zeros(long, device=place)
            little = torch.zeros(8, device=place)
            copied = best(lambda: row.add_(1.0), place, 5)

            def steps() -> None:
                for _ in range(100):
                    little.add_(1.0)

            started = best(steps, place, 5) / 100
            least = replayed(steps, place) / 100 if place.type == "cuda" else started
            return DeviceModel(
                f"this {place.type}", product(half), product(torch.float32), 8 * long / copied,
                least, 0.0 if place.type == "cpu" else started, chosen(place.type, place.index),
            )  # fmt: skip


# On an H200 products of bfloat16 reached 0.75 of the data sheet, a ViT's linears 0.65, copies 0.88,
# and torch.compile started a kernel in 14 to 20 microseconds; by a CUDA graph one takes 2 to 6.
_HOST, _LAUNCH = 1.5e-5, 3e-6


def _gpu(name: str, half: float, single: float, bandwidth: float, host: float) -> DeviceModel:
    """From a data sheet: dense peaks without sparsity, of which kernels reach a part."""
    return DeviceModel(name, 0.65 * half, 0.6 * single, 0.85 * bandwidth, _LAUNCH, host, True)


# TF32 is off, as torch has it by default. The CPU is one core
# with 512-bit vectors, whose half precision runs at the speed of float32, for want of matrix units;
# the time that a kernel takes at least is what explains the measured speed of small batches.
DEVICES: Mapping[str, DeviceModel] = MappingProxyType(
    {
        device.name: device
        for device in (
            _gpu("h200", 989e12, 67e12, 4.8e12, _HOST),
            _gpu("h200-graphs", 989e12, 67e12, 4.8e12, 0.0),
            _gpu("h100", 989e12, 67e12, 3.35e12, _HOST),
            _gpu("h100-graphs", 989e12, 67e12, 3.35e12, 0.0),
            _gpu("a100", 312e12, 19.5e12, 2.0e12, _HOST),
            _gpu("a100-graphs", 312e12, 19.5e12, 2.0e12, 0.0),
            DeviceModel("cpu", 1.3e11, 1.3e11, 1e10, 2e-5),
        )
    }
)


_FIELDS = {field.name for field in fields(DeviceModel)}
_NEEDED = {field.name for field in fields(DeviceModel) if field.default is MISSING}


def device_model(value: object) -> DeviceModel | None:
    """A device by its name, its numbers, or itself; None stays None.

    Raises:
        ConfigError: it is none of these.
    """
    if value is None or isinstance(value, DeviceModel):
        return value
    if isinstance(value, str) and value in DEVICES:
        return DEVICES[value]
    if isinstance(value, Mapping) and _NEEDED <= set(value) <= _FIELDS:
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
