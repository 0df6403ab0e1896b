"""What a check of a captured program compares, and that it leaves all as it was."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tome_fx
from tests.laws.common import TINY
from tests.laws.world import world
from tests.tiny import images, tiny
from tests.tracing_models import C, Model, Scaled, made, traced
from tome_fx.capturing.examples import inferred_examples

pytestmark = TINY


class Averaged(nn.Module):
    """A batch norm in a module that stays a call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.mT).mT
        return x * 2.0 if float(x.detach().sum()) > 1e9 else x


class Counted(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mT).mT  # type: ignore[no-any-return]


NORMS = [
    lambda: Counted(nn.BatchNorm1d(C)),
    lambda: Counted(nn.InstanceNorm1d(C, track_running_stats=True)),
    Averaged,
]


@pytest.mark.parametrize("norm", NORMS)
def test_running_statistics_are_left_as_they_are(norm: Callable[[], nn.Module]) -> None:
    model, x = made()
    model.scaled = norm().double()  # type: ignore[assignment]
    before = world(model.train())
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)
    assert world(model) == before


def test_examples_that_the_model_writes_to() -> None:
    class Writing(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x.mul_(2.0))

    model, x = made()
    model.__class__, before = Writing, x.clone()
    assert tome_fx.transform(model, 2, example_inputs=x).report.notes == ()
    assert torch.equal(x, before)


class Told(Model):
    """Its result is made of the logits by ``tell``."""

    tell: Any

    def forward(self, x: Tensor) -> Any:
        return self.tell(super().forward(x)["logits"], traced(x))


def fourier(y: Tensor, traced: bool) -> Any:
    z = torch.fft.fft(y)
    return y + z.real, z * (3.0 if traced else 2.0)


def infinite(y: Tensor, traced: bool) -> Tensor:
    return y if traced else y.masked_fill(torch.arange(5) > 2, float("-inf"))


def turned(y: Tensor, traced: bool) -> Tensor:
    return F.normalize(-y if traced else y, dim=-1)


TOLD = {
    "turned": turned,
    "complex": fourier,
    "infinite": infinite,
    "dtype": lambda y, traced: y.float() if traced else y,
    "classes": lambda y, traced: (-y if traced else y).argmax(-1),
    "shape": lambda y, traced: y[:, :3] if traced else y,
    "number": lambda y, traced: (y, y) if traced else y,
}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("tell", "dtype"),
    [*((name, torch.float64) for name in TOLD)]
    + [(name, torch.bfloat16) for name in TOLD if name != "complex"],
)
def test_what_can_be_different_in_a_result(tell: str, dtype: torch.dtype) -> None:
    model, x = made()
    model.__class__, model.tell = Told, TOLD[tell]
    with pytest.raises(
        tome_fx.CaptureError, match=r"captured than when it is run: (result|it ret)"
    ):
        tome_fx.transform(model.to(dtype), 2, example_inputs=x.to(dtype), capture="export")


RIGHT = {
    "gradients": lambda y, traced: 1.0 * y if torch.is_grad_enabled() else y,
    "few turned": lambda y, traced: (y.repeat(20, 1) + 1e-16 * traced).argmax(-1),
}


@pytest.mark.parametrize("tell", RIGHT)
def test_what_is_no_difference(tell: str) -> None:
    model, x = made()
    model.__class__, model.tell = Told, RIGHT[tell]
    assert tome_fx.transform(model, 2, example_inputs=x).report.notes == ()


def test_a_model_that_does_not_run_is_told_of() -> None:
    class Unable(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            if not self.asks(x):
                raise RuntimeError("no kernel for this device")
            return x

    model, x = made()
    model.scaled = Unable(traced)
    with pytest.warns(tome_fx.ToMeWarning, match="no kernel for this device"):
        tome_fx.transform(model, 2, example_inputs=x)


def test_a_module_that_is_compiled_is_not_compiled_for_it() -> None:
    compiled = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        compiled.append(module)
        return module

    model, x = made()
    model.head = torch.compile(model.head, backend=backend)  # type: ignore[assignment]
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)
    assert compiled == []


