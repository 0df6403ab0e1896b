"""Calls that give what the model does not look at, as wholes call their towers."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


class Tower(nn.Module):
    """It gathers what it is given, looks at some of it, and passes the rest on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.gain = 1.0

    def forward(self, x: Tensor, hidden: bool | None = None, mask: Any = None, **more: Any) -> Any:
        y = self.body(x)
        if "scale" in more:
            y = y * more["scale"]
        if more.get("shift") is not None:
            y = y + more["shift"]
        if more.get("mask_of_all") is not None and bool(more["mask_of_all"].all()):
            y = y * 1.0 if self.gain == 1.0 else y
        if mask is not None:
            y = y * mask[:, None]
        return (y, y + 1) if hidden else y


@pytest.fixture(scope="module")
def fast() -> Any:
    return tome_fx.transform(Tower().eval(), 0, example_inputs=images())


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "more",
    [
        {"num_items": torch.tensor(20)},
        {"num_items": 7},
        {"use_cache": False, "num_items": 3.5, "name": "x"},
        {"hidden": False},
        {"hidden": None, "mask": None},
        {"shift": None},
        {"hidden": 0},  # looked at, and of no effect
    ],
)
def test_what_is_not_looked_at_may_be_given(fast: Any, more: dict[str, Any]) -> None:
    model, x = Tower().eval(), images(3, seed=1)
    assert torch.equal(fast(x, **more), model(x, **more))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"hidden": True}, "hidden is True, but the model was captured with None"),
        ({"hidden": 1}, "hidden is 1, but"),
        ({"mask": torch.ones(2)}, "mask is a Tensor of shape"),
        ({"scale": 2.0}, "scale: the model was captured without, and may look at it"),
        ({"scale": 1}, "scale: the model was"),
        ({"shift": torch.zeros(())}, "shift: the model was"),
        # What it does is the same for this mask, and not for all.
        ({"mask_of_all": torch.ones(2)}, "mask_of_all: the model was"),
        ({"shift": [1.0]}, "shift: the model was"),
        ({"use_cache": False, "scale": 2.0}, "use_cache, scale: the model was"),
    ],
)
def test_what_is_looked_at_is_refused(fast: Any, more: dict[str, Any], says: str) -> None:
    for _ in range(2):
        with pytest.raises(tome_fx.ShapeError, match=says):
            fast(images(), **more)


@pytest.mark.few(1)
@pytest.mark.parametrize("captured", [None, False])
def test_none_is_false_to_who_asks_for_truth(captured: bool | None) -> None:
    model, x = Tower().eval(), images()
    given = {"hidden": captured, "more": 1}
    fast = tome_fx.transform(model, 0, example_inputs=x, example_kwargs=given)
    for call in (given, {}, {"hidden": None}, {"hidden": False, "more": 2}, {"hidden": False}):
        assert torch.equal(fast(x, **call), model(x, **call))
    with pytest.raises(tome_fx.ShapeError, match="hidden is True"):
        fast(x, hidden=True)


def test_a_truth_that_is_left_out_is_its_default() -> None:
    model, x = Tower().eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, example_kwargs={"hidden": True})
    assert len(fast(x, hidden=True)) == 2
    for call in ({}, {"hidden": False}):
        with pytest.raises(tome_fx.ShapeError, match=r"hidden is (left out|False), but"):
            fast(x, **call)


class Told(Tower):
    """What it looks at has no part in what it computes."""

    def forward(self, x: Tensor, hidden: bool | None = None, mask: Any = None, **more: Any) -> Any:
        self.seen = bool(more.get("many", 0) > 3)
        return super().forward(x, hidden)


def test_a_number_that_is_looked_at_is_taken_for_itself() -> None:
    model, x = Told().eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    ways = fast.located.program.graph._codegen.ways
    for many in (2, 3, 2):
        assert torch.equal(fast(x, many=many), model(x, many=many))
    known = [(dict(way), same) for way, same in ways.known]
    assert known == [
        ({"many": "int"}, False), ({"many": ("int", 2)}, True), ({"many": ("int", 3)}, True)
    ]  # fmt: skip
    for many in (2, 3):
        assert torch.equal(fast(x, unseen=many), model(x, unseen=many))
    assert ({"unseen": "int"}, True) in [(dict(way), same) for way, same in ways.known]


def test_whoever_asks_finds_no_gathering(fast: Any) -> None:
    """Trainers give more to what gathers; what a call of the model takes is found."""
    assert list(inspect.signature(fast.forward).parameters) == ["x", "hidden", "mask"]
    fast.r = 2
    assert list(inspect.signature(fast.forward).parameters) == ["x", "hidden", "mask"]
    fast.r = 0


LOOKS = {
    "range": lambda y, n: ([y := y + 1 for _ in range(n)] and y) or y,
    "slice": lambda y, n: y + len("abcd"[n:]),
    "index": lambda y, n: y + (0, 1, 2, 3)[n],
    "format": lambda y, n: y + len(f"{n:b}"),
    "roll": lambda y, n: torch.roll(y, n, 1),
    "class": lambda y, n: y * 2 if type(n) is int else y,
    "caught": lambda y, n: caught(y, n),
}


