"""In-place ops that are plain ops under another name, and those that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.versions import lacks
from tome_fx.graph.inplace import make_plain


class Code(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.function = nn.BatchNorm2d(4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(x))


def writes(function: Callable[[Tensor], Tensor]) -> int:
    """How many writes are left; what is made plain computes what the code does."""
    code, x = Code(function).eval(), torch.randn(3, 4, 6, 6)
    batch = {0: torch.export.Dim.AUTO}
    module = torch.export.export(code, (x,), dynamic_shapes={"x": batch}).module()
    make_plain(module.graph)
    module.recompile()
    assert torch.equal(module(x), code(x))
    ops = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return sum(isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable for op in ops)


def added(y: Tensor) -> Tensor:
    z = y.mean(0)
    y += 1
    y *= z
    return y


def viewed(y: Tensor) -> Tensor:
    first = y[:, :1]
    y += 1
    return y * first


def by_view(y: Tensor) -> Tensor:
    y[:, :1].add_(1)
    return y


def by_untold_view(y: Tensor) -> Tensor:
    torch.einsum("bchw->bcwh", y).add_(1)
    return y


def by_untold_view_before(y: Tensor) -> Tensor:
    turned = torch.einsum("bchw->bcwh", y)
    y += 1
    return y * turned


def handed_on(y: Tensor) -> Tensor:
    F.dropout(y, 0.5, training=False).add_(1)
    return y


def view_handed_on(y: Tensor) -> Tensor:
    F.dropout(y[:, :1], 0.5, training=False).add_(1)
    return y


def narrower(y: Tensor) -> Tensor:
    half = y.half()
    half += y
    return half.float()


def compared(y: Tensor) -> Tensor:
    return (y + 0).gt_(0.5)


def corner(y: Tensor) -> Tensor:
    """Positions of the decomposed kind: what is read of a part is written back to it."""
    y[:, :, 1:, 2:] = y[:, :, 1:, 2:].flatten(2).unflatten(2, (5, 4)) + y[:, :, :5, :4]
    return y.softmax(-1) * y[:, 0, None]


def in_turn(y: Tensor) -> Tensor:
    y[:, 1] = y[:, 0]
    y[:, 2:, 0] += y[:, :2, 1]
    y[:, :1] *= 2
    return y + 1


def broadcast(y: Tensor) -> Tensor:
    y[:, 1:].copy_(y[:, :1])
    return y


def view_before(y: Tensor) -> Tensor:
    first = y[:, 0]
    y[:, :1] = y[:, 1:2] + 1
    return y.sum(1) * first


def part_of_a_view(y: Tensor) -> Tensor:
    y.flatten(2)[:, :1].add_(1)
    return y


def written_to_again(y: Tensor) -> Tensor:
    y[:, :1].add_(1).mul_(2)
    return y


def part_read_later(y: Tensor) -> Tensor:
    part = y[:, :1]
    part.add_(1)
    return y * part


@pytest.mark.parametrize(
    "function",
    [
        F.relu_,
        added,
        pytest.param(handed_on, marks=lacks("makes a copy of it")),
        by_view,
        corner,
        in_turn,
    ],
)
def test_a_write_that_nobody_else_sees_is_a_plain_op(
    function: Callable[[Tensor], Tensor],
) -> None:
    assert writes(function) == 0


@pytest.mark.parametrize(
    "function",
    [
        viewed,
        by_untold_view,
        by_untold_view_before,
        view_handed_on,
        narrower,
        compared,
        broadcast,
        view_before,
        part_of_a_view,
        written_to_again,
        part_read_later,
    ],
)
def test_a_write_that_another_sees_stays(function: Callable[[Tensor], Tensor]) -> None:
    assert writes(function) > 0


def test_an_input_is_written_to() -> None:
    module = torch.export.export(nn.ReLU(inplace=True), (torch.randn(3),)).module()
    assert "relu_" in make_plain(module.graph).python_code("self").src
