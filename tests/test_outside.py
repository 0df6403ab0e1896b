"""What code of a model keeps outside of it, in a list say, is left as it was before a transform."""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, run
from tests.rules.common import C
from tome_fx.capturing import outside

pytestmark = [TINY, pytest.mark.filterwarnings("ignore:Hooks on:tome_fx.ToMeWarning")]
Hook = Callable[[nn.Module, Any, Tensor], None]
Look = Callable[[], Any]

FEATURES: dict[str, Tensor] = {}
SHAPES: list[torch.Size] = []
calls = 0


class Meter:
    """Somebody's own, with what is outside of the model in an attribute."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.count, self.last = 0, None

    def hook(self) -> Hook:
        def add(part: nn.Module, args: Any, result: Tensor) -> None:
            self.rows.append(result)
            self.count += 1
            self.last = result

        return add


METERS = {"one": Meter()}


def by_list() -> tuple[Hook, Look]:
    rows: list[Tensor] = []
    return lambda part, args, result: rows.append(result), lambda: rows


def by_queue() -> tuple[Hook, Look]:
    rows: deque[Tensor] = deque([torch.ones(1)], maxlen=2)
    return lambda part, args, result: rows.append(result), lambda: rows


def by_set() -> tuple[Hook, Look]:
    seen = {torch.ones(1)}
    return lambda part, args, result: seen.add(result), lambda: seen


def by_tables() -> tuple[Hook, Look]:
    rows: defaultdict[str, list[Tensor]] = defaultdict(list)
    rows["early"].append(torch.ones(1))
    last: OrderedDict[str, Tensor | int] = OrderedDict(first=1)

    def keep(part: nn.Module, args: Any, result: Tensor) -> None:
        rows["early"].append(result)
        rows["late"].append(result)
        last.clear()
        last["new"] = result

    return keep, lambda: (rows, last)


def by_default() -> tuple[Hook, Look]:
    rows: list[Tensor] = []

    def keep(part: nn.Module, args: Any, result: Tensor, rows: list[Tensor] = rows) -> None:
        rows.append(result)

    return keep, lambda: rows


def by_partial() -> tuple[Hook, Look]:
    rows: list[Tensor] = []

    def keep(name: str, part: nn.Module, args: Any, result: Tensor) -> None:
        rows.append(result)

    return functools.partial(keep, "last"), lambda: rows


def helper(result: Tensor) -> None:
    FEATURES["helped"] = result


def by_globals() -> tuple[Hook, Look]:
    def keep(part: nn.Module, args: Any, result: Tensor) -> None:
        global calls
        calls += 1
        FEATURES["last"] = result
        SHAPES.append(result.shape)
        helper(result)
        METERS["one"].hook()(part, args, result)

    return keep, lambda: (calls, FEATURES, SHAPES, vars(METERS["one"]))


def by_object() -> tuple[Hook, Look]:
    meter = Meter()
    return meter.hook(), lambda: vars(meter)


def by_nonlocal() -> tuple[Hook, Look]:
    last = None

    def keep(part: nn.Module, args: Any, result: Tensor) -> None:
        nonlocal last
        last = result

    return keep, lambda: last


HOOKS = [by_list, by_queue, by_set, by_tables, by_default, by_partial, by_globals, by_object,
         by_nonlocal]  # fmt: skip


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 4, 4), nn.Linear(C, 3)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(C, 2, 2 * C, batch_first=True, norm_first=True)
            for _ in range(2)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.head(x.mean(1))
        return result


class Noting(Model):
    """Code of the class does it, not a hook."""

    def forward(self, image: Tensor) -> Tensor:
        result = super().forward(image)
        FEATURES["noted"] = result
        return result


def held(value: Any) -> Any:
    """What is there, told apart by identity, and by its content where it can change."""
    if isinstance(value, dict):
        return [(key, held(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [held(one) for one in value]
    return set(map(id, value)) if isinstance(value, set) else (id(value), type(value))


@pytest.mark.few(4)
@pytest.mark.parametrize("made", HOOKS)
def test_what_a_hook_keeps_is_left_as_it_was(made: Callable[[], tuple[Hook, Look]]) -> None:
    model = Model().double().eval()
    hook, look = made()
    model.layers[0].register_forward_hook(hook)
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    run(model, image)
    before = held(look())
    fast = tome_fx.transform(model, 2, example_inputs=image, min_ratio=0)
    assert held(look()) == before
    fast.train()(image).sum().backward()
    assert held(look()) == before
    run(model, image)
    assert held(look()) != before


def test_what_a_patched_forward_keeps_is_left_as_it_was() -> None:
    model, rows = Model().double().eval(), list[Tensor]()
    layer: Any = model.layers[1]
    plain = layer.forward

    def keeping(x: Tensor) -> Tensor:
        rows.append(x)
        result: Tensor = plain(x)
        return result

    layer.forward = keeping
    tome_fx.transform(model, 2, example_inputs=torch.randn(2, 3, 16, 16).double(), min_ratio=0)
    assert rows == []


def test_what_the_code_of_a_class_keeps_is_left_as_it_was() -> None:
    FEATURES.clear()
    model = Noting().eval()
    tome_fx.transform(model, 2, example_inputs=torch.randn(2, 3, 16, 16), min_ratio=0)
    assert not FEATURES


def test_what_a_capture_that_fails_kept_is_taken_away() -> None:
    model, rows = nn.Sequential(nn.Linear(4, 4)), list[Tensor]()
    model.register_forward_hook(lambda part, args, result: rows.append(result))
    with pytest.raises(tome_fx.NoAttentionFoundError):
        tome_fx.transform(model, 2, example_inputs=torch.randn(2, 4))
    assert rows == []


def test_what_is_no_data_stays() -> None:
    """A registry that was filled on the first call knows more than its entries."""
    known: dict[str, Any] = {}
    model = Model()
    model.register_forward_hook(lambda part, args, result: known.update(kind=Meter, one=1))
    with outside.outside_left(model):
        run(model, torch.randn(2, 3, 16, 16))
    assert known == {"kind": Meter}
