"""Inputs with a batch of their own: what never meets the images is not theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import tome_fx
from tests.compiling.common import R, backend
from tests.rules.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


class Pair(nn.Module):
    """Images and texts, each with a tower, as CLIP has them."""

    def __init__(self, compared: bool) -> None:
        super().__init__()
        self.image, self.compared = tiny(), compared
        text: Any = tiny()
        self.table, self.blocks = nn.Embedding(20, 32), text.blocks
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor, text: Tensor) -> Any:
        ours = self.image(image)
        theirs = self.head(self.blocks(self.table(text)).mean(1))
        return ours @ theirs.T if self.compared else (ours, theirs)


class Met(Pair):
    """One text for each image: their features are added."""

    def forward(self, image: Tensor, text: Tensor) -> Any:
        return self.image(image) + self.head(self.blocks(self.table(text)).mean(1))


def texts(batch: int) -> Tensor:
    return torch.arange(12 * batch).reshape(batch, 12) % 20


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("compared", [True, False])
def test_texts_are_as_many_as_images_by_chance(compared: bool, dynamic: bool | None) -> None:
    """Whether they are as many or not, the images merge and the texts do not."""
    model, chosen = Pair(compared).eval(), backend(inner="eager")
    fast = tome_fx.transform(model, R, example_inputs=(images(), texts(2)), min_ratio=0)
    assert fast.schedule == (R, R)
    compiled = torch.compile(model, backend=chosen, dynamic=dynamic, fullgraph=True)
    for sizes in ((4, 4), (3, 3), (2, 5)):
        inputs = images(sizes[0]), texts(sizes[1])
        ours, theirs = compiled(*inputs), fast(*inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert {report.schedule for report in chosen.reports} == {(R, R)}


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [True, None])
def test_texts_that_meet_the_images_are_theirs(dynamic: bool | None) -> None:
    """They have one batch then; their words stay whole beside the images all the same."""
    model, chosen = Met(False).eval(), backend(inner="eager")
    inputs = images(), texts(2)
    fast = tome_fx.transform(model, R, example_inputs=inputs, min_ratio=0)
    assert fast.schedule == (R, R)
    compiled = torch.compile(model, backend=chosen, dynamic=dynamic, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), fast(*inputs), rtol=1e-5, atol=1e-5)
    assert {report.schedule for report in chosen.reports} == {(R, R)}


class TextFirst(Pair):
    """The same with the texts as the first input."""

    def forward(self, text: Tensor, image: Tensor) -> Any:
        return super().forward(image, text)


class TextUsedFirst(Pair):
    """The same with the texts' tower run first."""

    def forward(self, image: Tensor, text: Tensor) -> Any:
        theirs = self.head(self.blocks(self.table(text)).mean(1))
        return self.image(image) @ theirs.T


@torch.no_grad()
@pytest.mark.parametrize("kind", [TextFirst, TextUsedFirst])
def test_images_are_what_has_most_axes(kind: type[Pair]) -> None:
    """The order of inputs, or of their use, says nothing about what merges."""
    model, chosen = kind(True).eval(), backend(inner="eager")
    inputs = (images(), texts(2)) if kind is TextUsedFirst else (texts(2), images())
    fast = tome_fx.transform(model, R, example_inputs=inputs, min_ratio=0)
    result = torch.compile(model, backend=chosen, fullgraph=True)(*inputs)
    torch.testing.assert_close(result, fast(*inputs), rtol=1e-5, atol=1e-5)
    assert fast.schedule == (R, R)
    tower = tome_fx.transform(model.image, R, min_ratio=0)(images())
    theirs = model.head(model.blocks(model.table(texts(2))).mean(1))  # type: ignore[operator]
    torch.testing.assert_close(result, tower @ theirs.T, rtol=1e-5, atol=1e-5)
