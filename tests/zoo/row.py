"""What the table says of one model."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tome_fx
from tests.zoo.allowed import allowed_ratio
from tests.zoo.around import widened
from tests.zoo.entry import Entry, leaves, randomise
from tome_fx.capturing.examples import Example

# What is equal in float64, and what surely is in float32, relative to the largest value.
EXACT, ROUNDED = 1e-9, 1e-5


@dataclass(frozen=True)
class Row:
    """One line of the table; ``reason`` says why a column is not what one would want."""

    family: str
    name: str
    captured: str = "-"
    blocks: int = 0
    merged: int = 0
    unmerges: int = 0
    averaged: int = 0
    ratio: float = 1.0
    allowed: float = 0.0
    identical: str = "-"
    law: str = "-"
    alone: str = "-"
    compiled: str = "-"
    reason: str = ""

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"

    @property
    def share(self) -> float:
        """Of the ratio that the arithmetic allows; 0 where that was not counted."""
        return self.ratio / self.allowed if self.allowed else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def row_of(entry: Entry) -> Row:
    """Build, rewrite and check one model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _checked(entry)
        except tome_fx.ToMeError as error:
            return Row(entry.family, entry.name, reason=f"{type(error).__name__}: {_short(error)}")
        except Exception as error:
            reason = f"not built: {type(error).__name__}: {_short(error)}"
            return Row(entry.family, entry.name, reason=reason)


def _checked(entry: Entry) -> Row:
    torch._dynamo.reset()
    model = entry.build()
    randomise(model)
    args, kwargs = entry.inputs(2, flat=False, dtype=torch.float32, seed=2)
    fast = tome_fx.transform(
        model, 0, example_inputs=args, example_kwargs=kwargs or None, min_ratio=0
    )
    identical = _identical(fast, model, entry)
    unmerged = widened(fast, borders=False)
    fast.r = 0.1
    report = fast.report
    fused = [u for u in report.unmerges if u.op != "output"]
    reasons = dict.fromkeys(u.reason for u in fused)
    misses = dict.fromkeys(miss.reason for miss in report.near_misses)
    return Row(
        entry.family,
        entry.name,
        report.capture,
        len(report.blocks),
        sum(report.schedule),
        sum(u.kind == "unmerge" for u in fused),
        sum(u.kind == "merge" for u in fused),
        round(report.flop_ratio, 3),
        round(allowed_ratio(fast), 3),
        identical,
        _law(widened(fast, borders=False), unmerged, entry),
        _alone(fast, entry),
        _compiled(fast, entry),
        "; ".join([*reasons, *misses]),
    )


def _identical(fast: nn.Module, model: nn.Module, entry: Entry) -> str:
    args, kwargs = entry.inputs(3, flat=False, dtype=torch.float32, seed=1)
    gap = _gap(fast, model, args, kwargs)
    return "yes" if gap == 0 else "rounding" if gap < ROUNDED else f"no ({gap:.0e})"


def _law(fast: nn.Module, unmerged: nn.Module, entry: Entry) -> str:
    """The duplicates law: all tokens of an image are the same, so merging them changes nothing."""
    gap = _gap(fast, unmerged, *entry.inputs(2, flat=True))
    return "exact" if gap < EXACT else f"{gap:.0e}"


@torch.no_grad()
def _gap(fast: nn.Module, model: nn.Module, args: Any, kwargs: Any) -> float:
    ours, theirs = leaves(fast(*args, **kwargs)), leaves(model(*args, **kwargs))
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    return max(map(_apart, ours, theirs))


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def _alone(fast: Any, entry: Entry) -> str:
    """Do two images have the same results without a third?

    Kernels may round otherwise, and a deep model on random weights makes much of it: where it
    shows, here and compiled, float64 tells rounding from a fault.
    """
    if entry.one_image or fast.located.program.static_batch:
        return "-"
    gap = _alone_gap(fast, entry, torch.float32)
    if gap is not None and gap > ROUNDED:
        gap = _alone_gap(widened(fast), entry, torch.float64)
        return "yes" if gap is not None and gap < EXACT else f"no ({gap:.0e})"
    return "-" if gap is None else "yes"


@torch.no_grad()
def _alone_gap(fast: nn.Module, entry: Entry, dtype: torch.dtype) -> float | None:
    """How far the results of two images are from those beside a third; None if they have none."""
    three = Example(*entry.inputs(3, flat=False, dtype=dtype, seed=4), 3)
    results = [leaves(fast(*some.args, **some.kwargs)) for some in (three.first(2), three)]
    pairs = zip(*results, strict=True)
    gaps = [_apart(a, b[:2]) for a, b in pairs if b.dim() and b.shape[0] == 3]
    return max(gaps, default=None)


def _compiled(fast: nn.Module, entry: Entry) -> str:
    """``fullgraph`` through Dynamo: no graph break."""
    gap = _compiled_gap(fast, entry, torch.float32)
    if gap < ROUNDED:
        return "yes"
    gap = _compiled_gap(widened(fast), entry, torch.float64)
    return "yes" if gap < EXACT else f"no ({gap:.0e})"


def _compiled_gap(fast: nn.Module, entry: Entry, dtype: torch.dtype) -> float:
    args, kwargs = entry.inputs(2, flat=False, dtype=dtype, seed=3)
    return _gap(torch.compile(fast, fullgraph=True, backend="eager"), fast, args, kwargs)


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160]
