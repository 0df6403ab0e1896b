"""What a module that stays a call does beside its results, and what stands on it and within it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.compilers import COMPILERS
from tests.drawing import randomise
from tests.laws.common import TINY, distance
from tests.test_leaves import Between, Block, Branching, C, N, Sized

pytestmark = TINY


class Written(nn.Module):
    """It writes to the tokens that it gets, and all who hold them see it."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert float(x.detach().abs().sum()) >= 0
        return (x.mul_(2.0) + 1.0,)


class Counted(nn.Module):
    """It counts its calls in a buffer that is another tensor each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert float(x.detach().abs().sum()) >= 0
        self.calls = self.calls + 1
        return (self.calls * x,)


@torch.no_grad()
@pytest.mark.parametrize("step", [Written, Counted])
def test_what_a_call_does_beside_its_results_would_be_lost(step: type[nn.Module]) -> None:
    source = Between(step()).double().eval()
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(tome_fx.CaptureError, match="abs"):
        tome_fx.transform(source, 3, example_inputs=image)


class Shared(nn.Module):
    """One module with two places in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.step, self.head = Block(), Branching(), nn.Linear(C, 5)
        self.again = self.step

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.step(self.first(x))[0]
        return self.head((x + self.again(x)[0]).mean(1))  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_module_with_two_places_stays_a_call_at_both() -> None:
    source = Shared().double().eval()
    randomise(source, 5)
    x = torch.randn(3, N, C, dtype=torch.float64)
    fast = tome_fx.transform(source, 3, example_inputs=x)
    repeated = x[:, torch.arange(N) % 5]
    assert distance(fast(repeated), source(repeated)) < 1e-12
    assert distance(fast(x), source(x)) > 1e-6
    fast.r = 0
    assert torch.equal(fast(x), source(x))
    assert set(fast.state_dict()) == set(source.state_dict())


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_under_autocast_compiled_it_is_what_it_is_without(compiler: str) -> None:
    source = Between().eval()
    randomise(source, 5)
    image = torch.randn(3, 3, 8, 8)
    fast = tome_fx.transform(source, 3, example_inputs=image)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = fast(image)
        found = torch.compile(fast, backend=compiler)(image)
    assert distance(found, wanted) < 3e-2


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Hooks on")
@pytest.mark.parametrize("place", ["step", "step.steps.0"])
def test_what_hooks_compute_stays_in_on_it_and_within(place: str) -> None:
    source = Between().double().eval()
    randomise(source, 5)
    source.get_submodule(place).register_forward_hook(
        lambda module, given, made: 2 * made if isinstance(made, Tensor) else (2 * made[0],)
    )
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(source, 0, example_inputs=image)
    assert torch.equal(fast(image), source(image))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Hooks on")
def test_a_weight_that_a_hook_computes_follows_what_it_is_made_of() -> None:
    source = Between().double().eval()
    randomise(source, 5)
    for step in source.step.steps:
        nn.utils.spectral_norm(step)
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(source, 0, example_inputs=image)
    for step in source.step.steps:
        step.weight_orig[0] *= 5
    assert torch.equal(fast(image), source(image))


class Borrowing(nn.Module):
    """It reads a weight of a module that is none of its own."""

    def __init__(self, owner: nn.Linear) -> None:
        super().__init__()
        self.owners = [owner]

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert float(x.detach().abs().sum()) >= 0
        return (x * self.owners[0].weight.mean(),)


def test_weights_of_others_are_refused() -> None:
    source = Between().eval()
    source.step = Borrowing(source.head)
    with pytest.raises(tome_fx.CaptureError, match=r"assert float.*step reads weights of others"):
        tome_fx.transform(source, 3, example_inputs=torch.randn(2, 3, 8, 8))


class EachAlone(Sized):
    """A part that reads a number is called for one image after the other (keypoint detectors)."""

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        rows = [self.embed(x[i : i + 1], sizes[i : i + 1]) for i in range(x.shape[0])]
        x = torch.cat(rows)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_a_module_that_each_image_calls_is_refused_with_text() -> None:
    x, sizes = torch.randn(2, N, 6), torch.tensor([[4, 4], [2, 8]])
    with pytest.raises(tome_fx.CaptureError, match="embed is called once for each image"):
        tome_fx.transform(EachAlone(), 3, example_inputs=(x, sizes))


def test_views_of_parameters_go_to_other_modules() -> None:
    class Probed(Sized):
        def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
            probe = self.blocks[0].out.bias.expand(x.shape[0], 1, C)
            return super().forward(x, sizes) + self.head(probe)[:, 0]

    source = Probed().double().eval()
    randomise(source, 3)
    x, sizes = torch.randn(2, N, 6, dtype=torch.float64), torch.tensor([[4, 4], [2, 7]])
    fast = tome_fx.transform(source, 0, example_inputs=(x, sizes))
    assert torch.equal(fast(x, sizes), source(x, sizes))
    fast.r = 3
    assert fast.schedule == (3, 3, 3)


class Moved(nn.Module):
    """It moves a part of its own to where its input is, which no capture allows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(C, C), nn.Sequential(nn.Linear(C, C))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        self.inner.to(x.device)
        self.outer.to(x.device)
        return (self.outer(self.inner(x)),)


@torch.no_grad()
def test_a_module_that_moves_its_parts_stays_a_call() -> None:
    model, x = Between(Moved()).double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, 3, example_inputs=x, capture="export")
    assert fast.schedule == (3, 3)
    assert any("step stays a call" in note for note in fast.report.notes)
    none = tome_fx.transform(model, 0, example_inputs=x, capture="export")
    assert distance(none(x), model(x)) < 1e-12


class OfGrid(nn.Module):
    """Blocks whose code reads the rows and columns of the one image that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        high, wide = int(grid[0, 0]), int(grid[0, 1])
        places = torch.arange(high)[:, None] + torch.arange(wide)
        x = self.blocks(x + places.flatten()[:, None] * 0.1)
        return x.unflatten(1, (high, wide)).mean((1, 2))


class OnGrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = OfGrid(), nn.Linear(C, 5)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return self.head(self.body(x, grid))  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_grid_that_is_read_where_the_attention_is() -> None:
    """With the part as a call there would be no attention: it is read for the example's grid."""
    source, x, grid = (
        OnGrid().double().eval(),
        torch.randn(1, 12, C).double(),
        torch.tensor([[3, 4]]),
    )
    fast = tome_fx.transform(source, 3, example_inputs=(x, grid), min_ratio=0)
    assert fast.schedule == (3, 3)
    with pytest.raises(tome_fx.ShapeError, match="grid"):
        fast(x, torch.tensor([[4, 3]]))
    fast.r = 0
    assert distance(fast(x, grid), source(x, grid)) < 1e-12
