"""Recurrent cells on rows of tokens: a residual that goes through a gate.

A cell takes one step on each row alone, ``[rows, C]`` and ``[rows, C]`` to ``[rows, C]``. It is not
linear in either, so both are brought to members.
"""

from __future__ import annotations

from tome_fx.graph.axes import Atom, Origin, TensorType, has_batch, has_stream, intensive
from tome_fx.graph.unify import unify
from tome_fx.rules.base import Context, Lifted, Refusal, one


def cell(context: Context) -> Lifted | Refusal:
    """``gru_cell(input, hx)`` and its kin with one state."""
    step, state = context.types["input"], context.types["hx"]
    if step.rank != 2 or state.rank != 2:
        return Refusal("this form of a recurrent cell is not known")
    if any(has_stream(t.axes[1]) or has_batch(t.axes[1]) for t in (step, state)):
        return Refusal("it mixes tokens by a weight for each position")
    rows = unify(step.axes[0], state.axes[0])
    if rows is None:
        return Refusal("its operands hold different tokens on one axis")
    rows = intensive(rows)
    channel = (Atom(context.shape[1], Origin("channel", context.call.node.name)),)
    wanted = {
        "input": TensorType((rows, step.axes[1])),
        "hx": TensorType((rows, state.axes[1])),
    }
    return one(TensorType((rows, channel)), operands=wanted)
