"""The towers of vision-language models: rows of patches beside a grid, several images a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tome_fx
from tests.laws.common import TINY, distance
from tests.towers import TOWERS, Tower
from tests.zoo.around import widened
from tests.zoo.entry import leaves

pytest.importorskip("transformers")
pytestmark = TINY

GRID = ((1, 4, 8), (1, 6, 8))
FIRST = 32  # patches of the first image


def rows(result: Any) -> list[Tensor]:
    """All that a tower returns in floating point."""
    return [leaf for leaf in leaves(result) if leaf.is_floating_point()]


def of_patches(result: Any, count: int) -> tuple[Tensor, Tensor]:
    """What a tower makes of the patches of the first image and of the second, or of each four."""
    for leaf in rows(result):
        for dim, size in enumerate(leaf.shape):
            if size in (count, count // 4):
                lines = size * FIRST // count
                return leaf.narrow(dim, 0, lines), leaf.narrow(dim, lines, size - lines)
    raise AssertionError("it returns no patches")


def apart(one: Any, other: Any) -> float:
    pairs = zip(rows(one), rows(other), strict=True)
    return max(distance(a, b) for a, b in pairs)


@pytest.mark.few(1)
@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.name)
@torch.no_grad()
def test_a_tower(tower: Tower) -> None:
    pytest.importorskip(f"transformers.models.{tower.name}")
    model = tower.build()
    x, grid = tower.given(GRID)
    fast = tome_fx.transform(model, tower.r, example_inputs=x, example_kwargs=grid, min_ratio=0)
    assert {block.attention for block in fast.report.blocks}
    assert len(fast.report.blocks) >= 2 * 3
    assert set(fast.schedule) == {tower.r}
    assert not fast.report.near_misses
    table = str(fast.report).partition("\n\n")[2].partition("\n\n")[0]
    assert len(table.splitlines()) == 2 + 3, "one line for each layer"
    assert apart(fast(x, **grid), model(x, **grid)) > 1e-6

    # Each image by itself: another second image leaves the first as it is.
    changed, dim = x.clone(), int(tower.around)
    changed.narrow(dim, FIRST, x.shape[dim] - FIRST).neg_()
    (before, rest), (after, other) = (
        of_patches(fast(own, **grid), x.shape[dim]) for own in (x, changed)
    )
    assert distance(after, before) < 1e-12
    assert distance(other, rest) > 1e-6

    equal, _ = tower.given(GRID, tower.kinds)
    merged = widened(fast)
    fast.r = 0
    assert apart(fast(x, **grid), model(x, **grid)) == 0
    assert apart(merged(equal, **grid), widened(fast)(equal, **grid)) < 1e-9
    with pytest.raises(tome_fx.ShapeError, match="captured with"):
        fast(x, **grid | {tower.grid: grid[tower.grid].flip(0)})


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "tower", [tower for tower in TOWERS if tower.clips], ids=lambda tower: tower.name
)
@torch.no_grad()
def test_a_clip_beside_an_image(tower: Tower) -> None:
    """Its frames attend apart, or as one: no row stays whole because another is cut elsewhere."""
    pytest.importorskip(f"transformers.models.{tower.name}")
    model = tower.build()
    x, grid = tower.given(((1, 4, 8), (2, 6, 8)), tower.kinds)
    fast = tome_fx.transform(model, tower.r, example_inputs=x, example_kwargs=grid, min_ratio=0)
    assert not fast.report.near_misses
    assert all(block.removed > 0 for block in fast.report.blocks)
    merged = widened(fast)(x, **grid)
    fast.r = 0
    assert apart(fast(x, **grid), model(x, **grid)) == 0
    assert apart(merged, widened(fast)(x, **grid)) < 1e-9


def test_a_grid_is_tried_as_it_is_and_as_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try runs all of the model: for many images in a row, nearly all that it takes."""
    tower, tries = TOWERS[0], list[bool]()
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        tries.append(kwargs["strict"])
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    x, grid = tower.given(GRID)
    tome_fx.transform(tower.build(), 2, example_inputs=x, example_kwargs=grid, min_ratio=0)
    assert tries == [False, False]


@torch.no_grad()
def test_in_its_model() -> None:
    """The result in the place of the tower, in a model for language and images."""
    transformers = pytest.importorskip("transformers")
    vision = dict(TOWERS[0].options, hidden_size=64)
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3],
                                "rope_theta": 10000.0}}  # fmt: skip
    image, start, end = 290, 292, 293
    config = transformers.Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=image, vision_start_token_id=start,
        vision_end_token_id=end)  # fmt: skip
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    patches, grid = torch.randn(64, 96), torch.tensor([[1, 8, 8]])
    words = torch.tensor([[1, 2, start, *[image] * 16, end, 5]])
    given = {"input_ids": words, "pixel_values": patches, "image_grid_thw": grid,
             "mm_token_type_ids": (words == image).int()}  # fmt: skip
    before = model(**given).logits
    tower = model.model.visual
    fast = tome_fx.transform(
        tower, 8, example_inputs=patches, example_kwargs={"grid_thw": grid}, min_ratio=0
    )
    assert (fast.dtype, fast.device) == (tower.dtype, tower.device)
    model.model.visual = fast
    assert distance(model(**given).logits, before) > 1e-6
    fast.r = 0
    assert torch.equal(model(**given).logits, before)
    assert fast.double().dtype is torch.float64
