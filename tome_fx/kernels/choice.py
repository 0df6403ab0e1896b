"""Kernel or portable PyTorch: one place decides.

``TOME_FX_KERNELS`` or :func:`using` say how: ``auto`` (the default) takes kernels on NVIDIA devices
that Triton serves, ``portable`` none, and ``triton`` also while exporting, where a program then
holds ops of ``tome_fx`` and needs its import. It is read when a graph is made and when ops are
traced or run; compiled code keeps what it was traced with.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from tome_fx.errors import ConfigError

VARIABLE = "TOME_FX_KERNELS"
MODES = ("auto", "portable", "triton")
HALVES = (torch.float16, torch.bfloat16)
HALVES_AND_FLOAT = (*HALVES, torch.float32)
# What one program holds of a row; beyond it registers spill.
MAX_METRIC, MAX_CHANNELS, MAX_TOKENS, MAX_HEAD = 1024, 4096, 8192, 256
# The oldest devices with bfloat16 and asynchronous copies.
OLDEST = (8, 0)

# Devices on which kernels were seen to fail.
_DISTRUSTED: set[tuple[str, int | None]] = set()
_MODE: ContextVar[str | None] = ContextVar("tome_fx_kernels", default=None)


@contextmanager
def using(mode: str) -> Iterator[None]:
    """Within the block, and in this thread, kernels are used as ``mode`` says.

    Raises:
        ConfigError: ``mode`` is not one of ``auto``, ``portable``, ``triton``.
    """
    token = _MODE.set(_checked(mode, "using"))
    try:
        yield
    finally:
        _MODE.reset(token)


def mode() -> str:
    """What :func:`using` says now, else the environment variable, else ``auto``.

    Raises:
        ConfigError: the environment variable has another value than the three.
    """
    return _MODE.get() or _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)


def chosen(kind: str, index: int | None = None) -> bool:
    """Are kernels used now on the device ``kind:index``? If so their ops are registered.

    Raises:
        ConfigError: the environment variable has another value than the three.
    """
    how = mode()
    if how == "portable" or (how == "auto" and kind != "cuda"):
        return False
    if (kind, index) in _DISTRUSTED:
        return False
    if importlib.util.find_spec("triton") is None or _transformed():
        return False
    if not (_served(index) if how == "auto" else _forced(kind)):
        return False
    importlib.import_module("tome_fx.kernels.operators")
    return True


def distrust(kind: str, index: int | None = None) -> None:
    """Use no kernels on a device from now on, in this process."""
    _DISTRUSTED.add((kind, index))


# What Dynamo calls while it traces, and takes the answer of. The decorator for it would import all
# of Dynamo, and all that it does is this.
chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_match(keys: Tensor, tokens: int) -> bool:
    """Is there a kernel for matching ``tokens`` tokens by ``keys`` ``[B, H, N, C]`` here, now?"""
    return (
        chosen(keys.device.type, keys.device.index)
        and keys.dtype in HALVES_AND_FLOAT
        and keys.dim() == 4
        and 2 <= tokens <= MAX_TOKENS
        and keys.shape[3] <= MAX_METRIC
    )


def can_merge(x: Tensor, size: Tensor | None, dim: int) -> bool:
    """Is there a kernel for merging the tokens on axis ``dim`` of ``x`` here, now?"""
    return (
        chosen(x.device.type, x.device.index)
        and x.dtype in HALVES_AND_FLOAT
        and x.dim() == 3
        and dim == 1
        and x.shape[1] <= MAX_TOKENS
        and x.shape[2] <= MAX_CHANNELS
        and (size is None or (size.dtype == torch.float32 and not size.requires_grad))
    )


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Is there a kernel here, now, for this attention, whose heads may share keys by groups?"""
    if query.dim() != 4 or query.shape[0] != key.shape[0] or query.shape[1] % key.shape[1]:
        return False
    width = max(query.shape[3], value.shape[3])
    return key.shape[:3] == value.shape[:3] and has_attention(query.device, query.dtype, width)


def has_attention(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Is there a kernel for attention on ``device`` with heads of ``width`` channels, now?"""
    return chosen(device.type, device.index) and dtype in HALVES and width <= MAX_HEAD


def _checked(mode: str, name: str) -> str:
    if mode not in MODES:
        raise ConfigError(f"{name}={mode!r} is not one of {', '.join(map(repr, MODES))}.")
    return mode


def _transformed() -> bool:
    """Inside ``torch.func`` or forward-mode gradients, which the ops have no rules for."""
    functional = torch._C._functorch.maybe_current_level() is not None
    return functional or torch.autograd.forward_ad._current_level >= 0 or _to_onnx()


def _to_onnx() -> bool:
    return bool(torch.onnx.is_in_onnx_export())


def _served(index: int | None) -> bool:
    """An NVIDIA device that is there and new enough, and no export to plain ATen."""
    if torch.compiler.is_exporting() or torch.version.cuda is None:
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability(index) >= OLDEST


def _forced(kind: str) -> bool:
    """Wherever Triton can run: on a CPU in its interpreter alone."""
    from tome_fx.kernels.language import INTERPRETED

    return kind == "cuda" or INTERPRETED
