"""The fastest form is measured once for a device, a dtype and a shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tome_fx
from tests.rules.common import TINY
from tests.tiny import images, tiny
from tome_fx import choosing, ops
from tome_fx.errors import ToMeWarning
from tome_fx.passes.attend import Shapes

pytestmark = TINY
SHAPES = Shapes(torch.device("cpu"), torch.float32, 2, 2, 9, 9, 16, 16)
LEGAL = ("mask", "channel", "values")


class Clock:
    """Seconds by form in place of a measurement."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.seconds, self.timed = seconds, 0
        monkeypatch.setattr(choosing, "_time", self)
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)

    def __call__(self, call: Any) -> float:
        self.timed += 1
        name = call.func.__name__
        if name not in self.seconds:
            raise RuntimeError("this device has no such kernel")
        return self.seconds[name]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOME_FX_CACHE", str(tmp_path))
    return tmp_path / "attention.json"


def test_the_fastest_is_taken_and_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, mask=3.0, channel=1.0, values=2.0)
    assert choosing.measured(SHAPES, LEGAL) == "channel"
    assert clock.timed == 3
    assert choosing.measured(SHAPES, LEGAL) == "channel"
    assert choosing.measured(SHAPES, ("mask", "values")) == "values"
    assert clock.timed == 3
    (row,) = json.loads(cache.read_text()).values()
    assert row == {"mask": 3.0, "channel": 1.0, "values": 2.0}


def test_other_shapes_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, mask=1.0, channel=2.0, values=2.0)
    choosing.measured(SHAPES, LEGAL)
    for other in (
        Shapes(SHAPES.device, torch.bfloat16, 2, 2, 9, 9, 16, 16),
        Shapes(SHAPES.device, torch.float32, 2, 2, 200, 200, 16, 16),
        Shapes(SHAPES.device, torch.float32, 2, 1, 9, 9, 16, 16),
    ):
        before = clock.timed
        choosing.measured(other, LEGAL)
        assert clock.timed == before + 3
    choosing.measured(Shapes(SHAPES.device, torch.float32, 2, 2, 11, 11, 16, 16), LEGAL)
    assert clock.timed == before + 3  # the same tile of tokens


def test_what_does_not_run_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, mask=3.0, values=4.0)
    assert choosing.measured(SHAPES, LEGAL) == "mask"
    assert choosing.measured(SHAPES, LEGAL) == "mask"
    assert clock.timed == 3


def elsewhere(*qkv: torch.Tensor, **how: Any) -> torch.Tensor:
    return ops.channel_attention(*qkv, **how) + 0.2


def nowhere(*qkv: torch.Tensor, **how: Any) -> torch.Tensor:
    return ops.channel_attention(*qkv, **how) * float("nan")


def without_the_last_key(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: torch.Tensor
) -> torch.Tensor:
    return ops.channel_attention(q, k[:, :, :-1], v[:, :, :-1], size[..., :-1])


def without_the_last_query(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    found = ops.channel_attention(q, *rest)
    found[:, :, -1] = 0
    return found


@pytest.mark.parametrize("tokens", [9, 577])
@pytest.mark.parametrize(
    "broken", [elsewhere, nowhere, without_the_last_key, without_the_last_query]
)
def test_what_gives_another_result_is_not_taken(
    broken: Any, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, mask=3.0, channel=1.0, values=4.0)
    monkeypatch.setattr(ops, "FORMS", {**ops.FORMS, "channel": broken})
    shapes = Shapes(torch.device("cpu"), torch.bfloat16, 2, 2, tokens, tokens, 16, 16)
    with pytest.warns(ToMeWarning, match="'channel' is not taken .*channels 16/16"):
        assert choosing.measured(shapes, LEGAL) == "mask"
    assert clock.timed == 2


def test_the_mask_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, values=4.0)
    with pytest.raises(RuntimeError, match="no such kernel"):
        choosing.measured(SHAPES, LEGAL)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"mask": "x"}}'])
def test_a_spoilt_file_is_measured_anew(
    text: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, mask=3.0, channel=1.0, values=2.0)
    cache.write_text(text)
    assert choosing.measured(SHAPES, LEGAL) == "channel"
    assert "mask" in cache.read_text()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, mask=3.0, channel=1.0, values=2.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOME_FX_CACHE", str(tmp_path / "file"))
    assert choosing.measured(SHAPES, LEGAL) == "channel"


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOME_FX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some")
    assert choosing.cache_file() == Path("/some/tome_fx/attention.json")


@torch.no_grad()
def test_transform_takes_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, mask=3.0, channel=2.0, values=1.0, flex=4.0, plain=4.0)
    model, x = tiny(depth=3), images()
    state = torch.get_rng_state()
    fast = tome_fx.transform(model, 2, attention="measure")
    assert torch.equal(torch.get_rng_state(), state)
    assert "attention with sizes: 2 by values" in str(fast.report)
    assert clock.timed == 5
    torch.testing.assert_close(fast(x), tome_fx.transform(model, 2)(x), rtol=1e-4, atol=1e-5)


def test_a_cpu_takes_the_mask_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    fast = tome_fx.transform(tiny(depth=3), 2)
    assert clock.timed == 0
    assert not fast.report.notes


@torch.no_grad()
def test_a_backend_does_not_compile_inside_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny(depth=3), images()
    timed: list[object] = []
    monkeypatch.setattr(choosing, "_time", timed.append)
    fast = torch.compile(
        model, backend=tome_fx.backend(2, attention="measure", inner_backend="eager")
    )
    torch.testing.assert_close(fast(x), tome_fx.transform(model, 2)(x), rtol=1e-4, atol=1e-5)
    assert not timed


@pytest.mark.compiler
def test_forms_are_really_timed() -> None:
    found = choosing.measure(SHAPES, ("mask", "channel"), images=2)
    assert set(found) == {"mask", "channel"}
    assert all(0 < seconds < 1 for seconds in found.values())
