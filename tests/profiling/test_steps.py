"""Each node belongs to one step, and to the right one."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch

import tome_fx
from tests.tiny import tiny
from tome_fx import ops
from tome_fx.pipeline import rewritten_graph
from tome_fx.profiling import steps
from tome_fx.profiling.steps import Place, places


def places_of(model: torch.nn.Module, r: int = 2) -> dict[torch.fx.Node, Place]:
    # As lowered: what a model writes out is not yet one call.
    fast = tome_fx.transform(model, r, attention="written")
    located = fast.located
    lifted = rewritten_graph(located, fast.settings)
    assert len(lifted.graph.nodes) == len(fast.graph.nodes), "the same graph as the module's"
    found = places(lifted.graph, lifted.origin, located.program.graph, located.findings)
    assert list(found) == list(lifted.graph.nodes), "every node, once"
    return found


def test_every_public_function_has_a_step() -> None:
    public = [getattr(ops, name) for name in dir(ops) if not name.startswith("_")]
    functions = {f for f in public if callable(f) and not isinstance(f, type)}
    assert functions - set(steps.OF_FUNCTION) == set()
    assert set(steps.OF_FUNCTION.values()) <= set(steps.STEPS)


def test_the_steps_of_a_plain_block() -> None:
    found = places_of(tiny())
    layer = Counter(
        (place.step, getattr(node.target, "__name__", "").partition(".")[0])
        for node, place in found.items()
        if place.layer == "1" and node.op == "call_function"
    )
    for step, name, count in [
        ("norm", "layer_norm", 2),
        ("projections", "linear", 2),
        ("attention", "scaled_dot_product_attention", 1),
        ("mlp", "linear", 2),
        ("mlp", "gelu", 1),
        ("other", "add", 2),
        ("matching", "head_mean", 1),
        ("matching", "similarity", 1),
        ("matching", "match", 1),
        ("merging", "merge", 1),
        ("sizes", "merged_size", 1),
        ("sizes", "along", 1),
        ("bias", "key_bias", 1),
    ]:
        assert layer[step, name] == count, (step, name)
    assert sum(layer[key] for key in layer if key[1] == "linear") == 4


def test_before_the_first_block_and_behind_the_last() -> None:
    found = places_of(tiny())
    named = {node.name: place for node, place in found.items()}
    assert named["conv2d"] == Place(steps.STEM, steps.ENDS)
    last = [n for n in found if n.target is torch.ops.aten.linear.default][-1]
    assert found[last] == Place(steps.HEAD, steps.ENDS)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"fused": False}),
        ("vit_tiny_patch16_224", {"block": "parallel"}),
        ("eva02_tiny_patch14_224", {}),
    ],
)
def test_other_kinds_of_block(name: str, kwargs: dict[str, object]) -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    side = 56 if "14" in name else 64
    more = {"block_fn": ParallelScalingBlock} if kwargs.get("block") else {}
    model = timm.create_model(name, depth=2, img_size=side, num_classes=3, **more).eval()
    if "fused" in kwargs:
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    found = places_of(model)
    counted = Counter((place.layer, place.step) for place in found.values())
    for layer in ("0", "1"):
        for step in ("projections", "attention", "mlp", "matching", "merging"):
            assert counted[layer, step] > 0, (layer, step)
    assert not [n for n, p in found.items() if p.step == "other" and "linear" in n.name]


def test_softmax_and_both_products_are_attention() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64).eval()
    model.blocks[0].attn.fused_attn = False
    found = places_of(model)
    inner = {"matmul", "softmax"}
    kinds = [
        (getattr(n.target, "__name__", "").partition(".")[0], place.step)
        for n, place in found.items()
    ]
    assert [step for name, step in kinds if name in inner] == ["attention"] * 3


def test_what_is_unmerged_is_counted_as_such() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=0,
                              global_pool="").eval()  # fmt: skip
    found = places_of(model)
    assert any(place.step == "unmerge" for place in found.values())
