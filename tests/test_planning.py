"""`every`, `align` and the estimate on a whole model: what is done, told, saved and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny
from tome_fx import kernels, pipeline
from tome_fx.costs.hardware import DEVICES

pytestmark = TINY

SLOW_START = dataclasses.replace(DEVICES["cpu"], name="slow to start", launch=1e-2)


def sixteen() -> Any:
    """Six blocks of 16 patches and a class token."""
    return tiny(depth=6, img_size=64)


def test_every_merges_at_one_of_each_layers() -> None:
    model, x = sixteen(), images(3, 64)
    fast = tome_fx.transform(model, 2, every=3)
    assert fast.schedule == (0, 6, 0, 0, 5, 0)
    assert [b.tokens_out for b in fast.report.blocks] == [17, 11, 11, 11, 6, 6]
    by_hand = tome_fx.transform(model, [0, 6, 0, 0, 5, 0])
    torch.testing.assert_close(fast(x), by_hand(x), rtol=0, atol=0)
    assert fast.token_map(x).equal(by_hand.token_map(x))
    lines = str(fast.report).splitlines()
    assert lines[0] == "VisionTransformer, captured by export, r=2, every=3"
    assert "layer 4: 6 tokens asked for, clamped to 5" in str(fast.report)


def test_align_counts_the_class_token_too() -> None:
    fast = tome_fx.transform(sixteen(), 3, align=4)
    counts = [b.tokens_out for b in fast.report.blocks if b.removed]
    assert counts
    assert all(count % 4 == 0 for count in counts)
    assert fast(images(3, 64)).shape == (3, 10)
    assert "r=3, align=4\n" in str(fast.report)


def test_align_auto_on_a_cpu_leaves_the_plan() -> None:
    model = sixteen()
    report = tome_fx.explain(model, 3, align="auto")
    assert report.schedule == tome_fx.explain(model, 3).schedule
    assert (report.align, report.aligned) == ("auto", 1)
    assert "r=3, align='auto' (here 1)\n" in str(report)


@pytest.mark.few(2)
@pytest.mark.parametrize("options", [{"align": 8}, {"every": 3}, {"every": 2, "align": 4}])
def test_nothing_asked_is_the_model_itself(options: dict[str, int]) -> None:
    model, x = sixteen(), images(2, 64)
    fast = tome_fx.transform(model, 0, **options)
    assert not any(fast.schedule)
    torch.testing.assert_close(fast(x), model(x), rtol=0, atol=0)


def test_strict_takes_a_list_as_it_is() -> None:
    row = [2, 2, 2, 2, 2, 0]
    for options in ({"align": 4}, {"every": 3}):
        with pytest.raises(tome_fx.ConfigError, match=r"list r=\[2, 2, 2, 2, 2, 0\].*Give that"):
            tome_fx.transform(sixteen(), row, strict=True, **options)
    done = tome_fx.transform(sixteen(), row, align=4).schedule
    again = tome_fx.transform(sixteen(), list(done), strict=True, align=4).schedule
    assert again == done
    assert tome_fx.transform(sixteen(), 2, strict=True, align=4).schedule


def test_strict_refuses_a_group_that_is_clamped() -> None:
    with pytest.raises(tome_fx.ConfigError, match=r"asks for 12 tokens at layer \d"):
        tome_fx.transform(sixteen(), 4, every=3, strict=True)


@pytest.mark.parametrize(
    ("option", "wrong", "words"),
    [
        ("every", 0, "every=0 .* from 1 upwards"),
        ("every", True, "every=True .* from 1 upwards"),
        ("every", 1.5, "every=1.5 .* from 1 upwards"),
        ("align", 0, "align=0 is not 'auto' or a number of tokens from 1 upwards"),
        ("align", "8", "align='8' is not 'auto' or"),
        ("batch", 0, "batch=0 .* from 1 upwards"),
        ("batch", "1", "batch='1' .* from 1 upwards"),
        ("min_speedup", -1, "min_speedup=-1 .* from 0.0"),
        ("min_speedup", float("nan"), "min_speedup=nan .* from 0.0"),
        ("hardware", "cuda", "hardware='cuda' is not one of a100, .*, h200, .* DeviceModel"),
        ("hardware", "h200", "pass batch="),
    ],
)
def test_wrong_values(option: str, wrong: Any, words: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match=words):
        tome_fx.transform(tiny(), 2, **{option: wrong})


# --- the estimate --------------------------------------------------------------------------------


def test_without_a_batch_there_is_no_estimate() -> None:
    assert tome_fx.explain(tiny(), 2).estimate is None


def test_merging_that_does_not_pay_is_not_applied() -> None:
    model, x = sixteen(), images(2, 64)
    with pytest.warns(tome_fx.ToMeWarning, match="does not pay here by the estimate") as caught:
        fast = tome_fx.transform(model, 3, batch=1, hardware=SLOW_START)
    text = str(caught[0].message)
    assert "for batch 1 on slow to start" in text
    assert "min_speedup=0" in text
    assert not any(fast.schedule)
    assert fast.r == 3
    assert f"not applied: {text}" in str(fast.report)
    told = fast.report.estimate
    assert told is not None
    assert told.kernels_after > told.kernels_before
    assert told.speedup < 1
    torch.testing.assert_close(fast(x), model(x), rtol=0, atol=0)
    assert fast.token_map(x).equal(torch.arange(16).expand(6, 2, 16))
    applied = tome_fx.transform(model, 3, batch=1, hardware=SLOW_START, min_speedup=0)
    assert any(applied.schedule)
    assert applied.report.estimate == told


def test_a_map_of_what_was_not_applied_is_that_of_all_tokens() -> None:
    fast = tome_fx.transform(sixteen(), 3)
    maps = fast.token_map(images(2, 64))
    assert maps.max(-1).values[-1].max() < 15


@pytest.fixture(scope="module")
def small() -> Any:
    """Captured once, for all that is planned."""
    model, x = timm.create_model("vit_small_patch16_224", depth=4), torch.randn(2, 3, 224, 224)
    return torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("b")},))


def test_a_batch_decides(small: Any) -> None:
    """On a device where starting kernels is what takes time at batch 1."""
    with pytest.warns(tome_fx.ToMeWarning, match="for batch 1 on h200"):
        assert not any(tome_fx.transform(small, 16, batch=1, hardware="h200").schedule)
    report = tome_fx.explain(small, 16, batch=256, hardware="h200")
    assert report.schedule[:3] == (16, 16, 16)
    told = report.estimate
    assert told is not None
    assert (told.hardware, told.batch) == ("h200", 256)
    assert 1.0 < told.speedup < 1.3 * report.flop_ratio
    assert 0 < told.seconds_merging < 0.2 * told.seconds_after
    line = str(report).splitlines()[2]
    assert line.startswith("estimated for batch 256 on h200: ")
    assert line.endswith("% of it)")


def test_both_programs_are_timed_at_the_same_batch(small: Any) -> None:
    """With all time in moving bytes, one merge at the last layer changes next to nothing."""
    slow = dataclasses.replace(DEVICES["cpu"], bandwidth=1e6, launch=1e-9)
    told = tome_fx.explain(
        small, [0, 0, 0, 1], batch=2, hardware=slow, min_ratio=0, min_speedup=0
    ).estimate
    assert told is not None
    own = told.seconds_after - told.seconds_merging
    assert own == pytest.approx(told.seconds_before, rel=0.03)


def test_more_images_take_longer_and_merging_pays_more(small: Any) -> None:
    found = []
    for batch in (1, 8, 64, 512):
        told = tome_fx.explain(
            small, 16, batch=batch, hardware="h200-graphs", min_speedup=0
        ).estimate
        assert told is not None
        found.append(told)
    for key in ("seconds_before", "seconds_after", "seconds_merging", "speedup"):
        row = [getattr(told, key) for told in found]
        assert row == sorted(row), key
    assert len({told.kernels_after for told in found}) == 1


def test_a_host_that_is_slower_than_the_device_is_what_takes_time(small: Any) -> None:
    """Then a kernel costs its start, whatever is in it; else starting it costs nothing."""
    quick = dataclasses.replace(DEVICES["h200"], host=0.0)
    for host, bound in ((1e-3, True), (1e-9, False)):
        device = dataclasses.replace(quick, host=host)
        told = tome_fx.explain(small, 16, batch=64, hardware=device, min_speedup=0).estimate
        free = tome_fx.explain(small, 16, batch=64, hardware=quick, min_speedup=0).estimate
        assert told is not None
        assert free is not None
        if bound:
            assert told.seconds_before == pytest.approx(host * told.kernels_before)
            assert told.seconds_after == pytest.approx(host * told.kernels_after)
        else:
            assert (told.seconds_before, told.seconds_after) == (
                free.seconds_before, free.seconds_after,
            )  # fmt: skip


def test_single_merges_that_cost_more_than_they_save_are_left_out(small: Any) -> None:
    """The last merge has one MLP to save on, the first one all that follows."""
    device = dataclasses.replace(DEVICES["cpu"], name="test", launch=6e-5)
    report = tome_fx.explain(small, 16, batch=2, hardware=device)
    told = report.estimate
    assert told is not None
    assert told.left_out == (3,)
    assert report.schedule == (16, 16, 16, 0)
    assert any(note.startswith("layer 3: no merge, since by the") for note in report.notes)
    assert told.speedup > tome_fx.explain(
        small, 16, batch=2, hardware=device, min_speedup=0
    ).estimate.speedup  # fmt: skip
    strict = tome_fx.explain(small, 16, batch=2, hardware=device, strict=True)
    assert all(strict.schedule)


def test_own_kernels_count_as_they_are(small: Any) -> None:
    """Two for matching, none for merging beside a sum and its norm, and one to weigh by sizes."""
    own = dataclasses.replace(DEVICES["h200"], name="with kernels")
    none = dataclasses.replace(own, name="without", kernels=False)
    with_own, without = (
        tome_fx.explain(small, 16, batch=64, hardware=device, min_speedup=0).estimate
        for device in (own, none)
    )
    with kernels.using("portable"):
        ruled_out = tome_fx.explain(small, 16, batch=64, hardware=own, min_speedup=0).estimate
    assert dataclasses.replace(ruled_out, hardware="without") == without
    assert with_own.kernels_before == without.kernels_before
    merges = 4
    assert with_own.kernels_after - with_own.kernels_before == 2 * merges + (merges - 1)
    assert without.kernels_after > with_own.kernels_after
    assert without.seconds_merging > with_own.seconds_merging > 0


def test_kernels_that_do_several_steps_are_told_apart_too(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a merge may be inside a kernel, and attention in a function."""
    device = dataclasses.replace(DEVICES["cpu"], name="test", launch=6e-5)
    plain = tome_fx.explain(small, 16, batch=2, hardware=device)
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: True)
    fused = tome_fx.explain(small, 16, batch=2, hardware=device)
    assert fused.estimate is not None
    assert fused.estimate.left_out == plain.estimate.left_out == (3,)
    quick = dataclasses.replace(device, launch=1e-9)
    found = [
        tome_fx.explain(small, 16, batch=2, hardware=quick, attention=form).estimate.seconds_after
        for form in ("mask", "channel", "values")
    ]
    assert found == pytest.approx([found[0]] * 3, rel=0.03)


