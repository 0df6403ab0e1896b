"""`tome_fx.tune` on a real model, on machines whose speed is a formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tome_fx
from tests.tuning.common import DEPTH, SIZE, Machine, model, pictures, plain, seen


def drift_of(r: Any) -> float:
    """Anew, by the definition, from a transform of its own."""
    original, x = model(), pictures()
    fast = tome_fx.transform(original, r, min_ratio=0.0)
    with torch.no_grad():
        wanted, got = original(x), fast(x)
    return float(((got - wanted).norm(dim=1) / wanted.norm(dim=1)).mean())


def test_the_answer_says_what_the_module_does(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(plain).install(monkeypatch)
    original = model()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    found = seen({"target_speedup": 1.2}, model=original)
    assert found.speedup >= 1.2
    assert found.speedup == 1.0 / plain(1.0 / found.module.report.flop_ratio, found.r)
    assert found.schedule in machine.measured
    assert len(found.r) == DEPTH
    assert found.r == list(found.schedule) == list(found.module.schedule)
    assert found.drift == pytest.approx(drift_of(found.r), rel=1e-5)
    assert found.flop_ratio == pytest.approx(found.module.report.flop_ratio)
    assert found.agreement is not None
    assert 0.0 <= found.agreement <= 1.0
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert found.module.get_parameter("head.weight") is original.head.weight
    mine = next(point for point in found.curve if point.r == found.schedule)
    assert (mine.speedup, mine.drift) == (found.speedup, found.drift)
    assert machine.looked == [point.r for point in found.curve]
    for point in found.curve:
        if point.shape == "constant r" and (point.speedup or 0.0) >= 1.2:
            assert found.drift <= point.drift


def test_the_drift_stays_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(plain).install(monkeypatch)
    found = seen({"max_drift": 0.15})
    assert 0.0 < drift_of(found.r) <= 0.15
    assert found.speedup > 1.0


def test_dense_outputs_and_keyword_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model()

        def forward(self, *, picture: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"tokens": self.body.forward_features(picture), "count": picture.new_ones(())}

    Machine(plain).install(monkeypatch)
    batches = ({"picture": x} for x in pictures().split(4))  # two sizes, and read once
    found = seen({"target_speedup": 1.1}, model=Dense().eval(), images=batches)
    assert found.agreement is None
    assert found.drift > 0.0
    assert found.module(picture=pictures(2))["tokens"].shape == (2, 1 + (SIZE // 16) ** 2, 32)


def test_an_exported_program(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(plain).install(monkeypatch)
    shapes = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(model().eval(), (pictures(),), dynamic_shapes=shapes)
    assert seen({"target_speedup": 1.1}, model=exported).speedup > 1.0
