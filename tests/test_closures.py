"""Functions on a model that reach for it by a closure, a global name or a weak reference."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.laws.world import world
from tests.rules.common import C, images, schedule_for
from tome_fx.capturing.modes import deep_copy

pytestmark = [TINY, pytest.mark.filterwarnings("ignore:Hooks on:tome_fx.ToMeWarning")]
LABELS = (0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 5)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return attended(self, x)[0]


def attended(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = attention.qkv(x).unflatten(2, (3, 2, C // 2)).permute(2, 0, 3, 1, 4)
    weights = F.dropout((q @ k.mT).softmax(-1), 0.5, attention.training)
    y: Tensor = attention.out((weights @ v).transpose(1, 2).flatten(2))
    return y, weights


class Model(nn.Module):
    """Two blocks; what ``read`` returns comes out beside the class token."""

    def __init__(self, change: Callable[[Any], Callable[[Any], Any]]) -> None:
        super().__init__()
        self.stem, self.token = nn.Conv2d(3, C, 2, 2), nn.Parameter(torch.randn(1, 1, C))
        self.blocks = nn.ModuleList(Attention() for _ in range(2))
        self.mlps = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.read = change(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Any]:
        patches = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(image), -1, -1), patches], 1)
        for block, mlp in zip(self.blocks, self.mlps, strict=True):
            x = x + block(x)
            x = x + mlp(x).relu()
        return x[:, 0], self.read(self)


def none(model: Any) -> None:
    return None


def patched(model: Any) -> Callable[[Any], Any]:
    """Attention that is taken over, as editors of prompts do."""

    def taken(attention: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: attended(attention, x)[0]

    for block in model.blocks:
        block.forward = taken(block)
    return none


def controlled(model: Any) -> Callable[[Any], Any]:
    maps: list[Tensor] = []

    def taken(attention: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            y, weights = attended(attention, x)
            maps.append(weights)
            return y

        return forward

    for block in model.blocks:
        block.forward = taken(block)
    model.maps = maps
    model.blocks[0].register_forward_pre_hook(lambda *_: maps.clear())
    return lambda model: model.maps[0].sum((1, 2, 3))


def hooked(model: Any) -> Callable[[Any], Any]:
    model.feature = None
    model.blocks[0].register_forward_hook(lambda block, x, y: setattr(model, "feature", y))
    return lambda model: model.feature[:, 0]


ACTIVATIONS: dict[str, Tensor] = {}


def keep(name: str) -> Callable[..., None]:
    def hook(block: nn.Module, x: Any, y: Tensor) -> None:
        ACTIVATIONS[name] = y

    return hook


def by_a_global(model: Any) -> Callable[[Any], Any]:
    """A table that the model and its hooks share, as MiDaS has it."""
    model.blocks[1].register_forward_hook(keep("1"))
    model.activations = ACTIVATIONS
    return lambda model: model.activations["1"][:, 0]


def by_weak_references(model: Any) -> Callable[[Any], Any]:
    def told(whose: Callable[[], Any], block: nn.Module, x: Any, y: Tensor) -> None:
        whose().last = y

    model.parent = weakref.ref(model)
    model.blocks[0].register_forward_hook(partial(told, model.parent))
    return lambda model: model.parent().last[:, 0]


def by_a_default(model: Any) -> Callable[[Any], Any]:
    def hook(block: nn.Module, x: Any, y: Tensor, held: Any = (model,), **more: Any) -> None:
        held[0].last = y

    model.blocks[0].register_forward_hook(hook)
    return lambda model: model.last[:, 0]


def by_a_name_of_both(model: Any) -> Callable[[Any], Any]:
    """One function writes a name, and another one reads it."""
    last: Any = None

    def write(block: nn.Module, x: Any, y: Tensor) -> None:
        nonlocal last
        last = y

    def read(model: Any) -> Any:
        return last[:, 0]

    model.blocks[0].register_forward_hook(write)
    return read


CHANGES = [
    by_a_name_of_both,
    patched,
    controlled,
    hooked,
    by_a_global,
    by_weak_references,
    by_a_default,
]


@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
@pytest.mark.parametrize("change", CHANGES)
def test_they_reach_for_the_copy(change: Any, called: bool) -> None:
    torch.manual_seed(0)
    ACTIVATIONS.clear()
    model, x = Model(change).double().eval(), images(LABELS)
    if called:
        model(images(LABELS, seed=1))  # with gradients, and so values that nothing copies
    before = world(model)
    fast = tome_fx.transform(model, schedule_for(LABELS, 1, 2), example_inputs=x)
    assert world(model) == before
    assert fast.schedule == (5, 1)
    for given in (x, images(LABELS, seed=2, batch=2), images(LABELS, seed=3, batch=1)):
        for one, other in zip(fast(given), model(given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", [patched, controlled])
def test_modes_reach_the_functions(change: Any) -> None:
    torch.manual_seed(0)
    model, x = Model(change).double().eval(), images(LABELS)
    fast = tome_fx.transform(model, 0, example_inputs=x)
    for one in (fast, copy.deepcopy(fast)):
        for mode in (True, False):
            one.train(mode)
            model.train(mode)
            results = []
            for module in (one, model):
                torch.manual_seed(1)
                results.append(module(x)[0])
            torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_what_is_not_copied_is_the_same_function() -> None:
    """Also one that holds itself, or what is not there yet."""
    model: Any = nn.Linear(2, 2)

    def again(n: int) -> int:
        return again(n - 1) if n else later

    model.again = again
    model.act = F.gelu
    model.tools = [partial(F.softmax, dim=-1)]
    twin: Any = deep_copy(model)
    later = 3
    assert twin.again(2) == later
    assert twin.act is F.gelu
    assert twin.tools[0].func is F.softmax


def test_what_is_written_is_written_in_the_copy() -> None:
    model: Any = nn.Linear(2, 2)
    count = 0

    def more() -> int:
        def step() -> None:
            nonlocal count
            count += 1

        step()
        return count

    model.more, model.told = more, lambda: count
    twin: Any = deep_copy(model)
    assert (twin.more(), twin.more(), twin.told(), count) == (1, 2, 2, 0)


def test_a_function_that_holds_itself() -> None:
    model: Any = nn.Linear(2, 2)

    def counted(n: int) -> Any:
        return counted(n - 1) if n else model

    model.counted = counted
    twin: Any = deep_copy(model)
    assert twin.counted(2) is twin
    assert model.counted(2) is model


def test_lists_of_functions_that_hold_them() -> None:
    """A list that is no part of the model, and leads to it and to itself."""
    model: Any = nn.Linear(2, 2)
    row: list[Any] = [model]
    row.append(row)
    row.append(lambda: row)
    model.rows = lambda: row
    twin: Any = deep_copy(model)
    own = twin.rows()
    assert own[0] is twin
    assert own[1] is own
    assert own[2]() is own
    assert row[0] is model
