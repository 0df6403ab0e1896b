"""What is counted over a data set, and the rows that are made of the counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from torch import Tensor

from tome_fx.measuring.distance import relative_distance

BASE = "0"  # the base row is the original under r=0


@dataclass(frozen=True)
class Sums:
    """Partial sums over images. `timed` images took `seconds`; odd last batches are not timed.

    `distance` sums each image's relative distance of logits, `agree` its equal first classes.
    """

    images: int = 0
    top1: int = 0
    top5: int = 0
    agree: int = 0
    distance: float = 0.0
    timed: int = 0
    seconds: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def values(self) -> list[float]:
        """Return the numbers, in the order of the fields."""
        return [float(value) for value in astuple(self)]

    @classmethod
    def of(cls, values: list[float]) -> Sums:
        """Return the sums that `values` gave; counts are whole again."""
        named = zip(fields(cls), values, strict=True)
        numbers: dict[str, Any] = {
            field.name: int(value) if isinstance(field.default, int) else value
            for field, value in named
        }
        return cls(**numbers)


@dataclass(frozen=True)
class Score:
    """One line of the results, with timm's names for what timm reports as well.

    Shares in percent are top1, top1_err, top5 and top5_err (None without labels); agreement is a
    share from 0 to 1, param_count in millions, ratio that of multiply-accumulates.
    """

    model: str
    r: str
    ratio: float
    top1: float | None
    top1_err: float | None
    top5: float | None
    top5_err: float | None
    agreement: float
    logit_distance: float
    samples_per_sec: float
    images: int
    batch_size: int
    param_count: float
    img_size: int
    crop_pct: float
    interpolation: str

    def record(self) -> dict[str, Any]:
        """Return the line as a dict; what has no value, for want of labels, is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def count(logits: Tensor, original: Tensor, targets: Tensor | None) -> Sums:
    """Return the sums of one batch, without times.

    `logits` and `original` are [B, K], `targets` class indices [B] or None. The distance of an
    image is the L2 norm of the difference over that of the original's logits.
    """
    logits, original = logits.float(), original.float()
    found = logits.topk(min(5, logits.shape[1])).indices
    first = original.argmax(1)
    # argmax on both sides, so that equal logits agree also where two classes tie.
    agree = int((logits.argmax(1) == first).sum())
    distance = float(relative_distance(logits, original).sum())
    top1 = top5 = 0
    if targets is not None:
        hits = found == targets[:, None]
        top1, top5 = int(hits[:, 0].sum()), int(hits.sum())
    return Sums(len(logits), top1, top5, agree, distance)


def score(r: str, ratio: float, sums: Sums, labels: bool, around: Mapping[str, Any]) -> Score:
    """Return the line of one r; `around` holds the fields that are the same for all of them."""
    images = max(1, sums.images)
    top1, top5 = (round(100 * hits / images, 4) for hits in (sums.top1, sums.top5))
    return Score(
        r=r,
        ratio=ratio,
        top1=top1 if labels else None,
        top1_err=round(100 - top1, 4) if labels else None,
        top5=top5 if labels else None,
        top5_err=round(100 - top5, 4) if labels else None,
        agreement=sums.agree / images,
        logit_distance=sums.distance / images,
        samples_per_sec=sums.timed / sums.seconds if sums.seconds else float("nan"),
        images=sums.images,
        **around,
    )
