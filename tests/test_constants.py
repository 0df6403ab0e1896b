"""Numbers that code reads out of constants are no values of an input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.tiny import images, tiny

pytestmark = TINY


def of_a_grid(grid: Tensor) -> Tensor:
    """Row and column of each token, as towers for images of any size make them."""
    frames, high, wide = (int(extent) for extent in grid[0])
    rows = torch.arange(high)[:, None].expand(-1, wide).flatten()
    columns = torch.arange(wide).repeat(high)
    return torch.stack([rows, columns], -1).repeat(frames, 1)


def by_lengths(grid: Tensor) -> Tensor:
    """The number of each token's row: a row is as long as another, and each is counted."""
    lengths = torch.repeat_interleave(grid[:, 2], int(grid[0, 1]))
    ends = torch.cumsum(lengths, 0).tolist()
    starts = [0, *ends[:-1]]
    spans = zip(starts, ends, strict=True)
    rows = [torch.full((end - start,), float(i)) for i, (start, end) in enumerate(spans)]
    return torch.cat(rows)[:, None].expand(-1, 2)


def by_places(grid: Tensor) -> Tensor:
    """Lengths of equal runs, and places where something holds."""
    _, runs = torch.unique_consecutive(torch.cat([grid[0, 1:], grid[0, 1:]]), return_counts=True)
    held = torch.nonzero(torch.cat([grid[0]] * 3) > 2)
    return torch.ones(9, 2) * (int(runs.sum()) + held.shape[0])


class Gridded(nn.Module):
    """Tokens with a shift that follows from a grid."""

    def __init__(self, place: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.place = tiny(num_classes=0, global_pool=""), place
        self.shift = nn.Linear(2, 32)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        tokens = self.body.patch_embed(x)
        tokens = tokens + 0.1 * self.shift(self.place(grid).to(x.dtype))
        for block in self.body.blocks:
            tokens = block(tokens)
        return tokens.mean(1)  # type: ignore[no-any-return]


class Fixed(nn.Module):
    """The wrapper that a refusal asks for."""

    def __init__(self, place: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tower = Gridded(place)

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x, torch.tensor([[1, 3, 3]]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("capture", ["export", "symbolic_trace"])
@pytest.mark.parametrize("place", [of_a_grid, by_lengths, by_places])
def test_a_grid_that_is_written_into_forward(
    place: Callable[[Tensor], Tensor], capture: str
) -> None:
    model, x = Fixed(place).eval().double(), images(3).double()
    fast = tome_fx.transform(model, 2, example_inputs=x[:2], capture=capture)
    assert fast.schedule == (2, 2)
    assert distance(run(fast, x), run(model, x)) > 1e-6
    fast.r = 0
    assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("place", [of_a_grid, by_lengths])
def test_a_grid_that_comes_in_is_refused_with_the_way_out(
    place: Callable[[Tensor], Tensor],
) -> None:
    given = images(), torch.tensor([[1, 3, 3]])
    with pytest.raises(tome_fx.CaptureError, match=r"into forward, in a wrapper say"):
        tome_fx.transform(Gridded(place).eval(), 2, example_inputs=given)
