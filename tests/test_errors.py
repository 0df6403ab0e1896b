"""Bad input: each gets an error or warning that says what, where and what next.

The model is as it was after every failure; `failure` sees to that.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.laws.world import world
from tests.tiny import SIZE, Around, images, tiny
from tests.versions import lacks

NAN = float("nan")


def failure(model: Any, error: type[Exception], r: Any = 2, **options: Any) -> str:
    """The text of the error that a transform ends with; the model and the process are untouched."""
    before = world(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error) as caught:
        tome_fx.transform(model, r, **options)
    assert before is None or world(model) == before
    return str(caught.value)


# --- r -------------------------------------------------------------------------------------------

COUNTS, INFLECT = "an int >= 0", "-1.0 to 1.0"
BAD_R: list[tuple[Any, str, str]] = [
    (-1, "-1 is negative", COUNTS),
    (True, "True is not a token count", COUNTS),
    ("16", "'16' is not a token count", COUNTS),
    (None, "None is not a token count", COUNTS),
    (NAN, "nan is not a share", "0.0 to below 1.0"),
    (1.0, "1.0 is not a share", "0.0 to below 1.0"),
    (-0.5, "-0.5 is not a share", "0.0 to below 1.0"),
    ([1, -2], "-2 is negative", COUNTS),
    ([1, True], "True is not a token count", COUNTS),
    ([1, 2.0], "2.0 is not a token count", COUNTS),
    ((4, 2.0), "inflect 2.0", INFLECT),
    ((4, NAN), "inflect nan", INFLECT),
    ((-4, 0.5), "-4 is negative", COUNTS),
    ([1, 2, 3], "3 entries", "2 layers"),
    ((10**400, -1.0), "more tokens than any model", ""),
]


class Slope(NamedTuple):
    r: int
    inflect: float


def test_numbers_and_rows_of_others() -> None:
    """A row is any sequence, a pair any tuple of two, and numpy's numbers are numbers."""
    every, protect = np.int64(2), (np.int64(1), np.int64(0))
    fast = tome_fx.transform(tiny(), range(2), min_ratio=0, every=every, protect=protect)  # type: ignore[arg-type]
    assert (fast.r, sum(fast.schedule)) == ([0, 1], 1)
    assert (type(fast.settings.every), fast.settings.protect) == (int, (1, 0))
    fast.r = Slope(1, -1.0)
    assert type(fast.r) is tuple
    with pytest.raises(tome_fx.ConfigError, match="has 3 entries, but the model has 2 layers"):
        fast.r = range(3)
    with pytest.raises(tome_fx.ConfigError, match="every=True is not a number of layers"):
        tome_fx.transform(tiny(), 1, every=True)


@pytest.mark.parametrize("name", ["every", "align", "batch", "protect"])
def test_arrays_are_no_numbers(name: str) -> None:
    text = failure(tiny(), tome_fx.ConfigError, 1, **{name: np.array([2, 1])})
    assert text.startswith(f"{name}=")


def test_what_is_estimated_needs_a_batch() -> None:
    with pytest.raises(tome_fx.ConfigError, match=r"min_speedup=1\.2 is what .* pass batch="):
        tome_fx.transform(tiny(), 2, min_speedup=1.2)
    assert tome_fx.transform(tiny(), 2, min_speedup=0).schedule == (2, 2)


def test_an_exported_program_has_its_inputs() -> None:
    exported = torch.export.export(tiny(), (images(),))
    given: list[dict[str, Any]] = [{"example_inputs": images()}, {"capture": "export"}]
    for options in (*given, {"example_kwargs": {"x": images()}}):
        with pytest.raises(tome_fx.ConfigError, match="is captured already"):
            tome_fx.transform(exported, 2, **options)


@pytest.mark.parametrize(("r", "what", "allowed"), BAD_R, ids=lambda value: str(value)[:30])
def test_r_out_of_range(r: Any, what: str, allowed: str) -> None:
    text = failure(tiny(), tome_fx.ConfigError, r)
    assert text.startswith(f"r={r!r}")
    assert what in text
    assert allowed in text
    assert isinstance(tome_fx.ConfigError(), ValueError)


def test_a_tuple_that_is_no_pair_is_told_the_truth() -> None:
    text = failure(tiny(), tome_fx.ConfigError, (1, 1, 1))
    assert "has 1 layer" not in text


def test_r_of_zero_is_the_model_itself_without_a_warning() -> None:
    model, x = tiny(), images()
    fast = tome_fx.transform(model, 0)
    for r in (0, 0.0, [], [0, 0], (0, -1.0)):
        fast.r = r
        assert fast.schedule == (0, 0)
        assert fast.report.macs_after == fast.report.macs_before
        assert fast.report.notes == ()
        assert torch.equal(fast(x), model(x))


@TINY
def test_r_too_large_is_clamped_and_noted() -> None:
    report = tome_fx.explain(tiny(), 100)
    assert report.schedule == (4, 2)  # half of 9 patches, half of the 5 that are left
    assert len(report.notes) == 2
    for note, words in zip(report.notes, ("layer 0 r=100 4 9", "layer 1 r=100 2 5"), strict=True):
        assert all(word in note for word in words.split())
        assert note in str(report)


