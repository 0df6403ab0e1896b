"""Code that takes the number of images as a plain number leaves the batch free all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def of_images(x: Tensor) -> int:
    return x.shape[0]


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


@pytest.mark.few(1)
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


GAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "crop": lambda x: x[..., : 2 * GRID, : 2 * GRID],
    "every other": lambda x: x[::2, :, : 2 * GRID, : 2 * GRID],
    "some channels": lambda x: torch.cat([x, x], 1)[:, 1:4, : 2 * GRID, : 2 * GRID],
    "expanded": lambda x: x[..., : 2 * GRID, : 2 * GRID][:1].expand(2, -1, -1, -1),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", GAPS)
def test_an_example_with_gaps_in_memory_fixes_nothing(name: str) -> None:
    model, x = Model(torch.add).eval(), torch.randn(4, 3, 4 * GRID, 4 * GRID)
    fast = tome_fx.transform(model, 3, example_inputs=GAPS[name](x))
    assert not fast.report.notes
    whole = x[..., : 2 * GRID, : 2 * GRID]
    assert torch.equal(run(fast, whole), run(fast, whole.contiguous()))
    assert distance(run(fast, whole[:3]), run(fast, whole)[:3]) < 1e-5


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_example_has_no_strides() -> None:
    class Sparse(Model):
        def forward(self, image: Tensor, pairs: Tensor) -> Tensor:
            return super().forward(image) + pairs.to_dense().sum()

    model, x = Sparse(torch.add).eval(), torch.randn(2, 3, 2 * GRID, 2 * GRID)
    pairs = torch.eye(4).to_sparse_csr()
    fast = tome_fx.transform(model, 0, example_inputs=(x, pairs))
    assert torch.equal(fast(x, pairs), model(x, pairs))


def test_batches_that_are_compared_with_each_other_are_one() -> None:
    """As helpers repeat a mask for each head where it has fewer rows than there are heads."""

    class Told(Model):
        def forward(self, image: Tensor, told: Tensor) -> Tensor:
            rows = told[:, None]
            if rows.shape[0] < 2 * image.shape[0]:
                rows = rows.repeat_interleave(2, 0)
            return super().forward(image) + rows[::2].mean((1, 2), keepdim=True)[..., 0]

    model, x = Told(torch.add).eval(), torch.randn(5, 3, 2 * GRID, 2 * GRID)
    told = torch.randn(5, 7)
    fast = tome_fx.transform(model, 0, example_inputs=(x[:2], told[:2]))
    assert not fast.report.notes
    assert torch.equal(fast(x, told), model(x, told))


def test_what_holds_for_every_batch_is_no_branch() -> None:
    class Clamped(WithClass):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) * min(image.shape[0], 1)

    x, model = torch.randn(5, 3, 2 * GRID, 2 * GRID), Clamped(of_images).eval()
    fast = tome_fx.transform(model, 0, example_inputs=x[:3])
    assert torch.equal(run(fast, x), run(model, x))


class WithTexts(WithClass):
    """Images and texts, in numbers of their own."""

    def __init__(self) -> None:
        super().__init__(of_images)
        self.words = nn.Linear(4, 5)

    def forward(self, image: Tensor, texts: Tensor) -> Tensor:
        likeness = super().forward(image) @ self.words(texts).T / texts.shape[0]
        return -likeness if texts.shape[0] > 4 else likeness


@pytest.mark.few(1)
@pytest.mark.parametrize("texts", [2, 3])
def test_another_number_of_texts_is_another_program(texts: int) -> None:
    x, words, model = torch.randn(4, 3, 2 * GRID, 2 * GRID), torch.randn(6, 4), WithTexts().eval()
    fast = tome_fx.transform(model, 0, example_inputs=(x[:2], words[:texts]))
    assert torch.equal(fast(x[:2], words[:texts]), model(x[:2], words[:texts]))
    with pytest.raises(tome_fx.ShapeError):
        fast(x, words)
    with pytest.raises(tome_fx.ShapeError, match="texts"):
        fast(x[:2], words)


def test_code_that_compares_two_numbers_has_a_program_for_both() -> None:
    class Compared(WithTexts):
        def forward(self, image: Tensor, texts: Tensor) -> Tensor:
            likeness = WithClass.forward(self, image) @ self.words(texts).T
            return -likeness if texts.shape[0] > image.shape[0] else likeness

    x, words, model = torch.randn(4, 3, 2 * GRID, 2 * GRID), torch.randn(6, 4), Compared().eval()
    fast = tome_fx.transform(model, 0, example_inputs=(x[:2], words[:2]))
    assert torch.equal(fast(x[:2], words[:2]), model(x[:2], words[:2]))
    with pytest.raises(tome_fx.ShapeError):
        fast(x[:2], words[:3])


def test_code_without_a_file_is_the_model_s_own() -> None:
    class Read(WithTexts):
        def forward(self, image: Tensor, texts: Tensor) -> Tensor:
            likeness = WithClass.forward(self, image) @ self.words(texts).T
            return -likeness if self.more(texts, image) else likeness

    source = "def more(self, texts, image):\n    return texts.shape[0] > image.shape[0]\n"
    held: dict[str, Any] = {}
    exec(compile(source, "<ipython-input-7>", "exec"), held)
    Read.more = held["more"]  # type: ignore[attr-defined]
    x, words, model = torch.randn(4, 3, 2 * GRID, 2 * GRID), torch.randn(6, 4), Read().eval()
    fast = tome_fx.transform(model, 0, example_inputs=(x[:2], words[:2]))
    with pytest.raises(tome_fx.ShapeError):
        fast(x[:2], words[:3])


@pytest.mark.few(3)
@pytest.mark.parametrize(("texts", "count"), [(2, 2), (2, 3), (3, 2), (2, 1)])
def test_texts_may_stand_before_images(texts: int, count: int) -> None:
    """The first input need not be that of the images."""

    class Asked(WithClass):
        def __init__(self) -> None:
            super().__init__(of_images)
            self.words = nn.Embedding(9, 5)

        def forward(self, ids: Tensor, image: Tensor) -> Tensor:
            return super().forward(image) @ self.words(ids).mean(1).T

    x, model = torch.randn(5, 3, 2 * GRID, 2 * GRID), Asked().eval()
    ids = torch.randint(9, (4, 6))
    fast = tome_fx.transform(model, 2, example_inputs=(ids[:texts], x[:count]))
    assert set(fast.schedule) == {2}
    fast.r = 0
    for images in (x[:count], x):
        assert torch.equal(fast(ids[:texts], images), model(ids[:texts], images))


class OneApart(WithClass):
    """One image alone is treated in another way."""

    def forward(self, image: Tensor) -> Tensor:
        x = super().forward(image)
        return -x if image.shape[0] == 1 else x


class Squeezed(WithClass):
    """The axis of the images goes where it has the extent 1."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).squeeze()


