"""A matching of the user at a site: what it asks for, its call, and the plan of what it answers.

    metric = head_mean(k, 1, 0)
    pairs = matching_mine(metric=metric, r=16, size=size)
    plan = plan_of_pairs(pairs, metric, 196, 16, "mine at blocks.0.attn")

Masks of padding are for the built-in matching alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from torch.fx import Node

from tome_fx import ops
from tome_fx.errors import MatchingError
from tome_fx.graph.axes import TensorType
from tome_fx.graph.ends import channels_of
from tome_fx.graph.provenance import module_path
from tome_fx.lifting.alike import Merge
from tome_fx.lifting.coerce import Coercer
from tome_fx.lifting.matching import Key, by_head
from tome_fx.own_matching import ASKED, OwnMatching


@dataclass(frozen=True)
class Place:
    """Where tokens are about to merge: the attention, the value of the site and its type."""

    attention: Node
    value: Node
    type: TensorType
    masked: bool


def emit_pairs(coercer: Coercer, own: OwnMatching, merge: Merge, place: Place) -> Node:
    """The plan of a merge, by a function of the user.

    Raises:
        MatchingError: masks tell the tokens of the site apart, or there is not what it asks for.
    """
    asking = _Asking(coercer, own, merge, place)
    if place.masked:
        asking.refuse(
            "it has a mask of padding, or of several images in a row, and only the built-in "
            "matching keeps apart what such a mask does"
        )
    given = {name: _GIVEN[name](asking) for name in own.asks}
    like = next(value for value in given.values() if isinstance(value, Node))
    tokens = next(s.count for s in place.type.streams if s.id == merge.stream)
    where = f"{own.told} at {asking.where}"
    pairs = coercer.emit(own, **given)
    return coercer.emit(ops.plan_of_pairs, pairs, like, tokens, merge.removed, where)


class _Asking:
    """What a function can ask for at one site, each a node that is made where it is asked for."""

    def __init__(self, coercer: Coercer, own: OwnMatching, merge: Merge, place: Place) -> None:
        self.coercer, self.own, self.merge, self.place = coercer, own, merge, place
        self.where = module_path(place.attention) or "an attention of the model"

    def refuse(self, reason: str) -> NoReturn:
        raise MatchingError(
            f"matching: {self.own.told} cannot be asked at {self.where}: {reason}. Leave that "
            "layer out, by a list for r with 0 there, or leave out matching."
        )

    def metric(self) -> Node:
        found = [self.emit(ops.head_mean, key) for key in self.merge.keys]
        return found[0] if len(found) == 1 else self.coercer.emit(ops.joined, found)

    def r(self) -> int:
        return self.merge.removed

    def keys(self) -> Node:
        if len(self.merge.keys) > 1:
            self.refuse("several attentions stand side by side there, each with keys of its own")
        return self.emit(ops.by_head, self.merge.keys[0])

    def x(self) -> Node:
        type_, like = self.place.type, self.merge.keys[0]
        return self.emit(ops.features, Key(self.place.value, type_, channels_of(type_), like.dtype))

    def size(self) -> Node:
        size = self.coercer.levels.size(self.merge.stream, self.merge.level)
        return self.coercer.emit(ops.single, self.metric()) if size is None else size

    def position(self) -> Node:
        stream, level = self.merge.stream, self.merge.level
        if level:
            return self.coercer.levels.origin(stream, level)
        tokens = next(s.extent for s in self.place.type.streams if s.id == stream)
        return self.coercer.emit(ops.identity, self.metric(), tokens)

    def emit(self, op: Callable[..., Any], key: Key) -> Node:
        """``op`` on ``[B, H, N, C]`` and the protected tokens at its ends."""
        standard, ends, _ = by_head(self.coercer, key, self.merge.stream)
        return self.coercer.emit(op, standard, *ends)


_GIVEN: Mapping[str, Callable[[_Asking], Any]] = MappingProxyType(
    {name: getattr(_Asking, name) for name in ASKED}
)
