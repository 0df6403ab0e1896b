"""Arguments and results: keywords, defaults, structures and classes are the model's own."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Around, images, same, tiny
from tests.versions import lacks

pytestmark = TINY

BOTH = ("export", "symbolic_trace")

Pair = namedtuple("Pair", "tokens logits")


@dataclass
class Result:
    """An output class of the model's own."""

    tokens: Tensor
    logits: Tensor


pytree.register_dataclass(Result)

RESULTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "list": lambda tokens, logits: [tokens, logits],
    "tuple": lambda tokens, logits: (tokens, (logits, [tokens.mean(1)])),
    "dict": lambda tokens, logits: {"tokens": tokens, "more": {"logits": logits}},
    "constants": lambda tokens, logits: (logits, None, 3, "name", 0.5),
    "named tuple": Pair,
    "dataclass": Result,
    "dataclass that torch does not know": lambda *both: new("Own")(*both),
    "one within another": lambda *both: {"all": new("Outer")(new("Inner")(*both), both[1])},
}


@cache
def new(name: str) -> type:
    return make_dataclass(name, ["tokens", "logits"])


@pytest.mark.few(2)
@pytest.mark.parametrize("capture", BOTH)
@pytest.mark.parametrize("name", RESULTS)
def test_results_keep_their_structure(name: str, capture: str) -> None:
    def forward(body: nn.Module, x: Tensor) -> Any:
        tokens = body.forward_features(x)
        return RESULTS[name](tokens, body.forward_head(tokens))

    model, x = Around(forward), images(3)
    fast = tome_fx.transform(model, 0, example_inputs=images(), capture=capture)
    assert same(fast(x), model(x))
    fast.r = 2
    shapes = [pytree.tree_map_only(Tensor, lambda t: t.shape, f(x)) for f in (fast, model)]
    assert shapes[0] == shapes[1]


def _of_logits(self: dict[str, Tensor], logits: Tensor) -> None:
    """A dict that is not made of another one."""
    dict.__init__(self, logits=logits)


@pytest.mark.parametrize("capture", BOTH)
@pytest.mark.parametrize(
    "made",
    [
        SimpleNamespace,
        pytest.param(
            type("Named", (dict,), {"__init__": _of_logits}),
            marks=lacks("refuses it in other words"),
        ),
    ],
)
def test_a_result_that_torch_cannot_take_apart_is_refused(made: Any, capture: str) -> None:
    """Its tensors would be constants of the program."""
    model = Around(lambda body, x: made(logits=body(x)))
    for door in (capture, "auto"):
        with pytest.raises(tome_fx.CaptureError, match=r"pytree|SimpleNamespace"):
            tome_fx.transform(model, 2, example_inputs=images(), capture=door)


class Keywords(nn.Module):
    """A model with optional, keyword-only and non-tensor arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, image: Tensor, shift: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        logits = self.body(image) * scale
        return logits if shift is None else logits + shift


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "positional": ((images(),), {}),
    "keyword": ((), {"image": images()}),
    "both": ((images(),), {"shift": torch.ones(2, 1)}),
    "all keywords": ((), {"shift": torch.ones(2, 1), "image": images()}),
    "all positional": ((images(), torch.ones(2, 1)), {}),
    "a number": ((images(),), {"scale": 2.0}),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CALLS)
def test_keyword_inputs(name: str) -> None:
    args, kwargs = CALLS[name]
    model = Keywords().eval()
    fast = tome_fx.transform(model, 0, example_inputs=args or None, example_kwargs=kwargs or None)
    assert torch.equal(fast(*args, **kwargs), model(*args, **kwargs))
    wide = pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t[:1]]), (args, kwargs))
    assert torch.equal(fast(*wide[0], **wide[1]), model(*wide[0], **wide[1]))
    fast.r = 2
    assert fast(*args, **dict(reversed(kwargs.items()))).shape == (2, 10)


class Affine(nn.Module):
    """Optional arguments that every way of capture can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, image: Tensor, up: Any = 1.0, down: Any = 0.0) -> Tensor:
        return self.body(image) * up - down


TWO, FIVE = torch.full((2, 1), 2.0), torch.full((2, 1), 5.0)
ORDERS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((TWO,), {}),
    ((TWO,), {"down": FIVE}),
    ((), {"up": TWO}),
    ((), {"down": FIVE}),
    ((), {"up": TWO, "down": FIVE}),
    ((), {"down": FIVE, "up": TWO}),
    ((), {"down": 5.0}),
    ((2.0,), {"down": FIVE}),
]