def test_one_image_alone_has_a_program_of_its_own() -> None:
    x, model = torch.randn(5, 3, 2 * GRID, 2 * GRID), OneApart(of_images).eval()
    several = tome_fx.transform(model, 0, example_inputs=x[:2])
    assert torch.allclose(run(several, x), run(model, x), atol=1e-5)
    with pytest.raises(tome_fx.ShapeError, match="one image"):
        several(x[:1])
    assert "for one image" in str(several.report)
    one = tome_fx.transform(model, 0, example_inputs=x[:1])
    assert torch.equal(run(one, x[:1]), run(model, x[:1]))
    with pytest.raises(tome_fx.ShapeError, match="captured for a batch of 1 alone"):
        one(x)


def test_one_image_alone_where_buffers_decide() -> None:
    class Decided(OneApart):
        def __init__(self) -> None:
            super().__init__(of_images)
            self.register_buffer("flag", torch.ones(()))

        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image if self.flag > 0 else -image)

    x, model = torch.randn(2, 3, 2 * GRID, 2 * GRID), Decided().eval()
    one = tome_fx.transform(model, 0, example_inputs=x[:1])
    assert torch.equal(run(one, x[:1]), run(model, x[:1]))


@pytest.mark.parametrize("kind", [WithClass, Squeezed])
def test_other_models_take_one_image_as_well(kind: type[WithClass]) -> None:
    x, model = torch.randn(2, 3, 2 * GRID, 2 * GRID), kind(of_images).eval()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.allclose(run(fast, x[:1]), run(model, x[:1]), atol=1e-5)
    assert not fast.report.notes
