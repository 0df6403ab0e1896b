"""The report: what was found and done, in numbers that hold and words that lead to the place."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Around, images, tiny
from tome_fx.rules import local

pytestmark = TINY

INSIDE = re.compile(r"100\d{4}")  # stand-ins for symbolic sizes are of no use to a reader


def counted(model: nn.Module, x: Tensor) -> float:
    """MACs of one image by torch's counter."""
    # By products: torch 2.11 does not count the kernel that a CPU has for attention.
    by_products = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, by_products:
        model(x)
    return counter.get_total_flops() / 2 / x.shape[0]


def check_words(report: tome_fx.Report) -> str:
    """The printed report, after checks that hold for every one."""
    text = str(report)
    assert not INSIDE.search(text), text
    assert all(line == line.rstrip() for line in text.splitlines())
    plain = report.to_dict()
    again = json.loads(json.dumps(plain))
    assert again["schedule"] == list(report.schedule)
    assert again["blocks"] == [dataclasses.asdict(block) for block in report.blocks]
    assert set(plain) == {field.name for field in dataclasses.fields(report)} | {"flop_ratio"}
    for item in (*report.unmerges, *report.near_misses):
        assert item.source.partition(":")[0] in text
        assert item.reason in text
    return text


def test_a_small_model() -> None:
    model, x = tiny(depth=3, reg_tokens=2), images()
    report = tome_fx.explain(model, [3, 0, 2])
    assert (report.model, report.capture) == ("VisionTransformer", "export")
    assert (report.r, report.schedule) == ([3, 0, 2], (3, 0, 2))
    for i, block in enumerate(report.blocks):
        assert block.index == i
        assert (block.attention, block.mlp) == (f"blocks.{i}.attn", f"blocks.{i}.mlp")
        assert block.kind == "sdpa"
    tokens = [(b.tokens_in, b.removed, b.tokens_out) for b in report.blocks]
    assert tokens == [(12, 3, 9), (9, 0, 9), (9, 2, 7)]
    assert [(p.count, p.where) for p in report.protected] == [(3, "front")]
    assert "concatenation" in report.protected[0].reason
    assert report.unmerges == report.near_misses == report.notes == ()
    assert report.macs_before == pytest.approx(counted(model, x), rel=0.01)
    fast = tome_fx.transform(model, [3, 0, 2])
    assert fast.report == report
    assert report.macs_after == pytest.approx(counted(fast, x), rel=0.01)
    assert report.flop_ratio == report.macs_before / report.macs_after > 1
    for block in report.blocks:
        assert 0 < block.macs_after < block.macs_before
    text = check_words(report)
    words = "VisionTransformer export 12->9 9->9 9->7 blocks.1.attn blocks.2.mlp protected 3"
    assert all(word in text.replace(" -> ", "->") for word in words.split())


def test_eager_attention_and_blocks_without_an_mlp() -> None:
    model = tiny()
    for block in model.blocks:
        block.attn.fused_attn = False
    model.blocks[1].mlp = nn.Identity()
    report = tome_fx.explain(model, 2)
    assert [block.kind for block in report.blocks] == ["softmax", "softmax"]
    assert [block.mlp for block in report.blocks] == ["blocks.0.mlp", ""]
    check_words(report)


def test_both_ways_of_capture_tell_the_same() -> None:
    model = tiny(reg_tokens=1)
    one, two = (tome_fx.explain(model, 2, capture=way) for way in ("export", "symbolic_trace"))
    assert dataclasses.replace(one, capture="symbolic_trace") == two


@pytest.mark.few(2)
@pytest.mark.parametrize("r", [0, 2, (2, -1.0), [1, 2], 0.25], ids=str)
def test_a_report_as_data(r: Any) -> None:
    report = tome_fx.explain(tiny(), r)
    check_words(report)
    assert report.to_dict()["flop_ratio"] == report.flop_ratio
    assert f"r={r!r}" in str(report)


def test_tokens_that_are_read_by_index_are_protected() -> None:
    def first_and_last(body: nn.Module, x: Tensor) -> Tensor:
        tokens = body.forward_features(x)
        return body.head(tokens[:, 0] + tokens[:, -1])

    model = Around(first_and_last, tiny(class_token=False, global_pool="avg"))
    report = tome_fx.explain(model, 2, example_inputs=images())
    assert [(p.count, p.where) for p in report.protected] == [(1, "front"), (1, "back")]
    assert all("reads" in p.reason for p in report.protected)
    given = tome_fx.explain(tiny(), 2, protect=(2, 1))
    assert [(p.count, p.where) for p in given.protected] == [
        (1, "front"),
        (2, "front"),
        (1, "back"),
    ]
    assert "protect" in given.protected[1].reason


def test_registers_that_join_at_a_later_layer_are_named_with_it() -> None:
    def later(body: nn.Module, x: Tensor) -> Tensor:
        tokens = body.blocks[0](body._pos_embed(body.patch_embed(x)))
        tokens = body.blocks[1](torch.cat([tokens, tokens.new_ones(len(x), 4, 32)], 1))
        return body.forward_head(body.norm(tokens[:, :-4]))

    report = tome_fx.explain(Around(later), 1, example_inputs=images())
    assert [(p.count, p.where) for p in report.protected] == [(1, "front"), (4, "back")]
    assert report.protected[1].reason.endswith("at layer 1")


# --- unmerges ------------------------------------------------------------------------------------


