"""A model whose own code acts differently while it is traced is never captured without a word."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.laws.world import world
from tests.tracing_models import Block, C, Model, N, Scaled, exporting, made, symbolic, traced

pytestmark = TINY


def test_symbolic_tracing_where_only_export_is_asked_for() -> None:
    model, x = made(stem=exporting)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.report.capture == "symbolic_trace"
    fast.r = 0
    assert torch.equal(fast(x)["logits"], model(x)["logits"])


def test_export_where_only_symbolic_tracing_is_asked_for() -> None:
    model, x = made(stem=symbolic)
    assert tome_fx.transform(model, 2, example_inputs=x).report.capture == "export"
    with pytest.raises(tome_fx.CaptureError, match="first in scaled"):
        tome_fx.transform(model, 2, example_inputs=x, capture="symbolic_trace")


def test_what_asks_stays_a_call_where_it_can() -> None:
    model, x = made(stem=traced)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.schedule == (2, 2)
    assert any("scaled stays a call" in note for note in fast.report.notes)
    fast.r = 0
    assert torch.equal(fast(x)["logits"], model(x)["logits"])


def test_attention_that_asks_stays_a_call_too() -> None:
    model, x = made(attention=traced)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.schedule == (2,)
    assert any("blocks.0.attn stays a call" in note for note in fast.report.notes)
    fast.r = 0
    assert torch.equal(fast(x)["logits"], model(x)["logits"])


def test_what_cannot_stay_a_call_is_refused_by_name() -> None:
    """The choice is made outside of the module that it changes."""

    class Outside(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.scaled(self.stem(x))
            x = self.blocks[1](self.blocks[0](x, None if traced(x) else x[:, :1]))
            return {"logits": self.head(x.mean(1))}

    class Masked(Block):
        def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
            return super().forward(x if more is None else x + more)

    model, x = made()
    model.__class__, model.blocks[0].__class__ = Outside, Masked
    before = world(model)
    with pytest.raises(tome_fx.CaptureError) as caught:
        tome_fx.transform(model, 2, example_inputs=x)
    text = str(caught.value)
    for part in ("result['logits']", "while it is captured", "first in blocks.0.", "check=False"):
        assert part in text
    assert world(model) == before


def test_it_can_be_left_out() -> None:
    model, x = made(attention=traced)
    fast = tome_fx.transform(model, 0, example_inputs=x, check=False)
    with torch.no_grad():
        assert distance(fast(x)["logits"], model(x)["logits"]) > 1e-3


def test_rounding_is_no_difference() -> None:
    model, x = made(stem=traced, traced=2.0 * (1 + 1e-12))
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.report.capture == "export"
    assert fast.report.notes == ()


def test_a_difference_of_a_narrow_model() -> None:
    """What is rounding in bfloat16 would be none in float64."""
    model, x = made(stem=traced, traced=2.0 * (1 + 1e-3))
    assert tome_fx.transform(model, 2, example_inputs=x).report.notes != ()
    narrow = tome_fx.transform(model.bfloat16(), 2, example_inputs=x.bfloat16())
    assert narrow.report.notes == ()


def test_another_mode_is_looked_at_when_it_is_captured() -> None:
    class Moody(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else x

    model, x = made()
    model.scaled = Moody(traced).eval()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert fast.report.notes == ()
    fast.train()
    assert any("scaled stays a call" in note for note in fast.report.notes)
    assert torch.equal(fast(x)["logits"], model.train()(x)["logits"])


def test_what_draws_in_training_cannot_be_compared() -> None:
    class Drawing(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            if not self.asks(x):
                torch.rand(1)  # so that what follows draws other numbers
            return F.dropout(x, 0.5, self.training)

    model, x = made()
    model.scaled = Drawing(traced)
    assert tome_fx.transform(model.train(), 2, example_inputs=x).report.notes == ()


def test_few_of_many_images_are_run() -> None:
    seen = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not traced(x):
                seen.append(x.shape[0])
            return x

    model, x = made()
    model.scaled = Counting()  # type: ignore[assignment]
    tome_fx.transform(model, 2, example_inputs=x.repeat(8, 1, 1))
    assert seen == [2, 1]


def test_a_model_without_values_is_not_run() -> None:
    with torch.device("meta"):
        model = Model(attention=traced).eval()
    x = torch.zeros(2, N, 6, device="meta")
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)


def test_not_a_number_where_the_model_has_one_too() -> None:
    model, x = made()
    x[0] = float("nan")
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)


@pytest.mark.parametrize("r", [0, 2])
def test_views_behind_a_batch_norm_in_training(r: int) -> None:
    """Its decomposition has other strides than the op, and a view asks for them."""

    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(C), nn.BatchNorm1d(C)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.mT).mT
            rows = self.second(y.flatten(0, 1))
            return rows.view(x.shape)  # type: ignore[no-any-return]

    model, x = made()
    model.scaled = Norms().double()  # type: ignore[assignment]
    model.train()
    fast = tome_fx.transform(model, r, example_inputs=x)
    assert fast.schedule == (r, r)
    if not r:
        assert distance(fast(x)["logits"].detach(), model(x)["logits"].detach()) < 1e-9
    fast(x)["logits"].sum().backward()
