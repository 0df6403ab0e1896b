"""Whole models with fused graphs that run kernels."""

from __future__ import annotations

import pytest
import torch

import tome_fx
from tests.kernels.interpreted.common import DEVICE
from tests.packed import Packed
from tests.tiny import images, tiny
from tome_fx import kernels, ops
from tome_fx.profiling.profile import profile
from tome_fx.profiling.roofline import Roofline


@pytest.mark.few(2)
@pytest.mark.parametrize("r", [1, 3, (2, -1.0)])
def test_a_model_with_kernels_is_the_model_without(r: object) -> None:
    model, x = tiny().to(DEVICE), images(3).to(DEVICE)
    with kernels.using("portable"):
        plain = tome_fx.transform(model, r, example_inputs=x)
        expected, maps = plain(x), plain.token_map(x)
        wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    fast = tome_fx.transform(model, r, example_inputs=x)
    targets = [node.target for node in fast.graph.nodes]
    merges = sum(map(bool, fast.schedule))
    assert targets.count(ops.match_keys) == targets.count(ops.merge_norm) == merges > 0
    found = fast(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(fast(x), found)
    assert all(torch.equal(a, b) for a, b in zip(fast.token_map(x), maps, strict=True))
    ours = torch.autograd.grad(found.square().sum(), list(model.parameters()))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-7)
    assert str(fast.report) == str(plain.report)


@pytest.mark.few(1)
@pytest.mark.parametrize("lengths", [(16, 24), (24,), (16, 24, 16, 24)])
def test_images_in_one_row(lengths: tuple[int, ...]) -> None:
    config = Packed(lengths=lengths)
    model = config.build().float().to(DEVICE)
    given = (config.rows().float().to(DEVICE), *([torch.tensor(lengths)] * (len(lengths) > 1)))
    with kernels.using("portable"):
        plain = tome_fx.transform(model, 2, example_inputs=given, min_ratio=0)
        expected, maps = plain(*given), plain.token_map(*given)
    fast = tome_fx.transform(model, 2, example_inputs=given, min_ratio=0)
    targets = [node.target for node in fast.graph.nodes]
    assert targets.count(ops.match_keys) == 3 * len(set(lengths))
    assert targets.count(ops.merge_norm) == 3
    torch.testing.assert_close(fast(*given), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(fast.token_map(*given), maps, strict=True))


def test_the_profile_is_of_the_calls_that_run() -> None:
    fast = tome_fx.transform(tiny().to(DEVICE), 2)
    merges = sum(map(bool, fast.schedule))
    (found,) = profile({"2": fast}, images(3).to(DEVICE), Roofline(macs=1e9, bandwidth=1e8), 1, 0)
    steps = {line.step: line for line in found.by_step()}
    assert steps["matching"].nodes == merges > 0
    assert steps["matching"].macs == 3 * fast.report.macs_matching > 0
    assert sum(line.macs for line in found.lines) == 3 * fast.report.macs_after
    # Of two norms a layer one is part of the merge, which makes the sizes too.
    assert steps["norm"].nodes == merges
    assert "unmerge" not in steps
