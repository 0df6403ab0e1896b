"""What a result has of its model's class: methods and attributes, as a whole asks its tower."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny
from tests.versions import lacks

pytestmark = TINY


class Mixin:
    """What stands behind ``nn.Module`` among the bases, as in transformers."""

    from_mixin = "mixed in"

    def doubled(self, x: Tensor) -> Tensor:
        return 2 * self(x)  # type: ignore[operator, no-any-return]


class Base(nn.Module):
    main_input = "x"
    kinds: tuple[str, ...] = ("a", "b")

    def named(self) -> str:
        return f"base {self.main_input}"


class Tower(Base, Mixin):
    """Methods of all kinds, around a forward."""

    main_input = "images"
    head = None  # its part comes first

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.norm = nn.LayerNorm(10)
        self.width = 10
        self.many = False

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        y = self.norm(self.body(x))
        return 2 * y if twice else y

    def named(self) -> str:
        return f"{super().named()} {self.width}"

    @property
    def size(self) -> int:
        return self.width * 2

    @functools.cached_property
    def kept(self) -> int:
        return self.width

    @staticmethod
    def halved(x: float) -> float:
        return x / 2

    @classmethod
    def called(cls) -> str:
        return cls.__name__

    def filtered(self, x: Tensor, **more: Any) -> Tensor:
        names = {"x", "twice"}
        return self(x, **{name: more[name] for name in names & more.keys()})  # type: ignore[no-any-return]

    def normed(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]

    def through_parts(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]

    def set_many(self) -> None:
        self.many = True

    def weights(self) -> list[str]:
        return [name for name, _ in self.named_parameters()]

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()


@pytest.fixture(scope="module")
def model() -> Tower:
    return Tower().eval()


@pytest.fixture(scope="module")
def fast(model: Tower) -> Any:
    return tome_fx.transform(model, 0, example_inputs=images())


def test_attributes_of_the_class(model: Tower, fast: Any) -> None:
    for name in ("main_input", "kinds", "from_mixin", "size", "width", "kept"):
        assert getattr(fast, name) == getattr(model, name)
    assert not hasattr(fast, "no_such_name")


def test_methods_call_the_program(model: Tower, fast: Any) -> None:
    x = images(3, seed=1)
    assert fast.named() == model.named() == "base images 10"
    assert fast.halved(3.0) == 1.5
    assert fast.called() == "Tower"
    assert fast.weights() == model.weights()
    assert torch.equal(fast.filtered(x, more=3), model(x))
    assert torch.equal(fast.doubled(x), 2 * model(x))
    merged = tome_fx.transform(model, 2, example_inputs=images())
    assert torch.equal(merged.filtered(x), merged(x))
    assert not torch.equal(merged.filtered(x), model(x))


def test_parts_of_torchs_own_are_called(model: Tower, fast: Any) -> None:
    x = torch.randn(3, 10)
    assert torch.equal(fast.norm(x), model.norm(x))
    assert torch.equal(fast.normed(x), model.normed(x))
    double = copy.deepcopy(fast).double()
    assert torch.equal(double.norm(x.double()), copy.deepcopy(model.norm).double()(x.double()))


def test_other_parts_are_not(fast: Any) -> None:
    for call in (fast.through_parts, fast.body):
        with pytest.raises(tome_fx.ConfigError, match=r"cannot be called.*whose forward calls"):
            call(images())


class Beside(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.body, self.part = tiny(), part

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)  # type: ignore[no-any-return]


class Scaled(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("part", "x"),
    [
        (nn.Linear(10, 4), torch.randn(2, 10)),
        (nn.RMSNorm(10), torch.randn(2, 10)),
        (nn.GroupNorm(2, 10), torch.randn(2, 10)),
        (nn.BatchNorm1d(10), torch.randn(2, 10)),
        (nn.Embedding(5, 4), torch.tensor([1, 3])),
        (nn.Conv1d(10, 4, 3, padding=1, groups=2), torch.randn(2, 10, 6)),
    ],
)
def test_kinds_of_parts(part: nn.Module, x: Tensor) -> None:
    fast = tome_fx.transform(Beside(part).eval(), 2, example_inputs=images())
    assert torch.equal(fast.part(x), part(x))


@pytest.mark.parametrize(
    "part", [Scaled(10), nn.Conv1d(10, 4, 3, padding=1, padding_mode="circular")]
)
def test_what_more_than_numbers_make_is_not_called(part: nn.Module) -> None:
    fast = tome_fx.transform(Beside(part).eval(), 2, example_inputs=images())
    with pytest.raises(tome_fx.ConfigError, match=r"cannot be called"):
        fast.part(torch.randn(2, 10))


def test_a_method_changes_nothing_without_a_word(fast: Any) -> None:
    with pytest.raises(tome_fx.ConfigError, match="Tower would set many"):
        fast.set_many()
    assert fast.many is False


def test_what_every_module_has_is_the_results(model: Tower) -> None:
    fast = tome_fx.transform(Tower().train(), 2, example_inputs=images())
    with pytest.warns(tome_fx.ToMeWarning, match="freeze of the model's class has no result"):
        fast.freeze()
    assert not fast.training
    assert not any(weight.requires_grad for weight in fast.parameters())


def test_copies_have_them_too(fast: Any) -> None:
    for other in (copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.named() == "base images 10"
        assert torch.equal(other.filtered(images()), fast(images()))
    assert set(vars(fast)) == set(vars(copy.copy(fast)))


def test_a_class_that_counts_what_is_derived_from_it() -> None:
    derived: list[str] = []

    class Counting(Tower):
        def __init_subclass__(cls, *, key: str) -> None:
            derived.append(key)

    fast = tome_fx.transform(Counting().eval(), 0, example_inputs=images())
    assert fast.named() == "base images 10"
    assert torch.equal(fast.filtered(images()), fast(images()))
    assert torch.equal(fast(images(), twice=False), fast(images()))
    assert not derived


def test_a_part_with_a_forward_of_its_own_is_not_called() -> None:
    model = Tower().eval()
    model.norm.forward = lambda x: 2 * x  # type: ignore[method-assign]
    fast = tome_fx.transform(model, 0, example_inputs=images())
    with pytest.raises(tome_fx.ConfigError, match="cannot be called"):
        fast.norm(torch.randn(2, 10))


def test_a_part_comes_before_a_name_of_the_class() -> None:
    class Headed(Tower):
        head: Any = None

        def __init__(self) -> None:
            super().__init__()
            del self.norm
            self.register_module("norm", nn.LayerNorm(10))

    fast = tome_fx.transform(Headed().eval(), 0, example_inputs=images())
    assert isinstance(fast.norm, nn.LayerNorm)
    assert fast.head is None


@pytest.mark.compiler
@lacks("does not trace a function's __get__")
def test_a_whole_compiles_around_a_method(model: Tower, fast: Any) -> None:
    class Whole(nn.Module):
        def __init__(self, tower: Any) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, x: Tensor) -> Tensor:
            y = self.tower.norm(self.tower.doubled(x))
            return y * self.tower.size  # type: ignore[no-any-return]

    x = images()
    compiled = torch.compile(Whole(fast), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), Whole(model)(x))


def test_a_method_that_asks_a_part_for_more_than_weights_says_so() -> None:
    fast = tome_fx.transform(tiny(img_size=32), 2)
    with pytest.raises(tome_fx.ConfigError, match=r"set_input_size .* parts\s+hold weights alone"):
        fast.set_input_size((64, 64))
