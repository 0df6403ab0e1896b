"""Weights that hold other tensors: held once, read where they are, and of one kind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tome_fx
from tests.laws.common import TINY
from tests.quantised import by_config, packed, quantisation_of, quantised
from tests.tiny import images, tiny
from tests.versions import lacks
from tome_fx.measuring.kept import weights_of
from tome_fx.profiling.traffic import moved

pytestmark = [TINY, pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao")]


def other(name: str) -> nn.Module:
    """A model with other weights than :func:`tiny` has."""
    model = tiny()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return quantised(model, name)


@torch.no_grad()
def test_they_are_held_once_and_come_along() -> None:
    x, model = images(4), quantised(tiny(), "weights")
    fast = tome_fx.transform(model, 2)
    merged = fast(x)
    assert not [name for name, _ in fast.named_buffers()]
    for twin in (copy.copy(fast), copy.deepcopy(fast)):
        assert packed(twin) == packed(fast)
        torch.testing.assert_close(twin(x), merged, rtol=1e-4, atol=1e-5)
    fast.train()
    torch.testing.assert_close(fast.eval()(x), merged, rtol=1e-4, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "assign"), [("weights", False), ("weights", True), ("float8", True)]
)
@torch.no_grad()
def test_those_that_are_loaded_or_assigned_are_read(name: str, assign: bool) -> None:
    """By assignment they bring their tensors, and those of before are no longer anybody's."""
    fast, there, x = tome_fx.transform(quantised(tiny(), name), 2), other(name), images()
    expected = tome_fx.transform(there, 2)(x)
    assert not torch.allclose(fast(x), expected, rtol=0.1)
    fast.load_state_dict(there.state_dict(), assign=assign)
    assert torch.equal(fast(x), expected)
    for module in (fast, there):
        module.blocks[0].attn.qkv.weight = copy.deepcopy(module.blocks[1].attn.qkv.weight)
    assert torch.equal(fast(x), tome_fx.transform(there, 2)(x))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (
            "weights",
            "activations",
            "captured as Int8Tensor of .* another way with Int8Tensor of",
        ),
        ("weights", "float8", "captured as Int8Tensor of .* another way with Float8Tensor"),
        ("weights", "", "in another way with a plain tensor"),
        ("", "weights", "Int8Tensor cannot be a weight here. Quantise the model first"),
    ],
)
def test_those_that_are_computed_with_otherwise_are_refused(
    before: str, after: str, says: str
) -> None:
    """The program has the ops of one kind."""
    model, there = (quantised(tiny(), n) if n else tiny() for n in (before, after))
    fast, x = tome_fx.transform(model, 2), images()
    y = fast(x)
    with pytest.raises(tome_fx.ConfigError, match=says):
        fast.blocks[0].attn.qkv.weight = there.blocks[0].attn.qkv.weight  # type: ignore[union-attr, index]
    with pytest.raises(RuntimeError, match=says):
        fast.load_state_dict(there.state_dict(), assign=True)
    assert torch.equal(fast(x), y)


def test_other_scales_are_another_kind() -> None:
    """One for each row, and one for the tensor."""
    by_tensor = quantisation_of("Int8WeightOnlyConfig", granularity="PerTensor")
    fast = tome_fx.transform(quantised(tiny(), "weights"), 2)
    weight = by_config(tiny(), by_tensor).blocks[0].attn.qkv.weight  # type: ignore[union-attr, index]
    with pytest.raises(tome_fx.ConfigError, match="Quantise the model so, then transform it"):
        fast.blocks[0].attn.qkv.weight = weight


@pytest.mark.parametrize("capture", ["export", "symbolic_trace"])
@torch.no_grad()
def test_one_weight_of_two_layers_stays_one(capture: str) -> None:
    model, x = quantised(tiny(), "int4"), images()
    model.blocks[0].attn.qkv.weight = model.blocks[1].attn.qkv.weight  # type: ignore[union-attr, index]
    fast = tome_fx.transform(model, 0, capture=capture)
    assert fast.blocks[0].attn.qkv.weight is fast.blocks[1].attn.qkv.weight
    assert torch.equal(fast(x), model(x))


@torch.no_grad()
def test_casts_make_them_the_results_own_and_nothing_else_does() -> None:
    model = quantised(tiny(), "weights")
    fast = tome_fx.transform(model, 2)
    theirs = model.blocks[0].attn.qkv.weight  # type: ignore[union-attr, index]
    fast.float()
    assert fast.blocks[0].attn.qkv.weight is theirs
    fast._apply(torch.clone)
    assert fast.blocks[0].attn.qkv.weight is not theirs


def test_they_have_a_hash() -> None:
    names = ("weights", "weights", "int4", "activations")
    first, same, *others = (weights_of(quantised(tiny(), name)) for name in names)
    assert first == same
    assert len({first, *others, weights_of(other("weights"))}) == 4


def test_to_read_what_one_holds_moves_nothing() -> None:
    weight: Any = quantised(tiny(), "weights").blocks[0].attn.qkv.weight  # type: ignore[union-attr, index]
    assert moved((weight,), weight.qdata) == 0
    assert moved((weight.qdata,), weight.qdata.clone()) == 2 * weight.qdata.nbytes


def test_no_recipe_keeps_them(tmp_path: Path) -> None:
    fast = tome_fx.transform(quantised(tiny(), "weights"), 2)
    with pytest.raises(tome_fx.ConfigError, match=r"qkv.weight is of Int8Tensor.*without weights"):
        tome_fx.save_recipe(fast, tmp_path / "a.json", weights=True)
    assert not list(tmp_path.iterdir())
    tome_fx.save_recipe(fast, tmp_path / "a.json")


@torch.no_grad()
def test_four_bits_of_qlora() -> None:
    nf4 = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    model, x = tiny(), images(3)
    for block in model.blocks:  # type: ignore[union-attr]
        held = nf4.NF4Tensor.from_tensor(block.attn.qkv.weight.data, 32, 2)
        block.attn.qkv.weight = nn.Parameter(held, requires_grad=False)
    fast = tome_fx.transform(model, 0)
    assert len(packed(fast)) == 2
    asking = nf4.NF4Tensor.from_tensor(tiny().blocks[0].attn.qkv.weight, 32, 2)  # type: ignore[union-attr, index]
    fast.blocks[0].attn.qkv.weight = nn.Parameter(asking, requires_grad=False)
    assert torch.equal(fast(x), model(x))
    fast.r = 2
    assert fast.schedule == (2, 2)
    assert not fast.report.unmerges


@lacks("makes a nested tensor in a way that Dynamo does not know")
@torch.no_grad()
def test_the_backend_leaves_nested_images_alone() -> None:
    rows = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)], layout=torch.jagged)

    def call(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return model(images()) + rows.sum(1).mean(1)[:, None]

    model = tiny()
    compiled = torch.compile(call, backend=tome_fx.backend(2, inner_backend="aot_eager"))
    with pytest.warns(tome_fx.ToMeWarning, match="is a nested tensor, which has images of several"):
        y = compiled(model, rows)
    torch.testing.assert_close(y, call(model, rows))