def test_inferred_images_have_values_whatever_the_default_device() -> None:
    model = tiny()
    with torch.device("meta"):
        image = next(inferred_examples(model)).args[0]
    assert image.device.type == "cpu"
    assert float(image.std()) > 0.1


class Output(OrderedDict):  # type: ignore[type-arg]
    """An output class that tells torch what is in it, and not the way to it."""


pytree.register_pytree_node(
    Output,
    lambda out: (list(out.values()), list(out)),
    lambda values, keys: Output(zip(keys, values, strict=True)),
)


class Wayless(nn.Module):
    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.body, self.off = tiny(), off

    def forward(self, x: Tensor) -> Output:
        logits = self.body(x)
        return Output(first=x.mean(), logits=logits + (self.off if traced(x) else 0.0))


def test_a_class_of_results_without_ways() -> None:
    x = images(3)
    result = tome_fx.transform(Wayless().eval(), 2, example_inputs=x)(x)
    assert type(result) is Output
    with pytest.raises(tome_fx.CaptureError, match="result, tensor 1 differs by"):
        tome_fx.transform(Wayless(off=1.0).eval(), 2, example_inputs=x)


class Readable(dict):  # type: ignore[type-arg]
    """A dict whose values are read as attributes, dicts in it too (addict, Box)."""

    def __init__(self, *items: Any, **named: Any) -> None:
        super().__init__(*items, **named)
        for name, value in self.items():
            self[name] = Readable(value) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Titled(Readable):
    """One that has more than its items."""

    title = "none"

    def titled(self, title: Any) -> Titled:
        object.__setattr__(self, "title", title)
        return self


class Slotted(Readable):
    __slots__ = ("title",)


class Reading(nn.Module):
    def __init__(self, made: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.body, self.made = tiny(), made

    def forward(self, x: Tensor) -> Any:
        return self.made({"logits": self.body(x), "more": {"first": x.mean(), "none": {}}})


def test_dicts_of_a_class_of_their_own() -> None:
    x, model = images(3), Reading(Readable).eval()
    fast = tome_fx.transform(model, 2, example_inputs=x[:2])
    assert fast.schedule == (2, 2)
    result, expected = fast(x), model(x)
    assert type(result) is type(result.more) is type(result.more.none) is Readable
    assert torch.equal(result.more.first, expected["more"]["first"])
    assert [*result] == [*expected]
    torch.export.save(torch.export.export(fast, (x,)), io.BytesIO())


def test_their_attributes_stay() -> None:
    def made(items: dict[str, Any]) -> Any:
        inner = Titled(items["more"]).titled("within")
        last = Titled(items).titled(items["logits"] * 2.0)
        return [Titled(items).titled("one"), dict.__ior__(Titled().titled(2), {"in": inner}), last]

    x, model = images(3), Reading(made).eval()
    result = tome_fx.transform(model, 2, example_inputs=x[:2])(x)
    assert [one.title for one in result[:2]] == ["one", 2]
    assert torch.equal(result[2].title, result[2].logits * 2.0)
    assert result[1]["in"].title == "within"


@pytest.mark.parametrize(
    "made",
    [
        lambda items: Slotted(items),
        lambda items: Titled(items).titled([items["logits"]]),
        lambda items: [Titled(items).titled([items["logits"]]), Titled(items)],
    ],
)
def test_dicts_that_hold_more_are_refused(made: Callable[[dict[str, Any]], Any]) -> None:
    # Once torch knows a class it takes any of it apart.
    classes = pytree.SUPPORTED_NODES
    classes.pop(Titled, None)
    with pytest.raises(tome_fx.CaptureError, match=r"Titled|Slotted"):
        tome_fx.transform(Reading(made).eval(), 2, example_inputs=images(2))
