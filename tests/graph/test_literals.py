"""What is known of values that literals alone make, and masks that hide nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

import tome_fx
from tests.laws.common import TINY
from tome_fx.graph.calls import bind
from tome_fx.graph.literals import Literals
from tome_fx.passes.normalize import normalize

pytestmark = TINY
N = 5


class Of(nn.Module):
    """A model of one function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def exported(function: Callable[[Tensor], Any], device: str = "cpu") -> torch.fx.GraphModule:
    """``function`` of ``[B, 2, N, 4]`` for any B."""
    batch = ({0: torch.export.Dim.DYNAMIC},)
    x = torch.randn(3, 2, N, 4, device=device)
    program = torch.export.export(Of(function), (x,), dynamic_shapes=batch)
    return program.module()  # type: ignore[return-value]


def result_of(module: torch.fx.GraphModule) -> object:
    """What is known of all places of the result."""
    literals = Literals()
    for node in list(module.graph.nodes):
        literals.read(node)
    (result,) = module.graph.output_node().all_input_nodes
    return literals.of_all(result)


def shown(x: Tensor, dtype: torch.dtype = torch.bool) -> Tensor:
    """All keys of all images: a mask as transformers exports it."""
    places = torch.arange(N, device=x.device)
    truth = (places >= 0)[None, None, :, None] & places.new_ones((), dtype=torch.bool)
    return truth.expand(x.shape[0], -1, -1, N).to(dtype)


LOWEST, EXP = torch.finfo(torch.float32).min, torch.tensor(0.5).exp().item()
SAME: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "truth": (shown, True),
    "number": (lambda x: shown(x, torch.float32), 1.0),
    "hidden": (lambda x: ~shown(x), False),
    "chosen": (lambda x: torch.where(shown(x), 0.0, LOWEST), 0.0),
    "lowest": (lambda x: torch.where(~shown(x), 0.0, LOWEST), LOWEST),
    "filled": (lambda x: torch.full_like(x, 0.5), 0.5),
    "new": (lambda x: x.new_full((x.shape[0], N), 3), 3.0),
    "whole": (lambda x: torch.ones(x.shape[0], dtype=torch.int64) + 1, 2),
    "zeros": (lambda x: torch.zeros_like(x).transpose(2, 3).reshape(x.shape[0], -1), 0.0),
    "ranges": (lambda x: torch.arange(N) * 0 + x.new_zeros(x.shape[0], 1), 0.0),
    "single": (lambda x: torch.arange(7, 8), 7),
    "promoted": (lambda x: x.new_ones(x.shape[0]) + torch.full((), 2.0, dtype=torch.float64), 3.0),
    "in 64 bits": (lambda x: torch.full_like(x.double(), 0.1) > 0.1, False),
    "large": (lambda x: torch.full_like(x, 2**63, dtype=torch.uint64) == 2**63, True),
    "below zero": (lambda x: torch.arange(-2.0, 3.0) * 0.0, None),
    "computed": (lambda x: x.new_full((N,), 0.5).exp() * x.new_ones(x.shape[0], 1), EXP),
    "each": (lambda x: torch.arange(N).expand(x.shape[0], N), None),
    "drawn": (lambda x: torch.bernoulli(torch.full((N,), 0.5)), None),
    "images": (lambda x: x * 0, None),
    "beside": (lambda x: shown(x) & (x.sum(-1, keepdim=True) > 0), None),
    "filled by images": (lambda x: torch.full((N,), 1.0) * x.sum(), None),
}


@pytest.mark.parametrize(
    ("name", "device"), [*((name, "cpu") for name in SAME), ("truth", "meta"), ("lowest", "meta")]
)
def test_what_all_places_have(name: str, device: str) -> None:
    make, same = SAME[name]
    module = exported(make, device)
    found = result_of(module)
    assert found == same
    assert type(found) is type(same)
    if device == "cpu" and same is not None:
        module.recompile()
        value = module(torch.randn(2, 2, N, 4))
        assert bool((value == same).all())


