"""The profile's sums, its bytes and its bounds."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tome_fx
from tests.packed import Packed
from tests.tiny import SIZE, tiny
from tome_fx.cli import main
from tome_fx.measuring.machine import best
from tome_fx.profiling import kernels as listing
from tome_fx.profiling.kernels import kernels, plain_name
from tome_fx.profiling.profile import Profile, profile
from tome_fx.profiling.roofline import Roofline
from tome_fx.profiling.timed import TimedRun
from tome_fx.profiling.traffic import moved, size_of

ROOFLINE = Roofline(macs=1e9, bandwidth=1e8)


def profiled(r: int = 2) -> Profile:
    fast = tome_fx.transform(tiny(), r)
    x = torch.randn(3, 3, SIZE, SIZE)
    (found,) = profile({str(r): fast}, x, ROOFLINE, rounds=2, warmup=1)
    return found


def test_sums_over_steps_and_layers_are_the_whole() -> None:
    found = profiled()
    assert found.whole_ms == pytest.approx(sum(line.ms for line in found.by_step()))
    layers = {line.layer for line in found.lines}
    assert found.whole_ms == pytest.approx(
        sum(line.ms for layer in layers for line in found.lines if line.layer == layer)
    )
    assert len({(line.layer, line.step) for line in found.lines}) == len(found.lines)


def test_macs_are_those_of_the_report() -> None:
    fast = tome_fx.transform(tiny(), 2)
    (found,) = profile({"2": fast}, torch.randn(3, 3, SIZE, SIZE), ROOFLINE, 1, 0)
    assert sum(line.macs for line in found.lines) == 3 * fast.report.macs_after
    matching = sum(line.macs for line in found.lines if line.step == "matching")
    assert matching == 3 * fast.report.macs_matching > 0


def checkpointed() -> tuple[tome_fx.ToMeModule, torch.Tensor]:
    fast = tome_fx.transform(tiny(), 2, min_ratio=0).train()
    fast.set_grad_checkpointing(True)
    return fast, torch.randn(3, 3, SIZE, SIZE)


def left_out() -> tuple[tome_fx.ToMeModule, torch.Tensor]:
    with pytest.warns(tome_fx.ToMeWarning, match="not applied"):
        fast = tome_fx.transform(tiny(), 2, min_ratio=9)
    return fast, torch.randn(3, 3, SIZE, SIZE)


def grouped() -> tuple[tome_fx.ToMeModule, torch.Tensor]:
    config = Packed(lengths=(16, 24, 16, 24))
    rows = config.rows().float()
    model = InRows(config.build().float(), Lengths(config.lengths))
    fast = tome_fx.transform(model, 2, example_inputs=rows, min_ratio=0)
    assert "in one call" in str(fast.report)
    return fast, rows


class Lengths(list[int]):
    """Lengths that code asks for as it asks a tensor."""

    def tolist(self) -> list[int]:
        return list(self)


class InRows(nn.Module):
    """Rows of known lengths."""

    def __init__(self, body: nn.Module, lengths: Lengths) -> None:
        super().__init__()
        self.body, self.lengths = body, lengths

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.body(x, self.lengths)
        assert isinstance(found, torch.Tensor)
        return found


@pytest.mark.cost
@pytest.mark.few(1)
@pytest.mark.parametrize("made", [checkpointed, left_out, grouped])
def test_what_runs_in_another_shape_is_profiled_as_what_it_is(
    made: Callable[[], tuple[tome_fx.ToMeModule, torch.Tensor]],
) -> None:
    fast, x = made()
    (found,) = profile({"2": fast}, x, ROOFLINE, 1, 0)
    images = x.shape[0] if x.dim() == 4 else 1
    assert sum(line.macs for line in found.lines) == images * fast.report.macs_after
    steps = {line.step: line for line in found.by_step()}
    assert ("matching" in steps) == any(fast.schedule)
    assert all(steps[step].macs for step in ("projections", "attention", "mlp"))


def test_every_call_is_timed_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    real = TimedRun.__init__

    def counted(self: TimedRun, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        self._clock = lambda: float(next(ticks))

    monkeypatch.setattr(TimedRun, "__init__", counted)
    fast = tome_fx.transform(tiny(), 2)
    (found,) = profile({"2": fast}, torch.randn(2, 3, SIZE, SIZE), ROOFLINE, 3, 1)
    calls = sum(node.op == "call_function" for node in fast.graph.nodes)
    # Each call is one tick of the clock long: their sum counts them.
    assert found.whole_ms == pytest.approx(calls * 1e3)
    assert sum(line.nodes for line in found.lines) == calls


def test_the_original_has_no_steps_of_merging() -> None:
    assert not {line.step for line in profiled(r=0).lines} & {"matching", "merging", "bias"}


def test_the_result_of_the_timed_run_is_the_module_s() -> None:
    fast = tome_fx.transform(tiny(), 2)
    x = torch.randn(2, 3, SIZE, SIZE)
    run = TimedRun(fast, x.device)
    with torch.inference_mode():
        (ours,) = run.run(x, enable_io_processing=False)
        assert torch.equal(ours, fast(x))


def test_bytes_moved() -> None:
    x, y = torch.zeros(4, 8), torch.zeros(8)
    assert moved((x, y), x + y) == (32 + 8 + 32) * 4
    assert moved((x, x), x * x) == 2 * 32 * 4, "an operand is read once"
    assert moved((x,), x.transpose(0, 1)) == 0, "a view moves nothing"
    assert moved((x,), x.transpose(0, 1).contiguous()) == 2 * 32 * 4
    assert size_of(y.expand(100, 8)) == 8 * 4


def test_the_bound_is_the_larger_of_both() -> None:
    assert ROOFLINE.seconds(1e9, 1e7) == 1.0
    assert ROOFLINE.seconds(1e8, 1e8) == 1.0


def test_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert best(lambda: None, torch.device("cpu"), 3) == 1.0


@pytest.mark.usefixtures("_fixed_machine")
def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    arguments = ["profile", "test_vit", "--model-kwargs", "depth=2", "--img-size", "64", "--r", "2",
                 "-b", "2", "--num-bench-iter", "1", "--num-warm-iter", "0"]  # fmt: skip
    assert main.run([*arguments, "--results-file", str(path)]) == 0
    out = capsys.readouterr().out
    for text in ("original (r=0)", "r=2", "matching", "times bound", "eager, op by op"):
        assert text in out
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["r"] for row in rows} == {"0", "2"}
    assert {row["layer"] for row in rows} == {"stem", "0", "1", "head"}
    assert main.run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["environment"]["peak_gmacs_per_s"] == 1.0
    assert len(document["results"]) == len(rows)
    assert main.run(["profile", "test_vit", "--precision", "amp"]) == 2
    assert "--precision amp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("graph_0_cpp_fused_gelu_12", "cpp_fused_gelu"),
        ("cpp_fused_add_native_layer_norm_3", "cpp_fused_add_native_layer_norm"),
        ("triton_poi_fused_gelu_0", "triton_poi_fused_gelu"),
        ("mkl::_mkl_linear", "mkl::_mkl_linear"),
        ("aten::convolution_2", "aten::convolution_2"),
    ],
)
def test_kernels_of_one_kind_have_one_name(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_a_kernel_counts_once_and_not_for_its_caller_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(key: str, place: str, micro: float) -> SimpleNamespace:
        device = SimpleNamespace(name=place)
        return SimpleNamespace(key=key, count=2, device_type=device, self_device_time_total=micro)

    events = [
        event("aten::addmm", "CPU", 30.0), event("nvjet_bias", "CUDA", 30.0),
        event("triton_poi_fused_gelu_1", "CPU", 7.0), event("triton_poi_fused_gelu", "CUDA", 7.0),
    ]  # fmt: skip
    record = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr("torch.profiler.profile", lambda **_: nullcontext(record))
    times: dict[str, tuple[int, float]] = {}
    x = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    listing._add(times, lambda _: None, x)
    assert times == {"nvjet_bias": (2, 30.0), "triton_poi_fused_gelu": (2, 7.0)}


@pytest.mark.compiler
@pytest.mark.slow
def test_kernels_of_the_compiled_program() -> None:
    model = tiny()
    both = {"0": model, "2": tome_fx.transform(model, 2)}
    listed = kernels(both, torch.randn(2, 3, SIZE, SIZE), rounds=2)
    assert not any("scatter" in row.name for row in listed["0"])
    found = listed["2"]
    assert [row.ms for row in found] == sorted((row.ms for row in found), reverse=True)
    assert any("native_layer_norm" in row.name for row in found)
    assert any("scatter" in row.name for row in found), "the merge is among them"
    assert len({row.name for row in found}) == len(found)


@pytest.fixture
def _fixed_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tome_fx.cli.profile.measure_roofline", lambda device, dtype: ROOFLINE)
