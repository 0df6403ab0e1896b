"""Merge plans from pairs that a function of the user has chosen, and what it chooses by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tome_fx.errors import ConfigError
from tome_fx.ops.check import is_traced
from tome_fx.ops.placing import added, permuted
from tome_fx.ops.plan import MergePlan
from tome_fx.ops.rows import wide


def by_head(keys: Tensor, front: int = 0, back: int = 0) -> Tensor:
    """Keys ``[B, H, N, C]`` without those of protected tokens, ``[B, H, n, C]``."""
    return keys[:, :, front : keys.shape[2] - back]


def features(tokens: Tensor, front: int = 0, back: int = 0) -> Tensor:
    """Tokens ``[B, H, N, C]`` without the protected ones, their channels on one axis."""
    return by_head(tokens, front, back).transpose(1, 2).flatten(2)


def joined(metrics: list[Tensor]) -> Tensor:
    """The metrics ``[B, n, C]`` of parallel attentions as one: of unit length, side by side.

    Cosine similarities of the result are the means of those of its parts.
    """
    norms = [metric.norm(dim=-1, keepdim=True) for metric in metrics]
    parts = [torch.where(n > 0, m / n, 0.0) for m, n in zip(metrics, norms, strict=True)]
    return torch.cat(parts, dim=-1)


def single(metric: Tensor) -> Tensor:
    """The sizes of tokens that nothing has merged into, ``[B, n]``."""
    return metric.new_ones(metric.shape[:2], dtype=wide(metric.dtype))


def plan_of_pairs(pairs: Any, metric: Tensor, r: int, onehot: bool = False) -> MergePlan:
    """The plan that merges each first token of ``pairs`` into the second one.

    What is left keeps its order.

    Args:
        pairs: ``(src, dst)``, whole numbers that expand to ``[B, r]``: positions among the tokens
            of ``metric``. No token stands twice in a row of ``src``, and none of these in ``dst``.
        metric: ``[B, n, C]``.
        onehot: without scatter, see ``ops.placing``.

    Raises:
        ConfigError: ``pairs`` are not that. A compiled program, one on another device than the
            CPU, asserts what values must be where it runs.
    """
    src, dst = _checked(pairs, metric, r)
    batch, n = metric.shape[:2]
    _check_values(torch.cat([src, dst], 1), n, "hold positions from 0 to below the tokens' number")
    gone = added(src.new_zeros(batch, n), src, torch.ones_like(src), onehot).long()
    again = torch.cat([gone - gone.clamp(max=1), gone.gather(1, dst)], 1)
    once = "take each token away once, and merge none into one that is taken away itself"
    _check_values(again, 1, once)
    before = gone.cumsum(-1) - gone
    index = torch.arange(n, device=src.device)
    # A permutation: what is left in its order, then what goes in its own.
    place = torch.where(gone > 0, n - r + before, index - before)
    order = permuted(place, index.expand(batch, n), onehot)
    return MergePlan(order[:, : n - r], src, place.gather(1, dst))


def _checked(pairs: Any, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Both as int64 ``[B, r]``."""
    wanted = f"a pair (src, dst) of whole numbers [B, {r}]"
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        raise ConfigError(f"matching: the answer is {_told(pairs)}, not {wanted}.")
    found = []
    for name, value in zip(("src", "dst"), pairs, strict=True):
        good = isinstance(value, Tensor) and not value.dtype.is_floating_point
        if not good or value.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise ConfigError(f"matching: {name} is {_told(value)}, which is not {wanted}.")
        shape = (metric.shape[0], r)
        rows = value.shape[0] if value.dim() == 2 else 1
        if value.dim() not in (1, 2) or value.shape[-1] != r or rows not in (shape[0], 1):
            raise ConfigError(
                f"matching: {name} has shape {tuple(value.shape)} where {r} of "
                f"{metric.shape[1]} tokens are to merge away in each of {shape[0]} images: it is "
                f"not {wanted}."
            )
        found.append(value.long().expand(shape))
    return found[0], found[1]


def _check_values(values: Tensor, limit: int, must: str) -> None:
    """Are all ``values`` from 0 to below ``limit``?"""
    text = f"matching: src and dst must {must}"
    good = ((values >= 0) & (values < limit)).all()
    if torch.compiler.is_compiling():
        torch._assert_async(good, text)
    elif values.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(values):
        return
    elif is_traced(values) or values.device.type != "cpu":
        torch._assert_async(good, text)
    elif not good:
        raise ConfigError(f"{text}, and they do not.")


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"
