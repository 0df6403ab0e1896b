"""The worked examples of docs/rules.md: a user's own op, with and without a rule for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.rules.common import LABELS, TINY, distance, host, images, schedule_for
from tests.tiny import tiny
from tome_fx.graph.axes import TensorType, extensive, has_stream
from tome_fx.rules import Context, Lifted, Refusal
from tome_fx.rules.base import as_intensive

pytestmark = TINY


@torch.library.custom_op("tome_fx_docs::unit", mutates_args=())
def unit(x: Tensor) -> Tensor:
    """Each token to unit length, as a kernel of one's own."""
    return x / x.norm(dim=-1, keepdim=True)


@unit.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("tome_fx_docs::token_sum", mutates_args=())
def token_sum(x: Tensor) -> Tensor:
    """``[B, N, C] -> [B, C]``."""
    return x.sum(1)


@token_sum.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2])


def unit_rule(context: Context) -> Lifted | Refusal:
    x = as_intensive(context.types["x"])  # the length of a group's total is not its members'
    if has_stream(x.axes[-1]):
        return Refusal("it takes the length over tokens")
    return Lifted((x,), operands={"x": x})


def token_sum_rule(context: Context) -> Lifted | Refusal:
    x = context.types["x"]
    if has_stream(x.axes[2]):
        return Refusal("its channels hold tokens")
    totals = TensorType((x.axes[0], extensive(x.axes[1]), x.axes[2]))
    return Lifted((TensorType((x.axes[0], x.axes[2])),), operands={"x": totals})


def nothing(context: Context) -> Any:
    return None


UNIT = [(torch.ops.tome_fx_docs.unit, unit_rule)]
TOKEN_SUM = [(torch.ops.tome_fx_docs.token_sum, token_sum_rule)]


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ops.tome_fx_docs.unit(x)


class TokenSum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ops.tome_fx_docs.token_sum(x)[:, None]


def unmerges(op: nn.Module, rules: Any) -> list[tome_fx.report.Unmerge]:
    """What was unmerged around ``op``, between two blocks, where all that merges is equal."""
    model, x = host(op), images()
    schedule = schedule_for(LABELS, 1, 2)
    fast = tome_fx.transform(model, r=schedule, example_inputs=(x,), rules=rules)
    assert list(fast.schedule) == schedule
    assert schedule[0] > 0
    assert distance(fast(x), model(x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(fast(other), model(other)) > 1e-6
    return [u for u in fast.report.unmerges if u.op != "output" and u.kind == "unmerge"]


def test_with_its_rule_a_local_op_stays_merged() -> None:
    assert not unmerges(Unit(), UNIT)


def test_with_its_rule_a_sum_over_tokens_counts_every_member() -> None:
    assert not unmerges(TokenSum(), TOKEN_SUM)


@pytest.mark.parametrize(("op", "name"), [(Unit, "unit"), (TokenSum, "token_sum")])
def test_without_a_rule_the_op_is_unmerged_and_exact(op: type[nn.Module], name: str) -> None:
    (found,) = unmerges(op(), ())
    assert found.op == f"tome_fx_docs.{name}.default"
    assert found.module == "op"
    assert found.reason == f"no rule for tome_fx_docs.{name}"
    assert found.source.startswith("test_custom_rule.py:")
    assert f"torch.ops.tome_fx_docs.{name}" in found.source


def test_a_rule_may_be_given_by_the_name_of_the_op() -> None:
    assert not unmerges(Unit(), {"tome_fx_docs.unit": unit_rule})


def test_a_rule_that_forgets_the_members_breaks_the_duplicates_law() -> None:
    def forgetful(context: Context) -> Lifted:
        x = context.types["x"]
        return Lifted((TensorType((x.axes[0], x.axes[2])),))

    model, x = host(TokenSum()), images()
    rules = [(torch.ops.tome_fx_docs.token_sum, forgetful)]
    schedule = schedule_for(LABELS, 1, 2)
    fast = tome_fx.transform(model, r=schedule, example_inputs=(x,), rules=rules)
    assert distance(fast(x), model(x)) > 1e-4


def test_a_rule_that_answers_something_else_is_named() -> None:
    rules = {"aten.gelu": nothing}
    with pytest.raises(tome_fx.ConfigError, match=r"rule for aten.gelu returned None: a rule re"):
        tome_fx.transform(tiny(), 2, rules=rules)


@pytest.mark.parametrize("rule", [lambda: None, lambda context, more: None])
def test_a_rule_takes_a_context(rule: Any) -> None:
    with pytest.raises(
        tome_fx.ConfigError, match=r"aten\.relu is called with one argument, a cont"
    ):
        tome_fx.transform(tiny(), 2, rules={"aten.relu": rule})


def test_an_op_of_a_namespace_with_a_point_by_its_name() -> None:
    rules = {"tome_fx_docs.more.unit": unit_rule}
    # Gone from the list of all ops behind it: torch 2.11 reads that, and has no points there.
    with torch.library._scoped_library("tome_fx_docs.more", "DEF") as library:
        library.define("unit(Tensor x) -> Tensor")
        assert tome_fx.transform(tiny(), 1, rules=rules).settings.rules == rules


@pytest.mark.parametrize("name", ["aten.sdpaa", "aten.gelu.default", "gelu", "no.such.op"])
def test_a_rule_for_no_op_is_refused(name: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match=f"{name}' is not the name of an op"):
        tome_fx.transform(tiny(), 2, rules={name: unit_rule})
