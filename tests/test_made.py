"""Numbers that code reads from what it makes of sizes alone, and keeps for later calls."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.test_clips import Alternating
from tests.zoo.entry import randomise
from tome_fx.capturing.made import MadeKnown

pytestmark = TINY


class Kept:
    """Positions of a grid, made once (VGGT, Depth Anything 3)."""

    def __init__(self) -> None:
        self.grids: dict[tuple[int, int], Tensor] = {}

    def __call__(self, images: int, high: int, wide: int) -> Tensor:
        if (high, wide) not in self.grids:
            places = torch.cartesian_prod(torch.arange(high), torch.arange(wide))
            self.grids[high, wide] = places
        grid = self.grids[high, wide]
        return grid.view(1, high * wide, 2).expand(images, -1, -1).clone() + 1


class Turned(Alternating):
    """Queries and keys are turned by angles from a table as long as the largest position asks."""

    def __init__(self) -> None:
        super().__init__(fused=True)
        self.places, self.tables = Kept(), dict[int, Tensor]()

    def turned(self, x: Tensor, places: Tensor) -> Tensor:
        most = int(places.max()) + 1
        if most not in self.tables:
            self.tables[most] = torch.arange(most, dtype=x.dtype)[:, None] * 0.3
        angle = F.embedding(places, self.tables[most])[:, None]  # [B, 1, N, 2, 1]
        angle = angle.flatten(-2).repeat_interleave(2, -1)
        first, second = x.unflatten(-1, (2, 2)).unbind(-2)
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def attended(self, x: Tensor, qkv: nn.Module) -> Tensor:
        images, tokens, _ = x.shape
        frames = tokens // 9
        places = self.places(images * frames, 2, 4)
        places = torch.cat([places.new_zeros(images * frames, 1, 2), places], 1)
        places = places.view(images, tokens, 2)
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turned(q, places), self.turned(k, places), v)
        return y.transpose(1, 2).flatten(2)


def turned() -> Turned:
    model = Turned()
    randomise(model)
    return model.double().eval()


@pytest.mark.few(1)
@pytest.mark.parametrize("warm", [False, True])
def test_positions_that_the_code_counts_itself(warm: bool) -> None:
    model, other = turned(), torch.randn(3, 2, 3, 8, 16, dtype=torch.float64)
    if warm:
        model(other)
    kept = copy.deepcopy(model.places.grids)
    fast = tome_fx.transform(model, 2, example_inputs=other[:2], min_ratio=0)
    assert model.places.grids.keys() == kept.keys()
    assert fast.schedule == (2, 2, 2, 1)
    assert fast.report.unmerges == ()
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-9
    assert distance(run(fast, other), run(model, other)) > 1e-6
    fast.r = 0
    assert distance(run(fast, other), run(model, other)) < 1e-12


def test_equal_patches_at_one_place_of_the_table() -> None:
    """With one position for all, patches of one colour are duplicates."""
    model = turned()
    model.places.grids[2, 4] = torch.full((8, 2), 3)
    x = torch.randn(3, 2, 3, 1, 1, dtype=torch.float64).expand(-1, -1, -1, 8, 16).contiguous()
    fast = tome_fx.transform(model, 2, example_inputs=x, min_ratio=0)
    assert fast.schedule == (2, 2, 2, 1)
    assert distance(run(fast, x), run(model, x)) < 1e-9


class Reads(nn.Module):
    """A ViT whose code asks for numbers before it goes on."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem, self.qkv = how, nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24)

    def number(self, x: Tensor) -> float:
        tokens = x.shape[1]
        if self.how == "sizes":
            return float(x.new_ones(x.shape[0], tokens).sum(1).mean())
        if self.how == "written":
            places = torch.zeros(x.shape[0], tokens, dtype=torch.long)
            places[:, 1:] = torch.arange(tokens - 1)
            return 1.0 if places.max() > 3 else 2.0
        if self.how == "batch":
            return float(torch.arange(x.shape[0]).max())
        if self.how == "drawn":
            return float(torch.rand_like(torch.ones(x.shape[0])).max())
        places = torch.zeros(x.shape[0], tokens, dtype=x.dtype)
        places[:, :] = x[..., 0]
        return float(places.max())

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        x = x * self.number(x)
        q, k, v = self.qkv(x).chunk(3, -1)
        return (x + F.scaled_dot_product_attention(q, k, v)).mean(1)