def test_other_devices_may_round_otherwise() -> None:
    assert result_of(exported(SAME["computed"][0], "meta")) is None


def attending(mask: Callable[[Tensor], Any]) -> tuple[torch.fx.GraphModule, Any]:
    """Attention with a mask, normalised, and what its mask is then."""
    module = exported(lambda x: sdpa(x, x * 2, x + 1, attn_mask=mask(x)))
    module.graph = normalize(module.graph)
    module.recompile()
    (node,) = module.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    return module, bind(node)["attn_mask"]


TABLE = torch.linspace(-1, 1, 2 * N * N).reshape(1, 2, N, N)
NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "truth": shown,
    "zeros": lambda x: torch.where(shown(x), 0.0, LOWEST),
}
BIASED: dict[str, Callable[[Tensor], Tensor]] = {
    "bias and a truth": lambda x: TABLE + shown(x),
    "zeros and a bias": lambda x: torch.where(shown(x), 0.0, LOWEST) + TABLE,
    "nothing hidden and a bias": lambda x: ~shown(x) + TABLE,
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "lowest": lambda x: torch.where(~shown(x), 0.0, LOWEST),
    "bias and the lowest": lambda x: TABLE + torch.where(~shown(x), 0.0, LOWEST),
    "ones": lambda x: shown(x, torch.float32),
    "ones and a bias": lambda x: TABLE + shown(x, torch.float32),
    "a bias for each key": lambda x: TABLE[0, 0, 0] + shown(x),
    "a bias for each head": lambda x: TABLE[..., :1, :1] + shown(x),
    "narrow": lambda x: TABLE.half() + torch.where(shown(x), 0.0, LOWEST),
    "doubled": lambda x: torch.add(TABLE, shown(x), alpha=2),
    "images": lambda x: x.mean((1, 2, 3), keepdim=True).expand(-1, 1, N, N) > -10,
    "a bias": lambda x: TABLE,
}


@pytest.mark.parametrize("name", [*NOTHING, *BIASED, *KEPT])
def test_a_mask_that_hides_nothing_is_none(name: str) -> None:
    mask = (NOTHING | BIASED | KEPT)[name]
    module, found = attending(mask)
    assert (found is None) == (name in NOTHING)
    if name in BIASED:
        assert found.op == "get_attr", "the table itself"
    x = torch.randn(4, 2, N, 4)
    wanted = sdpa(x, x * 2, x + 1, attn_mask=mask(x))
    assert torch.allclose(module(x), wanted, atol=1e-6)


def test_a_truth_beside_a_bias_of_transformers_is_none() -> None:
    """BEiT is given no mask where it runs, and one of ones where it is exported, as a number."""
    hf = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.BeitConfig(
        **shape, intermediate_size=48, image_size=32, patch_size=8,
        use_relative_position_bias=True, out_indices=[1, 2], reshape_hidden_states=False,
    )  # fmt: skip
    model, x = hf.BeitBackbone(config).eval(), torch.randn(2, 3, 32, 32)
    fast = tome_fx.transform(model, 0, example_inputs=x)
    with torch.no_grad():
        for found, wanted in zip(fast(x).feature_maps, model(x).feature_maps, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_sizes_are_all_that_is_beside_the_keys(device: str) -> None:
    """So that the forms of attention without a mask are legal, whatever the device."""
    hf = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.device(device):
        model = hf.ViTModel(
            hf.ViTConfig(**shape, intermediate_size=48, image_size=32, patch_size=8)
        )
        x = torch.randn(2, 3, 32, 32)
        fast = tome_fx.transform(model.eval(), 2, example_inputs=x, attention="channel")
    taken = [n.target for n in fast.graph.nodes if n.target is tome_fx.ops.FORMS["channel"]]
    assert len(taken) == 1
