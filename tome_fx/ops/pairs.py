"""Merge plans from pairs that a function of the user has chosen, and what it chooses by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tome_fx.errors import MatchingError
from tome_fx.ops.check import is_traced
from tome_fx.ops.matching import of_unit_length
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
    return torch.cat([of_unit_length(metric) for metric in metrics], dim=-1)


def single(metric: Tensor) -> Tensor:
    """The sizes of tokens that nothing has merged into, ``[B, n]``."""
    return metric.new_ones(metric.shape[:2], dtype=wide(metric.dtype))


def plan_of_pairs(
    pairs: Any, like: Tensor, n: int, r: int, where: str = "", onehot: bool = False
) -> MergePlan:
    """The plan that merges each first token of ``pairs`` into the second one.

    What is left keeps its order.

    Args:
        pairs: ``(src, dst)``, whole numbers that expand to ``[B, r]``: positions among ``n``
            tokens. No token stands twice in a row of ``src``, and none of these in ``dst``.
        like: any ``[B, ...]`` on the device of the tokens.
        where: what is in front of a message: which function, asked at which layer.
        onehot: without scatter, see ``ops.placing``.

    Raises:
        MatchingError: ``pairs`` are not that. A compiled program, one on another device than the
            CPU, asserts what values must be where it runs.
    """
    src, dst = _checked(pairs, like, n, r, where)
    batch = like.shape[0]
    _check_values(torch.cat([src, dst], 1), n, f"{where} must answer with positions below {n}")
    gone = added(src.new_zeros(batch, n), src, torch.ones_like(src), onehot).long()
    again = torch.cat([gone - gone.clamp(max=1), gone.gather(1, dst)], 1)
    once = "must take each token away once, and merge none into one that is taken away itself"
    _check_values(again, 1, f"{where} {once}")
    before = gone.cumsum(-1) - gone
    index = torch.arange(n, device=src.device)
    # A permutation: what is left in its order, then what goes in its own.
    place = torch.where(gone > 0, n - r + before, index - before)
    order = permuted(place, index.expand(batch, n), onehot)
    return MergePlan(order[:, : n - r], src, place.gather(1, dst))


def _checked(pairs: Any, like: Tensor, n: int, r: int, where: str) -> tuple[Tensor, Tensor]:
    """Both as int64 ``[B, r]``."""
    batch = like.shape[0]
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        raise MatchingError(
            f"matching: {where} answers with {_told(pairs)}, not a pair (src, dst) of whole "
            f"numbers [B, {r}]."
        )
    found = []
    for name, value in zip(("src", "dst"), pairs, strict=True):
        real = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        if not isinstance(value, Tensor) or real or value.dtype == torch.bool:
            raise MatchingError(
                f"matching: {where} answers with {_told(value)} for {name}, not with whole numbers "
                f"[B, {r}]."
            )
        rows = value.shape[0] if value.dim() == 2 else 1
        if value.dim() not in (1, 2) or value.shape[-1] != r or rows not in (batch, 1):
            raise MatchingError(
                f"matching: {where} answers with {name} of shape {tuple(value.shape)}, where {r} "
                f"of {n} tokens are to merge away in each of {batch} images: give [B, {r}]."
            )
        if value.device != like.device:
            raise MatchingError(
                f"matching: {where} answers with {name} on {value.device}, and the tokens are on "
                f"{like.device}: make tensors on the device of what it is given."
            )
        found.append(value.long().expand(batch, r))
    return found[0], found[1]


def _check_values(values: Tensor, limit: int, text: str) -> None:
    """Are all ``values`` from 0 to below ``limit``?"""
    text = f"matching: {text}"
    good = ((values >= 0) & (values < limit)).all()
    if torch.compiler.is_compiling():
        torch._assert_async(good, text)
    elif values.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(values):
        return
    elif is_traced(values) or values.device.type != "cpu":
        torch._assert_async(good, text)
    elif not good:
        image = int(((values < 0) | (values >= limit)).any(1).nonzero()[0, 0])
        raise MatchingError(f"{text}, and does not for image {image}.")


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"