@pytest.mark.few(3)
@pytest.mark.parametrize("capture", [*BOTH, "graph module"])
@pytest.mark.parametrize(("args", "kwargs"), ORDERS, ids=lambda v: f"{len(v)} {list(v)}"[:24])
def test_arguments_reach_their_parameters(
    args: tuple[Any, ...], kwargs: dict[str, Any], capture: str
) -> None:
    """By place, by name in any order, with others left at their defaults."""
    model, x = Affine().eval(), images()
    ready = capture == "graph module"
    source = torch.fx.symbolic_trace(model) if ready else model
    options = {} if ready else {"capture": capture}
    fast = tome_fx.transform(
        source, 0, example_inputs=(x, *args), example_kwargs=kwargs or None, **options
    )
    for named in (kwargs, dict(reversed(kwargs.items()))):
        assert torch.equal(fast(x, *args, **named), model(x, *args, **kwargs))


UNLIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another number": ({"scale": 2.0}, {"scale": 3.0}),
    "the default after a number": ({"scale": 2.0}, {}),
    "a number after the default": ({}, {"scale": 3.0}),
    "a tensor after None": ({}, {"shift": torch.ones(2, 1)}),
    "None after a tensor": ({"shift": torch.ones(2, 1)}, {"shift": None}),
    "nothing after a tensor": ({"shift": torch.ones(2, 1)}, {}),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", UNLIKE)
def test_arguments_unlike_the_captured_ones_are_never_ignored(name: str) -> None:
    """They work as in the model, or they are refused."""
    captured, called = UNLIKE[name]
    model, x = Keywords().eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, example_kwargs=captured)
    try:
        y = fast(x, **called)
    except Exception:  # refused
        return
    assert torch.equal(y, model(x, **called))


class Pair(nn.Module):
    """Two images to one answer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.body(first) - 2 * self.body(second)


class Listed(Pair):
    """The same images in one list."""

    def forward(self, both: list[Tensor]) -> Tensor:
        return self.body(both[0]) - 2 * self.body(both[1])


@pytest.mark.parametrize("capture", BOTH)
@pytest.mark.parametrize("as_list", [False, True])
def test_one_tensor_given_twice_is_two_inputs(capture: str, as_list: bool) -> None:
    model, x, y = (Listed() if as_list else Pair()).eval(), images(), images(seed=1)

    def call(a: Tensor, b: Tensor) -> tuple[Any, ...]:
        return ([a, b],) if as_list else (a, b)

    fast = tome_fx.transform(model, 0, example_inputs=call(x, x), capture=capture)
    assert torch.equal(fast(*call(x, y)), model(*call(x, y)))


class Named(nn.Module):
    """Whatever it is given by name, of which it reads one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body, self.name = tiny(), name

    def forward(self, **inputs: Any) -> Tensor:
        return self.body(inputs[self.name])


@pytest.mark.parametrize("capture", BOTH)
@pytest.mark.parametrize("name", ["image", "inputs"])  # also the name that gathers them
def test_any_keyword(name: str, capture: str) -> None:
    model, x = Named(name).eval(), images()
    fast = tome_fx.transform(model, 0, example_kwargs={name: x}, capture=capture)
    assert torch.equal(fast(**{name: x}), model(**{name: x}))
    with pytest.raises(tome_fx.ShapeError, match=f"{name} is left out"):
        fast()
    if capture == "export":
        assert torch.equal(fast(**{name: x}, flip=True), model(**{name: x}))
        return
    with pytest.raises(tome_fx.ShapeError, match="flip: the model was captured without"):
        fast(**{name: x}, flip=True)


@pytest.mark.few(2)
@pytest.mark.parametrize("capture", BOTH)
@pytest.mark.parametrize("given", [(), (1.0,), (1.0, 0.0)])
def test_a_default_may_be_written_out(given: tuple[Any, ...], capture: str) -> None:
    model, x = Affine().eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=(x, *given), capture=capture)
    assert torch.equal(fast(x, *given, **({} if len(given) > 1 else {"down": 0.0})), model(x))
    if len(given) < 2:
        with pytest.raises(tome_fx.ShapeError, match="down is 3"):
            fast(x, *given, down=3.0)


@pytest.mark.parametrize("capture", BOTH)
def test_none_by_place(capture: str) -> None:
    model, x = (Keywords() if capture == "export" else Affine()).eval(), images()
    given = (x, None) if capture == "export" else (x, 1.0)
    fast = tome_fx.transform(model, 0, example_inputs=given, capture=capture)
    assert torch.equal(fast(*given), model(*given))
    with pytest.raises(tome_fx.ShapeError, match="captured with a tensor of shape"):
        fast(None, *given[1:])