def between_blocks(op: Callable[[Tensor], Tensor]) -> nn.Module:
    """Block, residual `op` over the tokens, block; nine tokens of 32 channels."""

    def forward(body: nn.Module, image: Tensor) -> Tensor:
        x = body.blocks[0](body.patch_embed(image) + body.pos_embed)
        x = x + op(x)  # the line to be named
        return body.forward_head(body.norm(body.blocks[1](x)))

    return Around(forward, tiny(class_token=False, global_pool="avg"))


def as_grid(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], 32, 3, 3)


def as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def windows(x: Tensor) -> Tensor:
    """A softmax inside windows of three tokens."""
    rows = x.reshape(x.shape[0] * 3, 3, 32)
    return (torch.softmax(rows @ rows.mT, -1) @ rows).reshape(x.shape[0], 9, 32)


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "conv": lambda x: as_tokens(F.conv2d(as_grid(x), torch.ones(32, 1, 3, 3), None, 1, 1, 1, 32)),
    "windows": windows,
    "roll": lambda x: torch.roll(x, 1, 1),
    "flip": lambda x: x.flip(1),
    "sort": lambda x: x.sort(1)[0],
    "cumsum": lambda x: x.cumsum(1),
    "pool": lambda x: F.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2),
    "fft": lambda x: torch.fft.fft(x, dim=1).real,
    "topk": lambda x: x.topk(9, 1)[0],
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", OPS)
def test_an_op_that_needs_all_tokens(name: str) -> None:
    model, x = between_blocks(OPS[name]), images()
    fast = tome_fx.transform(model, 2, example_inputs=x)
    report = fast.report
    assert report.schedule[0] == 2
    first = report.unmerges[0]
    assert first.kind == "unmerge"
    assert first.op.startswith("aten.")
    assert re.match(r"test_report\.py:\d+: ", first.source)
    assert first.reason
    assert first.bytes_per_image == 9 * 32 * 4
    text = check_words(report)
    assert f"{first.op}" in text
    assert fast(images(3)).shape == (3, 10)
    assert report.macs_before == pytest.approx(counted(model, x), rel=0.01)
    fast.r = 0
    assert torch.equal(fast(x), model(x))


def test_a_program_of_one_batch_size_unmerges_too() -> None:
    model, x = between_blocks(OPS["roll"]), images()
    fast = tome_fx.transform(torch.export.export(model, (x,)), 2)
    assert fast.schedule[0] == 2
    assert fast.report.unmerges[0].op == "aten.roll.default"
    fast.r = 0
    assert torch.equal(fast(x), model(x))


def test_an_unmerge_inside_a_module_has_its_path() -> None:
    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    model = tiny(class_token=False, global_pool="avg")
    model.blocks[0].mlp.add_module("mixer", Mixer())
    model.blocks[0].mlp.drop2 = nn.Sequential(model.blocks[0].mlp.drop2, Mixer())
    (unmerge, *_) = tome_fx.explain(model, 2).unmerges
    assert (unmerge.op, unmerge.module) == ("aten.cumsum.default", "blocks.0.mlp.drop2.1")
    assert unmerge.source.endswith("return x.cumsum(1)")
    assert "order" in unmerge.reason


def test_a_dense_output_is_unmerged_at_the_end() -> None:
    (unmerge,) = tome_fx.explain(tiny(global_pool="", num_classes=0), 2).unmerges
    assert unmerge.op == "output"
    assert unmerge.bytes_per_image == 10 * 32 * 4


# --- near misses and notes -----------------------------------------------------------------------


def test_latent_pooling_is_a_near_miss() -> None:
    report = tome_fx.explain(tiny(class_token=False, global_pool="map"), 2)
    (miss,) = report.near_misses
    assert (miss.what, miss.module) == ("attention", "attn_pool")
    assert "queries" in miss.reason
    assert miss.source.startswith("attention_pool.py:")
    check_words(report)


def test_class_attention_is_a_near_miss() -> None:
    import timm

    shape = {"depth": 2, "depth_token_only": 1, "embed_dim": 32, "num_heads": 2, "img_size": 48}
    report = tome_fx.explain(timm.create_model("cait_xxs24_224", **shape).eval(), 2)
    assert report.schedule == (2, 2)
    (miss,) = report.near_misses
    assert miss.module == "blocks_token_only.0.attn"
    check_words(report)


def test_causal_attention_is_a_near_miss() -> None:
    def forward(body: nn.Module, x: Tensor) -> Tensor:
        x = body.blocks[0](body._pos_embed(body.patch_embed(x)))
        return body.forward_head(body.blocks[1](x, is_causal=True))

    report = tome_fx.explain(Around(forward), 2, example_inputs=images())
    assert report.schedule == (2,)
    assert "causal" in report.near_misses[0].reason
    check_words(report)


def test_notes_of_the_clamp_are_printed() -> None:
    report = tome_fx.explain(tiny(), [9, 0])
    (note,) = report.notes
    assert "layer 0" in note
    assert note in check_words(report)


# --- cost ----------------------------------------------------------------------------------------


def test_work_grows_linearly_with_depth() -> None:
    calls: list[Any] = []

    def linear(context: Any) -> Any:
        calls.append(context)
        return local.linear(context)

    work, nodes = [], []
    for depth in (2, 4, 8):
        calls.clear()
        fast = tome_fx.transform(tiny(depth=depth), [1] * depth, rules={"aten.linear": linear})
        work.append(len(calls))
        nodes.append(len(fast.graph.nodes))
    assert work[2] - work[1] == 2 * (work[1] - work[0])
    assert nodes[2] - nodes[1] <= 2 * (nodes[1] - nodes[0]) + 8