def test_a_program_of_one_batch_size_is_estimated_at_that_one() -> None:
    program = torch.export.export(sixteen(), (images(2, 64),))
    told = tome_fx.explain(program, 3, batch=256, min_speedup=0).estimate
    assert told is not None
    assert told.batch == 2


# --- settings that travel ------------------------------------------------------------------------


def test_recipes_hold_what_was_planned(tmp_path: Path) -> None:
    model, x = sixteen(), images(2, 64)
    made = tome_fx.transform(model, 3, every=2, align="auto", batch=64, min_speedup=0)
    path = tome_fx.save_recipe(made, tmp_path / "a.json")
    saved = json.loads(path.read_text(encoding="utf-8"))["settings"]
    assert (saved["every"], saved["align"], saved["hardware"]) == (2, 1, "cpu")
    again = tome_fx.apply_recipe(model, path)
    assert again.schedule == made.schedule
    torch.testing.assert_close(again(x), made(x), rtol=0, atol=0)


def test_recipes_hold_a_device_of_ones_own(tmp_path: Path) -> None:
    made = tome_fx.transform(sixteen(), 3, batch=64, hardware=SLOW_START, min_speedup=0)
    path = tome_fx.save_recipe(made, tmp_path / "a.json")
    assert tome_fx.apply_recipe(sixteen(), path).settings.hardware == SLOW_START
    text = path.read_text(encoding="utf-8").replace('"launch": 0.01', '"launch": -1.0')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(tome_fx.ConfigError, match=r"launch=-1\.0 is not a number above 0"):
        tome_fx.apply_recipe(sixteen(), path)


def test_the_backend_plans_too() -> None:
    model, x = sixteen(), images(2, 64)
    chosen = tome_fx.backend(2, inner_backend="eager", every=3, min_ratio=0)
    with torch.no_grad():
        out = torch.compile(model, backend=chosen)(x)
    assert chosen.reports[0].schedule == (0, 6, 0, 0, 5, 0)
    torch.testing.assert_close(out, tome_fx.transform(model, 2, every=3)(x), rtol=1e-5, atol=1e-5)
    one, two = (
        tome_fx.backend(2, batch=1, hardware=dataclasses.replace(SLOW_START)) for _ in range(2)
    )
    assert one == two != tome_fx.backend(2, batch=1, hardware="cpu")
    assert chosen != tome_fx.backend(2, inner_backend="eager", every=2, min_ratio=0)
