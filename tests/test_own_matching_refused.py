"""Functions that are no `matching`, and answers that are no plan."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (3, "matching=3 is not None or a function"),
        ("random", "matching='random' is not None or a function"),
        (nn.Linear(2, 2), "Linear is a module, whose weights"),
        (lambda metrics, r: None, "asks for 'metrics', which there is not.*metric, r, keys"),
        (lambda: None, "asks for nothing"),
        (lambda r: None, "asks for nothing of the tokens"),
        (lambda metric, /, r: None, "takes 'metric' by position alone"),
        (lambda metric, r: metric, "not a pair (src, dst) of whole numbers [B, 2]"),
        (lambda metric, r: (metric, metric), "a tensor of torch.float32 [5, 9, 16] for src"),
        (lambda metric, r: ([1], [2]), "at blocks.0.attn answers with a list for src"),
        (lambda metric, r: 2 * (torch.arange(3),), "src of shape (3,), where 2 of 9 tokens"),
        (lambda metric, r: 2 * (torch.zeros(3, 2).long(),), "src of shape (3, 2), where"),
        (lambda metric, r: metric[0, 0, 0].item(), "reads a number out of a tensor"),
        (lambda metric, r: metric @ metric, "fails at blocks.0: RuntimeError"),
        (lambda metric, r: torch.ones(2, 2, device="meta").long(), "answers with a tensor"),
        (lambda metric, r: 2 * (torch.arange(r, device="meta"),), "src on meta, and the tokens"),
    ],
)
def test_what_is_no_matching_is_refused(function: Any, says: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match=re.escape(says).replace(r"\.\*", ".*")):
        tome_fx.transform(tiny(), 2, matching=function)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("src", "dst", "says"),
    [
        ([0, 9], [1, 1], "wrong at blocks.0.attn must answer with positions below 9"),
        ([0, 2], [1, -1], "positions below 9, and does not for image 0"),
        ([2, 2], [1, 1], "take each token away once"),
        ([0, 1], [1, 2], "merge none into one that is taken away itself"),
        ([3, 4], [3, 1], "merge none into one that is taken away itself"),
    ],
)
def test_answers_that_are_no_plan_are_refused_where_they_come(
    src: list[int], dst: list[int], says: str
) -> None:
    def wrong(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(src, device=metric.device), torch.tensor(dst, device=metric.device)

    fast = tome_fx.transform(tiny(), [2, 0], matching=wrong)
    with pytest.raises(tome_fx.ConfigError, match=says):
        fast(images())
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    with pytest.raises((RuntimeError, IndexError)):
        compiled(images())
