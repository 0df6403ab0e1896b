"""Code that goes one way for some batches and another way for others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tome_fx
from tests.laws.common import TINY, run
from tests.test_batches import PLACES, WithClass, of_images
from tests.test_joins import GRID

pytestmark = TINY

# What code asks, and for which batches the program of two images is.
BRANCHES: dict[str, tuple[Callable[[int], bool], range | None]] = {
    "more than four": (lambda images: images > 4, range(1, 5)),
    "many places": (lambda images: images * PLACES > 5 * PLACES, range(1, 6)),
    "odd": (lambda images: images % 2 == 1, None),
    "as many as": (lambda images: images == 5, range(1, 5)),
    "as many places": (lambda images: images * PLACES == 96 * PLACES, range(1, 96)),
    "more than hundreds": (lambda images: images > 700, range(1, 701)),
    "a multiple": (lambda images: images % 70 == 0, range(1, 70)),
    "by parts": (lambda images: images * 3 // 4 > 100, range(1, 135)),
    "between": (lambda images: not 1 < images < 8, range(2, 8)),
}


class Branching(WithClass):
    def __init__(self, asks: Callable[[int], bool]) -> None:
        super().__init__(of_images)
        self.asks = asks

    def forward(self, image: Tensor) -> Tensor:
        x = super().forward(image)
        return -x if self.asks(image.shape[0]) else x


@pytest.mark.few(2)
@pytest.mark.parametrize("name", BRANCHES)
def test_code_that_branches_on_the_batch_has_a_program_for_those_that_go_one_way(name: str) -> None:
    asks, batches = BRANCHES[name]
    x = torch.randn(5, 3, 2 * GRID, 2 * GRID)
    model = Branching(asks).eval()
    assert not asks(2)
    fast = tome_fx.transform(model, 0, example_inputs=x[:2])
    assert torch.equal(run(fast, x[:2]), run(model, x[:2]))
    if batches is None:
        with pytest.raises(tome_fx.ShapeError, match="captured for a batch of 2 alone"):
            fast(x)
        assert "fixes the batch at 2" in str(fast.report)
        return
    assert "for other batches: this program is for" in str(fast.report)
    for images in {batches[0], batches[-1]}:
        some = x[:1].expand(images, -1, -1, -1)
        assert torch.allclose(run(fast, some), run(model, some), atol=1e-5)
    for images in {batches[0] - 1, batches[-1] + 1} - {0}:
        with pytest.raises(tome_fx.ShapeError, match=f"a batch of {images}, for which|one image"):
            fast(x[:1].expand(images, -1, -1, -1))
    if asks(5):
        other = tome_fx.transform(model, 0, example_inputs=x)
        assert torch.equal(run(other, x), run(model, x))


def test_the_program_of_many_images_where_few_go_another_way() -> None:
    x, model = torch.randn(6, 3, 2 * GRID, 2 * GRID), Branching(lambda images: images > 4).eval()
    fast = tome_fx.transform(model, 2, example_inputs=x, min_ratio=0)
    assert "this program is for 5 images or more" in str(fast.report)
    assert torch.allclose(run(fast, x[:5]), run(fast, x)[:5], atol=1e-5)
    with pytest.raises(tome_fx.ShapeError, match="else than for 5 images or more"):
        fast(x[:4])
    compiled = torch.compile(fast, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(run(compiled, x), run(fast, x))
    fast.r = 0
    assert torch.equal(run(fast, x), run(model, x))


def test_an_exported_program_is_for_the_batches_that_it_says() -> None:
    x, model = torch.randn(5, 3, 2 * GRID, 2 * GRID), WithClass(of_images).eval()
    for limits, most in (({"min": 2, "max": 4}, 4), ({}, 5)):
        shapes = {"image": {0: torch.export.Dim("images", **limits)}}
        exported = torch.export.export(model, (x[:3],), dynamic_shapes=shapes)
        fast = tome_fx.transform(exported, 0)
        assert torch.allclose(run(fast, x[:most]), run(model, x[:most]), atol=1e-5)
        if most == 4:
            with pytest.raises(tome_fx.ShapeError, match="4 images or fewer"):
                fast(x)


class Pieces(WithClass):
    """Four images at a time: a batch that leaves none, or fewer, is told by sizes of pieces."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([super(Pieces, self).forward(piece) for piece in image.split(4)])


def test_pieces_of_a_batch_that_others_do_not_have() -> None:
    x, model = torch.randn(6, 3, 2 * GRID, 2 * GRID), Pieces(of_images).eval()
    with pytest.raises(tome_fx.ToMeError):
        tome_fx.transform(model, 2, example_inputs=x, min_ratio=0)
    few = tome_fx.transform(model, 0, example_inputs=x[:3])
    assert "for 4 images or fewer" in str(few.report)
    assert torch.allclose(run(few, x[:4]), run(model, x[:4]), atol=1e-5)