@TINY
def test_r_too_large_is_an_error_under_strict() -> None:
    text = failure(tiny(), tome_fx.ConfigError, 100, strict=True)
    assert all(words in text for words in ("100", "layer 0", "9", "4", "strict=False"))
    assert tome_fx.transform(tiny(), [4, 2], strict=True).schedule == (4, 2)


# --- inputs --------------------------------------------------------------------------------------


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"example_inputs": images(size=32)}, "Input height (32)"),
    "rank": ({"example_inputs": torch.randn(3)}, "expected 4"),
    "channels": ({"example_inputs": (images(channels=4),)}, "4 channels"),
    "dtype": ({"example_inputs": (images().double(),)}, "double"),
    "keyword": ({"example_kwargs": {"picture": images()}}, "'picture'"),
    "names": ({"example_inputs": {"x": images()}}, "keyword inputs as example_kwargs"),
    "missing": ({"example_kwargs": {"attn_mask": torch.ones(2, 1)}}, "'x'"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_inputs_that_the_model_rejects(name: str) -> None:
    options, own_words = REJECTED[name]
    text = failure(tiny(), tome_fx.InputError, **options)
    assert "model itself rejects" in text
    assert own_words in text


def test_weights_that_are_brought_for_each_call() -> None:
    model, x = tiny(), images()
    head, forward = model.head, model.forward
    kept, away = head.weight.detach(), nn.Parameter(head.weight.detach().to("meta"))

    def offloaded(x: Tensor) -> Tensor:
        assert not torch.compiler.is_exporting(), "no values for a trace"
        head.weight = nn.Parameter(kept.clone())
        outputs = forward(x)
        head.weight = away
        return outputs

    head.weight, model.forward = away, offloaded
    assert model(x).isfinite().all()
    with pytest.raises(tome_fx.ConfigError) as caught:  # (`failure` looks at weights' values)
        tome_fx.transform(model, example_inputs=x)
    text = str(caught.value)
    assert "'head.weight' among them, are on the meta device, and yet it runs" in text
    assert "remove_hook_from_module" in text


NOT_INFERRED: dict[str, tuple[Any, str]] = {
    "empty": ((), "no tensor"),
    "a number": (3, "no tensor"),
    "a text": ("cat.jpg", "no tensor"),
    "no image": (images(batch=0), "batch is 0"),
}


@pytest.mark.parametrize("name", NOT_INFERRED)
def test_inputs_without_an_image(name: str) -> None:
    inputs, words = NOT_INFERRED[name]
    text = failure(tiny(), tome_fx.InputError, example_inputs=inputs)
    assert words in text
    assert "example_inputs=(" in text


@pytest.mark.parametrize("kwargs", [[1], images(), "x"], ids=["list", "tensor", "text"])
def test_keyword_inputs_without_names(kwargs: Any) -> None:
    text = failure(tiny(), tome_fx.InputError, example_kwargs=kwargs)
    assert "no dict of inputs by name" in text


def test_no_inputs_and_none_to_infer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    text = failure(model, tome_fx.InputError)
    assert "none can be inferred" in text
    assert "tome_fx.transform(model, example_inputs=(" in text


@TINY
@pytest.mark.parametrize("size", [SIZE + 16, SIZE - 16, (SIZE, 2 * SIZE)], ids=str)
def test_another_resolution(size: Any) -> None:
    high, wide = size if isinstance(size, tuple) else (size, size)
    fast = tome_fx.transform(tiny(dynamic_img_size=True), 2)
    x = torch.randn(3, 3, high, wide)
    with pytest.raises(tome_fx.ShapeError) as caught:
        fast(x)
    text = str(caught.value)
    assert f"3, {SIZE}, {SIZE}" in text
    assert f"3, {high}, {wide}" in text
    assert "10 tokens" in text
    assert "example_inputs" in text
    assert isinstance(caught.value, ValueError)
    with pytest.raises(tome_fx.ShapeError):
        fast.token_map(x)


@TINY
@pytest.mark.filterwarnings("ignore:Nothing merges:tome_fx.ToMeWarning")  # of the second
def test_another_resolution_without_a_merge() -> None:
    for model, r, size, tokens in ((tiny(), 0, SIZE, 10), (tiny(img_size=16), 2, 16, 2)):
        fast = tome_fx.transform(model, r)
        with pytest.raises(tome_fx.ShapeError, match=f"{size}, {size}") as caught:
            fast(images(size=64))
        assert f" {tokens} tokens" in str(caught.value)


@lacks("runs it once, at the capture")
def test_a_generator_made_in_forward() -> None:
    def noisy(body: nn.Module, x: Tensor) -> Tensor:
        return body(x) + torch.rand(10, generator=torch.Generator().manual_seed(1))

    text = failure(Around(noisy), tome_fx.CaptureError, example_inputs=images())
    assert "Generator" in text
    assert "__init__" in text


def test_what_is_blamed_is_a_line_of_the_model_and_none_of_python() -> None:
    def sorts(body: nn.Module, x: Tensor) -> Tensor:
        return body(x) * statistics.median_low([x.sum(), x.amax()])

    said = failure(Around(sorts), tome_fx.CaptureError, example_inputs=images())
    assert "return body(x) * statistics.median_low(" in said
