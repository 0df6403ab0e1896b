"""Code that takes the number of images as a plain number leaves the batch free all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.test_joins import GRID, C, Model
from tests.zoo.entry import randomise

pytestmark = TINY
WINDOW = GRID // 2
PLACES = GRID * GRID


def counted(x: Tensor) -> int:
    return len(x)


def of_windows(x: Tensor) -> int:
    """How many images there are, by the windows that they were cut into."""
    windows = x.reshape(x.shape[0], 2, WINDOW, 2, WINDOW, C).permute(0, 1, 3, 2, 4, 5)
    windows = windows.reshape(-1, WINDOW, WINDOW, C)
    return int(windows.shape[0] / (PLACES / WINDOW / WINDOW))


def of_numbers(x: Tensor) -> int:
    return int(x.numel() // (PLACES * C))


class WithClass(Model):
    """A class token for each image, counted by ``count``."""

    def __init__(self, count: Callable[[Tensor], int]) -> None:
        super().__init__(torch.add)
        self.count, self.cls = count, nn.Parameter(torch.zeros(1, 1, C))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(self.count(x), -1, -1), x], dim=1)
        for attention, body in zip(self.attention, self.mlp, strict=True):
            x = x + attention(x)
            x = x + body(x)
        return self.head(x[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [counted, of_windows, of_numbers])
def test_any_batch_serves(count: Callable[[Tensor], int]) -> None:
    model = WithClass(count)
    randomise(model)
    model.double().eval()
    noise = torch.randn(5, 3, 2 * GRID, 2 * GRID).double()
    fast = tome_fx.transform(model, 3, example_inputs=noise[:2])
    assert fast.schedule == (3, 3)
    assert not fast.report.notes
    colours = noise[..., :1, :1].expand_as(noise).contiguous()
    for batch in (1, 2, 3, 5):
        assert distance(run(fast, colours[:batch]), run(model, colours[:batch])) < 1e-9
    assert distance(run(fast, noise), run(model, noise)) > 1e-6
    assert distance(run(fast, noise[3:]), run(fast, noise)[3:]) < 1e-9
    assert set(fast.state_dict()) == set(model.state_dict())


def test_a_list_of_one_table_for_each_image_fixes_the_batch() -> None:
    class Listed(WithClass):
        def forward(self, image: Tensor) -> Tensor:
            shifts = torch.cat([self.cls[..., :3, None]] * len(image))
            return super().forward(image + shifts.reshape(-1, 3, 1, 1))

    x = torch.randn(2, 3, 2 * GRID, 2 * GRID)
    fast = tome_fx.transform(Listed(counted).eval(), 3, example_inputs=x)
    assert "fixes the batch at 2" in str(fast.report)
    with pytest.raises(tome_fx.ShapeError, match="example_inputs of this batch"):
        fast(torch.cat([x, x]))