@pytest.mark.parametrize("how", ["sizes", "written"])
def test_what_is_made_of_sizes_may_be_read(how: str) -> None:
    model, x = Reads(how).double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, 4, example_inputs=x[:2], min_ratio=0, capture="export")
    assert fast.schedule == (4,)
    fast.r = 0
    assert distance(run(fast, x), run(model, x)) < 1e-12


@pytest.mark.parametrize("how", ["batch", "drawn", "image"])
def test_what_follows_the_batch_a_draw_or_an_image_may_not(how: str) -> None:
    model, x = Reads(how).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(tome_fx.CaptureError, match=r"float\("):
        tome_fx.transform(model, 4, example_inputs=x, min_ratio=0)


def of_view(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape[0], x.shape[1], x.shape[2], dtype=x.dtype)
    made.view_as(x).copy_(x)
    return made


def by_op(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape[0], x.shape[1], x.shape[2], dtype=x.dtype)
    torch.ops.aten.copy_.default(made, x)
    return made


def by_norm(x: Tensor) -> Tensor:
    mean, var = torch.zeros(16, dtype=x.dtype), torch.ones(16, dtype=x.dtype)
    F.batch_norm(x, mean, var, training=True)
    return mean


def unseen(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape[0], x.shape[1], x.shape[2], dtype=x.dtype)
    with torch._C.DisableTorchFunction():
        made.add_(x)
    return made


def of_base(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape[0], 16, 8, dtype=x.dtype)
    piece = made[:, :3]
    made.add_(x)
    return piece


HIDDEN = [of_view, by_op, by_norm, unseen, of_base]


@pytest.mark.parametrize("written", HIDDEN)
def test_what_images_are_written_to_may_not(written: Callable[[Tensor], Tensor]) -> None:
    class Writes(Reads):
        def number(self, x: Tensor) -> float:
            return float(written(x.detach()).max())

    model, x = Writes("").double().eval(), torch.randn(2, 3, 8, 8).double()
    with pytest.raises(tome_fx.CaptureError, match=r"float\("):
        tome_fx.transform(model, 4, example_inputs=x, capture="export")


@pytest.mark.parametrize("name", ["bernoulli_", "uniform_", "normal_", "exponential_"])
@pytest.mark.parametrize("seed", range(3))
def test_draws_into_what_was_made_may_not(name: str, seed: int) -> None:
    class Draws(Reads):
        def number(self, x: Tensor) -> float:
            return 1.0 if getattr(x.new_ones(x.shape[0], 1), name)().max() > 0.5 else 2.0

    torch.manual_seed(seed)
    model, x = Draws("").double().eval(), torch.randn(2, 3, 8, 8).double()
    with pytest.raises(tome_fx.CaptureError, match=r"number|max"):
        tome_fx.transform(model, 4, example_inputs=x, capture="export")


class Compared(Reads):
    """Numbers of two inputs that have a number of rows each."""

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:  # type: ignore[override]
        many = boxes.new_ones(boxes.shape[0]).sum(), boxes.new_ones(image.shape[0]).sum()
        scale = float(many[0] / many[1]) if self.how == "ratio" else float(many[0] > many[1])
        return super().forward(image) * (scale + 1.0)


@pytest.mark.parametrize("how", ["ratio", "more"])
@pytest.mark.parametrize("boxes", [3, 5])
def test_numbers_of_two_inputs_may_not(how: str, boxes: int) -> None:
    model, x = Compared(how).double().eval(), torch.randn(3, 3, 8, 8).double()
    model.number = lambda x: 1.0  # type: ignore[method-assign]
    given = (x, torch.randn(boxes, 4).double())
    with pytest.raises(tome_fx.CaptureError, match=r"float\("):
        tome_fx.transform(model, 4, example_inputs=given, capture="export")


def test_literal_counts_on_the_meta_device() -> None:
    class Counts(Reads):
        def number(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x * torch.tensor([0, 1, 2, 3, 4, 5, 6, 7], device=x.device)

    model = Counts("").to("meta").eval()
    x = torch.zeros(2, 3, 8, 8, device="meta")
    assert tome_fx.transform(model, 4, example_inputs=x, min_ratio=0).schedule == (4,)


def test_draws_are_as_without_it() -> None:
    torch.manual_seed(0)
    with MadeKnown():
        drawn = torch.rand_like(torch.ones(4)), torch.rand(2)
    torch.manual_seed(0)
    assert torch.equal(drawn[0], torch.rand(4))
    assert torch.equal(drawn[1], torch.rand(2))
