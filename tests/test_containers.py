"""Lists and dicts of inputs: as many, and the same names, as the program was captured with."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


class Prompted(nn.Module):
    """Images with prompts in a list and numbers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor, prompts: Any = (), extra: Any = None) -> Tensor:
        z = self.body(x)
        for prompt in prompts.to_tuple() if isinstance(prompts, Output) else prompts:
            for one in prompt if isinstance(prompt, (tuple, list)) else [prompt]:
                z = z + one
        for value in (extra or {}).values():
            z = z * value
        return z


@dataclass
class Output(ModelOutput):
    """Tensors by name and by number, as transformers has them."""

    a: Tensor | None = None
    b: Tensor | None = None


def row(seed: int) -> Tensor:
    return torch.randn(2, 10, generator=torch.Generator().manual_seed(seed))


A, B, C = map(row, range(3))
# What was captured, what is given then, and what the error says: nothing where it is none.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one more": ({"prompts": [A, B]}, {"prompts": [A, B, C]}, r"prompts has 3.* with 2"),
    "one less": ({"prompts": [A, B]}, {"prompts": [A]}, r"prompts has 1.* with 2"),
    "none": ({"prompts": [A, B]}, {"prompts": []}, r"prompts has 0.* with 2"),
    "a tensor of more": (
        {"prompts": [A, B]}, {"prompts": torch.stack([A, B, C])}, r"prompts has 3.* with 2"
    ),
    "no length": ({"prompts": [A]}, {"prompts": 5}, r"prompts is of type int.* with 1"),
    "a tuple": ({"prompts": [A, B]}, {"prompts": (B, C)}, ""),
    "an output of a model": ({"prompts": [A, B]}, {"prompts": Output(a=B, b=C)}, ""),
    "lists within": (
        {"prompts": [[A], (B, C)]}, {"prompts": [[A], (B,)]}, r"prompts\[1\] has 1.* with 2"
    ),
    "as many within": ({"prompts": [[A], (B, C)]}, {"prompts": [[C], (A, B)]}, ""),
    "one name more": (
        {"extra": {"a": A}}, {"extra": {"a": A, "b": B}}, r"extra holds a, b,.* with a"
    ),
    "one name less": (
        {"extra": {"a": A, "b": B}}, {"extra": {"a": A}}, r"extra holds a,.* with a, b"
    ),
    "another order": ({"extra": {"a": A, "b": B}}, {"extra": {"b": B, "a": C}}, ""),
    "parameters by name": (
        {"extra": {"a": A}}, {"extra": nn.ParameterDict({"a": nn.Parameter(B)})}, ""
    ),
    "no dict": ({"extra": {"a": A}}, {"extra": [A]}, r"extra is of type list,.* with a"),
}  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("by_place", [False, True])
def test_containers_are_as_they_were_captured(name: str, by_place: bool) -> None:
    captured, given, text = CALLS[name]
    model, x = Prompted().eval(), images(2)

    def inputs(of: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((x, of["prompts"]), {}) if by_place and "prompts" in of else ((x,), of)

    args, kwargs = inputs(captured)
    fast = tome_fx.transform(model, 0, example_inputs=args, example_kwargs=kwargs or None)
    args, kwargs = inputs(given)
    if text:
        with pytest.raises(tome_fx.ShapeError, match=text):
            fast(*args, **kwargs)
    else:
        torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs))
    args, kwargs = inputs(captured)
    torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs))


def test_those_of_an_exported_program() -> None:
    model, x = Prompted().eval(), images(2)
    fast = tome_fx.transform(torch.export.export(model, (x, [A, B])), 0)
    torch.testing.assert_close(fast(x, [B, C]), model(x, [B, C]))
    for prompts in ([A], [A, B, C]):
        with pytest.raises(tome_fx.ShapeError, match=rf"prompts has {len(prompts)}.* with 2"):
            fast(x, prompts)


def test_compiled_and_copied_they_are_checked_too() -> None:
    model, x = Prompted().eval(), images(2)
    fast = tome_fx.transform(model, 2, example_inputs=x, example_kwargs={"prompts": [A, B]})
    expected = fast(x, prompts=[B, C])
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    for module in (compiled, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.testing.assert_close(module(x, prompts=[B, C]), expected)
        with pytest.raises(Exception, match=r"prompts has 1.* with 2"):
            module(x, prompts=[A])
