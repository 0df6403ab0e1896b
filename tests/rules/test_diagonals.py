"""Tables that tell each token from all others, the identity say, beside weights over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.rules.common import (
    TINY,
    D,
    Eager,
    N,
    Projected,
    heads,
    joined,
    random,
    tied,
    unmerged,
)
from tests.versions import lacks

pytestmark = TINY
EYE = torch.eye(N, dtype=torch.float64)
CENTRED = 0.7 * EYE - tied(random(N, 1), (0,)) / N


def for_each_image(a: Tensor) -> Tensor:
    a = a.mean(1, keepdim=True) + EYE[None, None].expand(a.shape[0], 1, -1, -1)
    return a / a.sum(-1, keepdim=True)


ON_WEIGHTS = {
    "added": lambda a: 0.5 * a + 0.5 * EYE,
    "subtracted": lambda a: EYE[None] - a,
    "added in part": lambda a: torch.add(a, EYE, alpha=0.3),
    "a row for each query": lambda a: a + CENTRED,
    "walks of two steps": lambda a: EYE + a + a @ a,
    "hidden": lambda a: a * (1 - EYE),
    "hidden by a mask": lambda a: a * ~torch.eye(N, dtype=torch.bool),
    "scaled by it first": lambda a: (1.3 - EYE) * a,
    "written out for every image": for_each_image,
    "written out as the weights are": lambda a: a + EYE.expand_as(a),
}


def test_a_diagonal_counts_once_for_each_group() -> None:
    blocks: dict[str, nn.Module] = {name: Eager(weights=f) for name, f in ON_WEIGHTS.items()}
    assert unmerged(blocks, how="beside", sites=2 + len(blocks)) == set()


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_each_by_itself(name: str) -> None:
    assert unmerged(Eager(weights=ON_WEIGHTS[name]), sites=3) == set()


COPY = "mixed with a copy"
TOLD_APART = {
    "filled": lambda a: a.masked_fill(EYE > 0, 0.0),
    "chosen": lambda a: torch.where(EYE > 0, 0.0, a),
    "divided": lambda a: a / (1 + EYE),
    "mixed": lambda a: torch.lerp(a, EYE, 0.3),
    "mixed, written out": lambda a: torch.lerp(a, EYE.expand_as(a), 0.3),
    COPY: lambda a: torch.lerp(a, torch.empty_like(a).copy_(EYE), 0.3),
    "added product": lambda a: torch.addcmul(a, EYE, torch.ones_like(EYE)),
}


NAMES = [name for name in TOLD_APART if name != COPY]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [*NAMES, pytest.param(COPY, marks=lacks("fixes its batch"))])
def test_what_takes_no_totals_of_a_table_is_unmerged(name: str) -> None:
    assert unmerged(Eager(weights=TOLD_APART[name]), sites=3) != set()


def test_totals_along_the_queries() -> None:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (heads(q) @ heads(k).transpose(-2, -1) * D**-0.5).softmax(-2)
        return joined((weights - EYE / 3) @ heads(v))

    assert unmerged(Projected(mix), sites=3) == set()