def caught(y: Tensor, n: int) -> Tensor:
    try:
        return y * 2 if n > 1 else y
    except BaseException:
        return y


class Looking(Tower):
    def __init__(self, look: Any) -> None:
        super().__init__()
        self.look = look

    def forward(self, x: Tensor, **more: Any) -> Any:  # type: ignore[override]
        y = super().forward(x)
        return self.look(y, more["n"]) if "n" in more else y


@pytest.mark.few(1)
@pytest.mark.parametrize("name", LOOKS)
def test_whatever_reads_a_number_looks_at_it(name: str) -> None:
    model, x = Looking(LOOKS[name]).eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    for n in (0, 2, 3):
        try:
            found = fast(x, n=n)
        except tome_fx.ShapeError:
            continue
        assert torch.equal(found, model(x, n=n))


def test_weights_that_are_equal_by_chance_are_not_the_same() -> None:
    class Either(Tower):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(10))

        def forward(self, x: Tensor, other: bool = False) -> Any:  # type: ignore[override]
            return self.body(x) + (self.b if other else self.a)

    fast = tome_fx.transform(Either().eval(), 0, example_inputs=images())
    with pytest.raises(tome_fx.ShapeError, match="other is True"):
        fast(images(), other=True)


def test_what_is_around_a_call_is_no_answer() -> None:
    """A first call under what watches says nothing of later ones; autocast is none of it."""
    model, x = Tower().eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    state = {name: value.clone() for name, value in fast.named_parameters()}
    with pytest.raises(tome_fx.ShapeError, match=r"outside of torch\.compile, torch\.func"):
        torch.func.vmap(lambda one: fast(one[None], use_cache=False))(x)
    with torch.autocast("cpu", torch.bfloat16):
        fast(x, use_cache=False)
    assert torch.equal(fast(x, use_cache=False), model(x))
    with pytest.raises(tome_fx.ShapeError, match=r"outside of torch\.compile, torch\.func"):
        torch.func.functional_call(fast, state, (x,), {"use_cache": True})
    assert torch.equal(fast(x, use_cache=True), model(x))
    functional = torch.func.functional_call(fast, state, (x,), {"use_cache": True})
    assert torch.equal(functional, model(x))


def test_what_is_called_by_more_than_a_forward_is_not_asked() -> None:
    class Called(Tower):
        def __call__(self, x: Tensor, flag: bool | None = None, **more: Any) -> Any:
            y = super().__call__(x, **more)
            return -y if flag else y

    fast = tome_fx.transform(Called().eval(), 0, example_inputs=images())
    with pytest.raises(tome_fx.ShapeError, match="flag"):
        fast(images(), flag=True)


def test_names_that_generated_code_could_have() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny()

        def forward(self, x: Tensor, _more: int = 2, LeftOut: int = 3, **rest: Any) -> Tensor:
            return self.body(x) * _more * LeftOut  # type: ignore[no-any-return]

    model, x = Named().eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.equal(fast(x, _more=2, rest=1), model(x))


def test_each_mode_asks_for_itself() -> None:
    class Dropped(Tower):
        def forward(
            self, x: Tensor, hidden: bool | None = None, mask: Any = None, **more: Any
        ) -> Any:
            y = super().forward(x, hidden)
            return y * more.get("scale", 1.0) if self.training else y

    fast = tome_fx.transform(Dropped().eval(), 0, example_inputs=images())
    assert fast(images(), scale=2.0).shape == (2, 10)
    fast.train()
    with pytest.raises(tome_fx.ShapeError, match="scale: the model was"):
        fast(images(), scale=2.0)
    fast.eval()
    assert fast(images(), scale=3.0).shape == (2, 10)


def test_copies_ask_too(fast: Any) -> None:
    model, x = Tower().eval(), images()
    for other in (copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other(x, use_cache=True), model(x))
        with pytest.raises(tome_fx.ShapeError, match="scale"):
            other(x, scale=2.0)


def test_a_map_of_tokens_takes_the_same(fast: Any) -> None:
    x = images()
    assert torch.equal(fast.token_map(x, use_cache=False), fast.token_map(x))
    with pytest.raises(tome_fx.ShapeError, match="scale"):
        fast.token_map(x, scale=2.0)


@pytest.mark.compiler
def test_compiled_it_takes_what_was_seen_before() -> None:
    model, x = Tower().eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))
    with pytest.raises(Exception, match=r"outside of\s+torch.compile"):
        compiled(x, use_cache=False)
    fast(x, use_cache=False, num_items=torch.tensor(1))
    torch._dynamo.reset()
    for number in (1, 2):
        call = {"use_cache": False, "num_items": torch.tensor(number)}
        assert torch.equal(compiled(x, **call), model(x, **call))


def test_a_model_that_names_all_it_takes_takes_no_more() -> None:
    fast = tome_fx.transform(tiny(), 2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'flip'"):
        fast(images(), flip=True)
