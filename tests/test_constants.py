"""Numbers that code reads out of constants are no values of an input."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.tiny import images, tiny
from tests.versions import lacks
from tome_fx.capturing.exporting import _edited, _uncheck

pytestmark = TINY


def of_a_grid(grid: Tensor) -> Tensor:
    """Row and column of each token, as towers for images of any size make them."""
    frames, high, wide = (int(extent) for extent in grid[0, :3])
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


class OneHot(nn.Module):
    """Places of each image by a table that is multiplied by ones and zeros, as Gemma 4 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = tiny(), nn.Linear(9, 32)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body.patch_embed(x)
        places = torch.arange(9).expand(len(x), -1)
        tokens = tokens + self.table(F.one_hot(places, num_classes=9).to(x.dtype))
        for block in self.body.blocks:
            tokens = block(tokens)
        return tokens.mean(1)  # type: ignore[no-any-return]


class Ranged(nn.Module):
    """A number of ``arange``, or of one that a grid ends, in code that asks for ``len(x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        tokens = self.body.patch_embed(x)
        for block in self.body.blocks:
            tokens = block(tokens)
        if grid is None:
            rows = int((torch.arange(9) // 3).max()) + 1
        else:
            rows = torch.arange(int(grid.prod())).unique().shape[0]
        return tokens.reshape(len(x), rows, -1, 32).mean((1, 2))


FREE = pytest.param((), 3, marks=lacks("guards on numbers of ranges in a strict export"))


@pytest.mark.few(1)
@pytest.mark.parametrize(("grid", "batch"), [FREE, ((torch.tensor([[1, 3, 3]]),), 2)])
def test_a_batch_that_the_code_asks_for_beside_numbers(
    grid: tuple[Tensor, ...], batch: int
) -> None:
    """It is free where they are of no input."""
    model, x = Ranged().eval().double(), images(batch).double()
    fast = tome_fx.transform(model, 2, example_inputs=(x[:2], *grid))
    assert fast.schedule == (2, 2)
    fast.r = 0
    assert torch.equal(fast(x, *grid), model(x, *grid))


def test_what_an_image_has_of_its_own_is_no_constant() -> None:
    model, x = OneHot().eval().double(), images(3).double()
    fast = tome_fx.transform(model, 2, example_inputs=x[:2])
    assert fast(x).shape == (3, 32)
    fast.r = 0
    assert torch.equal(fast(x), model(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("place", [of_a_grid, by_lengths, by_places])
@pytest.mark.parametrize("named", [False, True])
def test_a_grid_that_comes_in(place: Callable[[Tensor], Tensor], named: bool) -> None:
    """It is a part of the program then, and another one is refused, compiled too."""
    model, x, grid = Gridded(place).eval(), images(3), torch.tensor([[1, 3, 3]])
    given = (x[:2],) if named else (x[:2], grid)
    fast = tome_fx.transform(
        model, 2, example_inputs=given, example_kwargs={"grid": grid} if named else None
    )
    assert fast.schedule == (2, 2)
    assert any("grid = [[1, 3, 3]]" in note for note in fast.report.notes)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)

    def call(module: Callable[..., Tensor], grid: Tensor) -> Tensor:
        return module(x, grid=grid) if named else module(x, grid)

    with torch.no_grad():
        assert distance(call(fast, grid), call(model, grid)) > 1e-6
        assert distance(call(compiled, grid), call(fast, grid)) < 1e-5
        other = torch.tensor([[1, 9, 1]])
        with pytest.raises(tome_fx.ShapeError, match=r"grid is \[\[1, 9, 1\]\]"):
            call(fast, other)
        with pytest.raises(tome_fx.ShapeError, match="that shape alone"):
            call(fast, torch.cat([grid, grid]))
        with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported)) as caught:
            call(compiled, other)
        assert any("captured with grid" in str(error) for error in behind(caught.value))
        fast.r = 0
        assert torch.equal(call(fast, grid), call(model, grid))


def test_nothing_is_printed_on_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    """Export prints its graph where it fails; here another way is found."""
    given = images(), torch.tensor([[1, 3, 3]])
    tome_fx.transform(Gridded(of_a_grid).eval(), 2, example_inputs=given)
    told = capfd.readouterr()
    assert "def forward" not in told.err + told.out


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised on."""
    while error is not None:
        yield error
        error = error.__context__


@pytest.mark.parametrize(
    "grid",
    [
        pytest.param(torch.tensor([[1.0, 3.0, 3.0]]), id="not whole"),
        pytest.param(torch.tensor([[1, 3, 3]]).expand(2, -1), id="one for each image"),
        pytest.param(torch.tensor([[1, 3, 3]]).repeat(400, 1), id="many"),
        pytest.param(torch.tensor([[1, 3, 3, 9, 9]]), id="words"),
    ],
)
def test_what_is_no_grid_is_refused_with_the_way_out(grid: Tensor) -> None:
    with pytest.raises(tome_fx.CaptureError, match=r"into forward, in a wrapper say"):
        tome_fx.transform(Gridded(of_a_grid).eval(), 2, example_inputs=(images(), grid))


def part(t: Tensor, value: Tensor) -> Tensor:
    t[2] = value
    return t


def by_view(t: Tensor, value: Tensor) -> Tensor:
    t[1:].copy_(value)
    return t


def detached(t: Tensor, value: Tensor) -> Tensor:
    t.detach().add_(value)
    return t


def chunked(t: Tensor, value: Tensor) -> Tensor:
    first, *_ = t.chunk(3)
    first += value
    return t


def gathered(t: Tensor, value: Tensor) -> Tensor:
    torch.add(t[:1], value, out=t[:1])
    return t


class Written(nn.Module):
    """Reads a number out of a constant that it has written to."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.write = tiny(), write

    def forward(self, x: Tensor) -> Tensor:
        bright = (x > 10).sum().clamp(max=5)
        return self.body(x) + sum(self.write(torch.tensor([3, 3, 0]), bright).tolist())


@pytest.mark.few(1)
@pytest.mark.parametrize("write", [part, by_view, detached, chunked, gathered])
def test_a_constant_that_is_written_to_is_none(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(tome_fx.CaptureError):
        tome_fx.transform(Written(write).eval(), 2, example_inputs=images(), check=False)


class Region(nn.Module):
    """A check of values beside a region whose result nobody reads, and which writes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor) -> Tensor:
        shifted = x * 1
        with torch.no_grad():
            shifted[:, :1].add_(1)
        torch._check_tensor_all(torch.tensor([3, 3]).prod() == 9, lambda: "not the grid")
        torch._check_tensor_all(x.isfinite(), lambda: "not finite")
        return self.body(shifted)  # type: ignore[no-any-return]


def test_checks_go_and_writes_stay() -> None:
    model, x = Region().eval(), images(3)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    before = str(exported.graph)
    plain = _edited(exported, _uncheck)
    assert str(exported.graph) == before
    assert not any("_assert_scalar" in str(node.target) for node in plain.graph.nodes)
    assert torch.equal(plain.run_decompositions({}).module()(x), model(x))
    fast = tome_fx.transform(exported, 0)
    assert torch.equal(fast(x), model(x))
