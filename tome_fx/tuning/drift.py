"""Drift: how far merging moves the outputs of a model, without labels.

The drift of one image is the L2 norm of the change of an output over the L2 norm of that output,
averaged over the floating outputs that have a row for each image; the drift of a schedule is its
mean over images. It has no unit: 0 is no change, 0.1 a change of a tenth of the output's size. For
a classifier it is the ``logit_distance`` of ``tome-fx validate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tome_fx.capturing.examples import Example
from tome_fx.errors import InputError
from tome_fx.measuring.distance import relative_distance


@dataclass(frozen=True)
class Drift:
    """``distance`` as above. ``agreement`` is the share of images whose largest output is the same.

    ``agreement`` is None unless the first output is ``[B, K]``, one number for each class.
    """

    distance: float
    agreement: float | None


class Reference:
    """The answers of the original, computed when first asked for and kept on the CPU."""

    def __init__(self, original: Callable[..., Any], batches: Sequence[Example]) -> None:
        self._original, self._batches = original, batches
        self._kept: list[list[Tensor]] | None = None

    def drift_of(self, module: Callable[..., Any]) -> Drift:
        """Return how far ``module`` is from the original. Numbers that are not finite are infinite.

        Raises InputError where the original has no floating output with a row for each image, or
        one that is not finite.
        """
        if self._kept is None:
            self._kept = [_checked(_answers(self._original, batch)) for batch in self._batches]
        far, agree, total = 0.0, 0, 0
        for batch, wanted in zip(self._batches, self._kept, strict=True):
            found = _answers(module, batch)
            apart = [relative_distance(a, b) for a, b in zip(found, wanted, strict=True)]
            far += float(torch.stack(apart).mean(0).sum())
            total += batch.batch
            agree += _agreeing(found[0], wanted[0])
        classes = self._kept[0][0].dim() == 2 and self._kept[0][0].shape[1] > 1
        distance = far / total if math.isfinite(far) else math.inf
        return Drift(distance, agree / total if classes else None)


def _answers(module: Callable[..., Any], batch: Example) -> list[Tensor]:
    with torch.inference_mode():
        leaves = pytree.tree_leaves(module(*batch.args, **batch.kwargs))
    return [
        leaf.cpu()
        for leaf in leaves
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.dim()
        and leaf.shape[0] == batch.batch
    ]


def _checked(answers: list[Tensor]) -> list[Tensor]:
    if not answers:
        raise InputError(
            "The model has no floating output with a row for each image: there is nothing to "
            "compare. Wrap it in a module that returns one."
        )
    if not all(torch.isfinite(x).all() for x in answers):
        raise InputError("The original model answers NaN or infinity for these images.")
    return answers


def _agreeing(found: Tensor, wanted: Tensor) -> int:
    return int((found.argmax(1) == wanted.argmax(1)).sum()) if wanted.dim() == 2 else 0
