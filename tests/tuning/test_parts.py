"""The parts of a search, each alone: shapes, costs, clock, drift, batches, timing, progress."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tome_fx
from tests.tiny import Around, images, tiny
from tests.tuning.common import model, pictures
from tome_fx.capturing.examples import Example
from tome_fx.tuning import progress
from tome_fx.tuning.batches import batches_of
from tome_fx.tuning.costs import Clock, fitted, planned, set_by
from tome_fx.tuning.drift import Reference
from tome_fx.tuning.shapes import families, moved, moves, spread
from tome_fx.tuning.speed import Timed, stopwatch


@given(st.lists(st.floats(0.0, 9.0), min_size=1, max_size=30), st.integers(0, 400))
def test_tokens_are_shared_out_within_one_of_their_share(shape: list[float], tokens: int) -> None:
    shape[0] += 0.5
    found = spread(tuple(shape), tokens)
    assert sum(found) == tokens
    assert min(found) >= 0
    parts = [tokens * x / sum(shape) for x in itertools.accumulate(shape)]
    assert all(abs(a - b) < 0.51 for a, b in zip(itertools.accumulate(found), parts, strict=True))


@pytest.mark.parametrize("layers", [1, 2, 3, 12])
def test_families_are_different_shapes_of_the_right_length(layers: int) -> None:
    found = families(layers)
    assert "constant" in found
    shared_out = {tuple(spread(shape, 1000)) for shape in found.values()}
    assert len(shared_out) == len(found)
    assert {len(shape) for shape in found.values()} == {layers}
    assert len(found) == (1 if layers == 1 else len(found))


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_moves_reach_each_layer_alone_both_ways(layers: int) -> None:
    found = list(moves(layers, 2.0))
    for layer in range(layers):
        assert {factor for group, factor in found if list(group) == [layer]} == {2.0, 0.5}
    assert len(found) <= 8 * layers


def test_a_move_gives_weight_to_a_layer_without_and_takes_the_last_of_it() -> None:
    assert moved((0.0, 2.0), [0], 2.0) == (0.5, 2.0)
    assert moved((1.0, 2.0), [1], 0.5) == (1.0, 1.0)
    assert moved((0.1, 2.0), [0], 0.5) == (0.0, 2.0)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_relpos_small_patch16_224"])
def test_macs_are_known_without_a_rewrite(name: str) -> None:
    fast = tome_fx.transform(tiny(name, depth=4, img_size=112), 0, min_ratio=0.0)
    probes = [[0] * 4, [2] * 4, [5] * 4, [12, 6, 3, 1], [0, 0, 12, 6], [24, 12, 6, 3]]
    costs = fitted(fast, [tuple(row) for row in probes])
    for r in ([7, 1, 4, 2], [0, 9, 0, 3], [11, 11, 5, 0]):
        fast.r = r
        assert costs.share(planned(fast, r)) == pytest.approx(1 / fast.report.flop_ratio, rel=5e-3)


def test_the_clock_is_set_by_what_was_measured() -> None:
    true = Clock(gain=0.8, toll=0.05)
    steps = {0.5: [(9, 1), (8, 1)], 0.7: [(9, 1), (8, 0)], 0.9: [(9, 0), (9, 1)]}
    measured = [
        (share, sum(r > 0 for _, r in row) / 2, true.time(share, row))
        for share, row in steps.items()
    ]
    found = set_by(measured)
    assert found.gain == pytest.approx(0.8, abs=0.02)
    assert found.toll == pytest.approx(0.05, abs=0.02)
    assert set_by([]) == Clock()
    one = set_by(measured[:1])
    assert one.time(0.5, steps[0.5]) == pytest.approx(measured[0][2], abs=1e-3)


class Scaled(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Any:
        return [x * factor for factor in self.factors] + [x.sum(), torch.arange(len(x))]


def reference(module: nn.Module, x: Tensor) -> Reference:
    return Reference(module, [Example((part,), {}, len(part)) for part in x.split(2)])


def test_drift_is_the_relative_change_of_each_output_and_image() -> None:
    x = torch.randn(5, 3) * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1.0])[:, None]
    found = reference(Scaled(1.0, 100.0), x).drift_of(Scaled(1.5, 100.0))
    assert found.distance == pytest.approx(0.25)  # a half of one output, nothing of the other
    assert found.agreement == 1.0
    assert reference(Scaled(1.0), x).drift_of(Scaled(-1.0)).agreement == 0.0
    assert reference(Scaled(1.0), x).drift_of(Scaled(1.0)).distance == 0.0
    assert reference(Scaled(1.0), x[..., None]).drift_of(Scaled(1.0)).agreement is None


def test_what_is_not_finite_drifts_infinitely_and_is_refused_of_the_original() -> None:
    x = torch.randn(4, 3)
    assert reference(Scaled(1.0), x).drift_of(Scaled(float("nan"))).distance == float("inf")
    with pytest.raises(tome_fx.InputError, match="NaN or infinity"):
        reference(Scaled(float("nan")), x).drift_of(Scaled(1.0))
    with pytest.raises(tome_fx.InputError, match="no floating output with a row for each image"):
        reference(Scaled(), x).drift_of(Scaled())


def test_images_come_as_a_tensor_or_as_batches() -> None:
    x, body = images(5), tiny()
    assert [batch.batch for batch in batches_of(x, 2, body)] == [2, 2, 1]
    assert [batch.batch for batch in batches_of([x, (x,)], 2, body)] == [5, 5]
    assert batches_of({"x": x}, 2, body)[0].kwargs["x"] is x


@pytest.mark.parametrize(
    ("given_images", "text"),
    [
        (images(0), "holds no image"),
        ([], "holds no image"),
        (torch.zeros(3), "has shape"),
        ("photographs", "is str"),
        (7, "is int"),
        ([images(0)], "without images"),
        ([7], "int without images"),
        ([(images(2), torch.tensor([1, 2]))], "labels"),
        ([{"x": images(2), "labels": torch.tensor([1, 2])}], "labels"),
        ([(images(2), [1, 2])], "labels"),
        ([{"x": images(2), "names": ["cat", "dog"]}], "labels"),
    ],
)
def test_what_holds_no_images_alone_is_refused(given_images: Any, text: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match=text):
        tome_fx.tune(tiny(), given_images, target_speedup=1.5, progress=False)


def test_a_whole_number_that_the_model_needs_is_no_label() -> None:
    class Conditioned(nn.Module):
        def forward(self, x: Tensor, step: Tensor) -> Tensor:
            return x * step[:, None, None, None]

    batch = (images(2), torch.tensor([1, 2]))
    assert batches_of([batch], 2, Conditioned())[0].args == batch


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "Give one goal"),
    ({"target_speedup": 2.0, "max_drift": 0.1}, "and not both"),
    ({"target_speedup": 1.0}, "target_speedup=1.0 is not a number above 1.0"),
    ({"target_speedup": 0.5}, "target_speedup=0.5"),
    ({"target_speedup": float("nan")}, "target_speedup=nan"),
    ({"target_speedup": float("inf")}, "target_speedup=inf"),
    ({"target_speedup": "2x"}, "target_speedup='2x'"),
    ({"target_speedup": True}, "target_speedup=True"),
    ({"max_drift": 0.0}, "max_drift=0.0 is not a number above 0.0"),
    ({"max_drift": -1}, "max_drift=-1"),
    ({"max_drift": 0.1, "budget": 7}, "budget=7 is not a whole number from 8 upwards"),
    ({"max_drift": 0.1, "measurements": 1}, "measurements=1"),
    ({"max_drift": 0.1, "batch_size": 0}, "batch_size=0"),
    ({"max_drift": 0.1, "rounds": 2.5}, "rounds=2.5"),
    ({"max_drift": 0.1, "warmup": -1}, "warmup=-1"),
    ({"max_drift": 0.1, "compiled": "no"}, "compiled='no'"),
    ({"max_drift": 0.1, "r": 8}, "r is the answer of tune"),
    ({"max_drift": 0.1, "min_ratio": 1.0}, "min_ratio is left out"),
    ({"max_drift": 0.1, "prop_atn": True}, "prop_attn"),
    ({"max_drift": 0.1, "labels": [1, 2]}, "'labels' is not an option"),
    ({"max_drift": 0.1, "measurement": 3}, "Did you mean measurements"),
    ({"target_speed": 1.5}, "Did you mean target_speedup"),
    ({"max_drift": 0.1, "progress": 5}, "progress=5 is not True, False or a function"),
    ({"max_drift": 0.1, "state": "a\0b"}, "names no file"),
    ({"max_drift": 0.1, "state": "."}, "names no file"),
    ({"max_drift": 0.1, "protect": 100}, "with these options, so there is nothing to tune"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_what_is_out_of_range_is_told(options: dict[str, Any], text: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match=text):
        tome_fx.tune(tiny(), images(), **{"progress": False, **options})


@pytest.mark.parametrize("state", [5, True])
def test_a_state_has_a_path(state: Any) -> None:
    with pytest.raises(TypeError, match=f"A state has a path, not {type(state).__name__}"):
        tome_fx.tune(tiny(), images(), max_drift=0.1, state=state)


def test_a_state_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(tome_fx.ConfigError, match=r"is a folder. Name a file in it"):
        tome_fx.tune(tiny(), images(), max_drift=0.1, state=tmp_path, progress=False)


def test_a_batch_may_hold_what_is_no_tensor() -> None:
    def forward(body: nn.Module, given: dict[str, Any]) -> Tensor:
        made: Tensor = body(given["x"])
        return made

    batch = {"x": images(2), "flag": True, "name": None}
    assert [one.batch for one in batches_of([(batch,)], 2, Around(forward))] == [2]
    assert batches_of([{"x": images(2), "size": (2, 2)}], 2, tiny())[0].kwargs["size"] == (2, 2)


def test_models_that_cannot_be_tuned() -> None:
    goal: dict[str, Any] = {"target_speedup": 1.5, "progress": False}
    with pytest.raises(tome_fx.ConfigError, match="training mode"):
        tome_fx.tune(tiny().train(), images(), **goal)
    with pytest.raises(tome_fx.AlreadyTransformedError):
        tome_fx.tune(tome_fx.transform(tiny(), 1), images(), **goal)
    with pytest.raises(tome_fx.ConfigError, match="No token of this model can merge"):
        tome_fx.tune(tiny(img_size=16), images(size=16), **goal)
    with pytest.raises(tome_fx.InputError, match="rejects"):
        tome_fx.tune(tiny(), images(channels=1), **goal)
    with pytest.raises(TypeError, match="not function"):
        tome_fx.tune(lambda x: x, images(), **goal)


def timed_once(original: nn.Module, timed: Timed) -> None:
    fast = tome_fx.transform(original, 4, min_ratio=0.0)
    watch = stopwatch(original, Example((pictures(2),), {}, 2), timed)
    for r in (4, [8, 0, 0]):
        fast.r = r
        found = watch(fast)
        assert 0.0 < found.q1 <= found.q3
        assert found.speedup > 0.0
        assert fast.r == r


def test_the_stopwatch_times_the_module_as_it_is_planned() -> None:
    calls = []

    def counted(body: nn.Module, x: Tensor) -> Tensor:
        calls.append(torch.is_inference_mode_enabled())
        return body(x)  # type: ignore[no-any-return]

    original = Around(counted, model())
    fast = tome_fx.transform(original, 4, min_ratio=0.0)
    calls.clear()
    watch = stopwatch(original, Example((pictures(2),), {}, 2), Timed(False, 3, 1, 0.0))
    watch(fast)
    assert calls.count(True) == 1 + 1 + 3  # first run, warm-up, rounds; captures come without
    timed_once(model(), Timed(False, 2, 0, 0.0))


def test_the_stopwatch_compiles_each_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    # With the backend that is quickest to compile.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    timed_once(model(), Timed(True, 1, 0, 0.0))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 3


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 1.0, 11.0, 12.0, 12.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.bar(3) as advance:
        for note in ("a", "b", "c"):
            advance(note)
    assert capsys.readouterr() == ("", "tuning: 2 of at most 3, b\n")


def test_progress_on_a_terminal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.bar(2) as advance:
        advance("a")
        advance("b")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert [line.rstrip() for line in err.split("\r")[1:]] == [
        "tuning: 1 of at most 2, a",
        "tuning: 2 of at most 2, b",
    ]
