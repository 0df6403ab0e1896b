"""What forward writes, registers or remembers in a call: the model and its inputs stay so."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import tome_fx
from tests.laws.common import TINY
from tests.test_regions import after_stem, gradients
from tests.tiny import Around, images, tiny

pytestmark = TINY
WIDTH = 32


def in_place(body: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        body.teacher.weight.view(-1).mul_(0.9)
        body.teacher.weight.add_(body.student.weight, alpha=0.1)
        target = body.teacher(body.patch_embed(x))
    return after_stem(body, target)


def by_data(body: nn.Module, x: Tensor) -> Tensor:
    body.teacher.weight.data.lerp_(body.student.weight.data, 0.1)
    return after_stem(body, body.teacher(body.patch_embed(x)).detach())


def by_lists(body: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        torch._foreach_mul_([body.teacher.weight, body.teacher.bias], 0.9)
        target = body.teacher(body.patch_embed(x))
    return after_stem(body, target)


def by_other_memory(body: nn.Module, x: Tensor) -> Tensor:
    body.teacher.weight.data = body.teacher.weight.data.clamp(-9, 9)
    return after_stem(body, body.teacher(body.patch_embed(x)).detach())


@pytest.mark.few(3)
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("function", [in_place, by_data, by_lists, by_other_memory])
def test_evaluation_leaves_weights_that_forward_writes_to(function, check: bool) -> None:  # type: ignore[no-untyped-def]
    body = tiny()
    body.student, body.teacher = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    body.teacher.requires_grad_(False)
    model, x = Around(function, body), images()
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    fast = tome_fx.transform(model, 0, example_inputs=x, check=check)
    for name, p in model.named_parameters():
        place, value = before[name]
        assert (p.data_ptr(), True) == (place, torch.equal(p, value)), name
    assert torch.equal(fast(x), twin(x))


@torch.no_grad()
@pytest.mark.parametrize("r", [0, 2])
def test_a_buffer_of_the_first_call_is_no_input(r: int) -> None:
    def registered(body: nn.Module, x: Tensor) -> Tensor:
        if not hasattr(body, "table"):
            body.register_buffer("table", torch.arange(WIDTH).sin())
        return after_stem(body, body.patch_embed(x) + body.table)

    model, x = Around(registered), images()
    fast = tome_fx.transform(model, r, example_inputs=x)
    fast(x)
    assert torch.equal(x, images())
    assert not hasattr(model.body, "table")
    if not r:
        assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("door", ["auto", "symbolic_trace"])
def test_a_figure_for_a_log_has_no_part_in_the_program(door: str) -> None:
    def logged(body: nn.Module, x: Tensor) -> Tensor:
        body.norm_of_head = body.head.weight.data.norm()
        return body(x)

    model, x = Around(logged), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
    assert torch.equal(fast(x), model(x))


def test_the_data_of_a_weight_have_no_gradient() -> None:
    def scaled(body: nn.Module, x: Tensor) -> Tensor:
        return body(x) * body.head.bias.data.exp()

    model, x = Around(scaled), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    theirs, ours = gradients(model, x), gradients(fast, x)
    assert torch.equal(theirs["body.head.bias"], ours["body.head.bias"])


def test_a_write_that_gradients_do_not_see_is_warned_of() -> None:
    def clamped(body: nn.Module, x: Tensor) -> Tensor:
        patches = body.patch_embed(x)
        with torch.no_grad():
            patches.clamp_(-0.3, 0.3)
        return after_stem(body, patches)

    model, x = Around(clamped), images()
    with pytest.warns(tome_fx.ToMeWarning, match="without recording it for gradients"):
        fast = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.equal(fast(x), model(x))


def test_what_is_kept_for_one_image_has_values() -> None:
    @functools.lru_cache
    def table(batch: int) -> Tensor:
        return torch.ones(batch, 1, WIDTH).cumsum(-1).sin()

    def kept(body: nn.Module, x: Tensor) -> Tensor:
        return after_stem(body, body.patch_embed(x) + table(x.shape[0]))

    model, x = Around(kept), images(1)
    tome_fx.transform(model, 2, example_inputs=x)
    assert not isinstance(model(x), FakeTensor)


class Remembering(nn.Module):
    """Frames that are smoothed by the one before, or a factor that grows with each call."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.body, self.kept, self.before, self.calls = tiny(), kept, None, 0
        self.map: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        self.map = y
        if self.kept == "calls":
            self.calls += 1
            return y * min(1.0, self.calls / 10)
        if self.kept == "before":
            smooth = y if self.before is None else (y + self.before) / 2
            self.before = y.detach()
            return smooth
        return y


@pytest.mark.parametrize("kept", ["before", "calls", "map"])
def test_what_a_call_changes_for_the_next_one_is_told(kept: str) -> None:
    model = Remembering(kept)
    report = tome_fx.transform(model, 2, example_inputs=images(), check=True).report
    told = [note for note in report.notes if "a call of the model changes the next one" in note]
    assert bool(told) == (kept != "map")  # which no call reads
    assert all(f"{kept}" in note for note in told)
    assert "another way" not in str(report)


class OneApart(Remembering):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if len(x) == 1 else y


def test_what_remembers_and_treats_one_image_apart_is_for_several() -> None:
    x = images()
    fast = tome_fx.transform(OneApart("calls"), 2, example_inputs=x)
    notes = str(fast.report.notes)
    assert "changes the next one" in notes
    assert "cannot be told beside that" in notes
    with pytest.raises(tome_fx.ShapeError):
        fast(x[:1])
