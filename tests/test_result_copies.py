"""Copies of a result have what was put on it since: hooks, tensors, modules, attributes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

import tome_fx
from tests.laws.common import TINY, distance
from tests.test_parts import Freezing, copied
from tests.tiny import images, tiny

pytestmark = TINY


def doubled(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] * 2,)


@pytest.mark.few(2)
@copied
def test_a_copy_has_what_was_put_on_the_result(copier: Callable[[Any], Any]) -> None:
    fast, x = tome_fx.transform(tiny(), 2), images(3)
    before = fast(x)
    fast.register_forward_pre_hook(doubled)
    fast.register_buffer("steps", torch.tensor(3))
    fast.register_buffer("passing", torch.tensor(4), persistent=False)
    fast.register_buffer("_own", torch.tensor(5))
    fast.adapter, fast.labels = nn.Linear(2, 2), ["cat", "dog"]
    with pytest.warns(tome_fx.ToMeWarning, match=r"num_classes=77 changes nothing that is comp"):
        fast.num_classes = 77
    other = copier(fast)
    assert torch.equal(other(x), fast(x))
    assert not torch.equal(other(x), before)
    assert other.state_dict().keys() == fast.state_dict().keys()
    assert (other.steps, other.passing) == (3, 4)
    assert (other.labels, other.num_classes) == (["cat", "dog"], 77)
    assert torch.equal(other.adapter.weight, fast.adapter.weight)
    shared = copier is copy.copy
    assert (other.adapter is fast.adapter) is shared
    other.r = 5
    assert fast.r == 2
    other.register_forward_hook(lambda module, args, out: 0 * out)
    assert fast(x).abs().max() > 0


@copied
@pytest.mark.few(2)
@pytest.mark.parametrize("change", ["cast", "assigned"])
def test_a_copy_of_an_exported_programs_result(copier: Callable[[Any], Any], change: str) -> None:
    model, x = tiny(), images(3)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    fast = tome_fx.transform(torch.export.export(model, (x,), dynamic_shapes=(batch,)), 2)
    before = fast(x)
    if change == "cast":
        fast, x = fast.double(), x.double()
    else:
        other = {name: value + 0.1 for name, value in model.state_dict().items()}
        fast.load_state_dict(other, assign=True)
        assert distance(fast(x).detach(), before.detach()) > 1e-3
    assert torch.equal(copier(fast)(x), fast(x))
    assert copier(fast).head.weight.dtype == x.dtype


@pytest.mark.few(1)
@copied
def test_which_weights_do_not_decay(copier: Callable[[Any], Any]) -> None:
    model = tiny()
    fast = copier(tome_fx.transform(model, 2))
    assert fast.no_weight_decay() == model.no_weight_decay()
    assert fast.group_matcher(coarse=True) == model.group_matcher(coarse=True)
    plain = tome_fx.transform(Freezing(), 2, example_inputs=images(2))
    assert not hasattr(plain, "no_weight_decay")


@pytest.mark.filterwarnings("ignore:Hooks on:tome_fx.ToMeWarning")
@pytest.mark.parametrize(
    "copier", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_pruned_model_that_was_called(copier: Callable[[Any], Any]) -> None:
    """Its weight is a value of the call before, with what its gradient would need."""
    model, x = tiny(), images()
    l1_unstructured(model.blocks[0].mlp.fc1, "weight", 0.5)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    model(x).sum().backward()
    again = tome_fx.transform(model, 2, example_inputs=x)
    for one in (fast, again):
        torch.testing.assert_close(copier(one)(x), fast(x), rtol=0, atol=0)
