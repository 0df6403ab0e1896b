"""Ask the rule for a call, and see whether its answer can stand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from tome_fx.errors import ConfigError
from tome_fx.graph.axes import (
    Axis,
    TensorType,
    extent,
    has_batch,
    has_stream,
    is_merged_axis,
    streams_of_axis,
)
from tome_fx.graph.frames import frames_of, keeps_frames
from tome_fx.graph.grids import is_whole
from tome_fx.graph.unify import is_written_out
from tome_fx.rules.base import Context, Lifted, Refusal, Rule
from tome_fx.rules.table import rule_for


def ask(context: Context, rules: Mapping[str, Rule]) -> Lifted | Refusal:
    """Ask the rule for a call; a refusal also where there is none or the outputs do not fit."""
    rule = rule_for(context.call, rules)
    if rule is None:
        return Refusal(f"no rule for {context.call.name}")
    if not context.types and context.call.get("size") is None:
        return Refusal("it has no tensor operand")
    answer = rule(context)
    if isinstance(answer, Refusal):
        return answer
    if not isinstance(answer, Lifted):
        raise ConfigError(
            f"The rule for {context.call.name} returned {answer!r}: a rule returns a Lifted or a "
            "Refusal (docs/rules.md)."
        )
    ranks = [type_.rank for type_ in answer.results]
    if ranks != [len(shape) for shape in context.shapes]:
        return Refusal(f"the rule for {context.call.name} does not know all its outputs")
    logits = any(map(_is_of_pairs, [*answer.results, *answer.operands.values()]))
    brought = ((context.types[path], wanted, logits) for path, wanted in answer.operands.items())
    if any(itertools.starmap(_is_over_folded, brought)):
        return Refusal("a table is over its tokens and what they share an axis with")
    lost = (_lost(result, context.one_image) for result in answer.results)
    return next(filter(None, lost), answer)


def _is_of_pairs(type_: TensorType) -> bool:
    """Is it of pairs of tokens, or about each token alone with no features behind?"""
    places = [i for i, axis in enumerate(type_.axes) if has_stream(axis)]
    return len(places) > 1 or places == [type_.rank - 1]


def _is_over_folded(have: TensorType, wanted: TensorType, logits: bool) -> bool:
    """Would a table of logits be merged along tokens that share their axis, as of all frames?

    It may hide a place in one frame alone, and a group has the same places in each, unless frames
    have groups of their own. Of a table of features each frame has the row of its representative;
    images are no such frames.
    """
    if frames_of(wanted):
        return False
    pairs = zip(reversed(have.axes), reversed(wanted.axes), strict=False)
    return any(
        len(target) > 1
        and (logits or has_batch(target))
        and is_merged_axis(target)
        and extent(axis) != 1
        and not has_stream(axis)
        and not is_written_out(axis, target)
        for axis, target in pairs
    )


def _lost(result: TensorType, one_image: bool) -> Refusal | None:
    """Why a result cannot hold its streams: tokens belong to images, and stand on an axis once."""
    if any(map(is_twice, result.axes)):
        return Refusal("it folds tokens with themselves")
    if not is_whole(result):
        return Refusal("it takes rows or columns of the tokens apart")
    if not keeps_frames(result):
        return Refusal("it takes frames apart or compares them, and each has groups of its own")
    images = sum(map(has_batch, result.axes))
    if images != 1 and not (one_image and not images) and any(map(has_stream, result.axes)):
        return Refusal("it takes some of the images" if not images else "it compares images")
    return None


def is_twice(axis: Axis) -> bool:
    """Do two factors hold the same stream? Side by side in one concatenation it may be twice."""
    ids = [stream for factor in axis for stream in {s.id for s in streams_of_axis((factor,))}]
    return len(ids) != len(set(ids))
