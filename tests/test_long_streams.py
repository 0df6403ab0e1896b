"""Streams so long that all scores at once would need more memory than the model."""

from __future__ import annotations

import pytest
import torch

import tome_fx
from tests.rules.common import TINY
from tests.tiny import images, tiny
from tome_fx import ops
from tome_fx.ops import matching

pytestmark = TINY


@torch.no_grad()
def test_scores_are_made_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny(depth=3).double(), images(3).double()
    short = tome_fx.transform(model, 2)
    monkeypatch.setattr(ops, "SCORES", 6)
    monkeypatch.setattr(matching, "SCORES", 6)
    long = tome_fx.transform(model, 2)
    called = [node.target for node in long.graph.nodes]
    # Nine tokens have 5 x 4 scores, seven 4 x 3, five 3 x 2, which are not too many.
    assert called.count(ops.match_metric) == 2
    assert called.count(ops.similarity) == 1
    assert torch.equal(long(x), short(x))
    assert torch.equal(long.token_map(x), short.token_map(x))
    assert long.report.macs_after == short.report.macs_after
