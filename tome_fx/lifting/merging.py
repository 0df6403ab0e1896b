"""The merges of a site: each stream that passes it goes one level deeper, all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import TensorType, holds, map_type
from tome_fx.graph.cuts import cut_of
from tome_fx.graph.ends import ends_of, place_of, tokens_of
from tome_fx.graph.frames import row_of
from tome_fx.lifting.alike import Merge, merge_alike
from tome_fx.lifting.joint import key_of
from tome_fx.lifting.lifter import Lifter, Value
from tome_fx.lifting.matching import Key, emit_scores
from tome_fx.lifting.padding import Shown, shown
from tome_fx.lifting.pairs import Place, emit_pairs
from tome_fx.own_matching import OwnMatching
from tome_fx.program import Core, Step

# What masks say of the tokens of a site, and how many of these never merge at the ends of a row.
_Masks = tuple[Shown, tuple[int, int]]


@dataclass
class Merging:
    """What merged so far.

    Attributes:
        depths: the level of a stream behind a site.
        tokens: on the token axis at each step, before its merge.
    """

    lifter: Lifter
    own: OwnMatching | None = None
    depths: dict[tuple[Node, int], int] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    told: dict[Node, tuple[Node, ...]] = field(default_factory=dict)

    def merge(self, steps: Sequence[Step]) -> None:
        """Match by the keys of a site's cores, and go one level deeper."""
        lifter, node = self.lifter, steps[0].site.node
        levels = {step.site.stream: self._level(step) for step in steps}
        now = self._deeper(lifter.values[node].types[0], levels)
        removing = [step for step in steps if step.removed]
        held = self._brought(node, now) if removing else node
        if removing:
            self._match(removing, levels, now, held)
        merged = now
        for step in steps:
            stream = step.site.stream
            self.tokens.append(tokens_of(merged, stream))
            if step.removed:
                levels[stream] = lifter.coercer.levels.depth(stream)
                merged = self._deeper(merged, {stream: levels[stream]})
            self.depths[node, stream] = levels[stream]
        if merged != now:
            lifter.before.setdefault(node, Value(held, (now,)))
            lifter.put(node, lifter.coercer.coerce(held, now, merged), (merged,))

    def _match(
        self, steps: Sequence[Step], levels: dict[int, int], now: TensorType, held: Node
    ) -> None:
        """New levels of streams at a site, ``held`` of type ``now``: alike ones at once."""
        coercer = self.lifter.coercer
        masks = [self._masks(step, levels) for step in steps]
        row = row_of(now, steps[0].site.stream) if len(steps) > 1 and not any(masks) else ()
        several = key_of(row) is not None and all(holds(row, step.site.stream) for step in steps)
        several = several and self.own is None
        merges = []
        for step in steps:
            keys = tuple(self._key(core, levels, several) for core in step.site.cores)
            stream = step.site.stream
            merges.append(Merge(stream, levels[stream], step.removed, keys))
        if several:
            merge_alike(coercer, merges, row)
            return
        for step, merge, mask in zip(steps, merges, masks, strict=True):
            if self.own is not None:
                masked = mask is not None and mask[0].visible is not None
                place = Place(step.site.cores[0].node, held, now, masked)
                plan = emit_pairs(coercer, self.own, merge, place)
            else:
                plan = self._plan(merge, now, mask)
            size = coercer.levels.size(merge.stream, merge.level)
            size = coercer.emit(ops.merged_size, plan, size, merge.keys[0].node)
            coercer.levels.add(merge.stream, plan, size, merge.removed, merge.level)

    def _key(self, core: Core, levels: dict[int, int], several: bool) -> Key:
        """The keys of a core; with ``several`` streams the row that they are a stretch of."""
        node = self._row_of(core.key) if several else None
        node = core.key if node is None else node
        wanted = self._deeper(self.lifter.values[node].types[0], levels)
        dtype = core.key.meta["val"].dtype
        return Key(self._brought(node, wanted), wanted, core.channel, dtype)

    def _row_of(self, node: Node) -> Node | None:
        """What keys are cut out of, where that differs from them in the axis of tokens alone."""
        values, cut = self.lifter.values, cut_of(node)
        if cut is None or cut.row not in values or not values[cut.row].types:
            return None
        have, own = values[cut.row].types[0], values[node].types[0]
        place = cut.dim
        others = [(*type_.axes[:place], *type_.axes[place + 1 :]) for type_ in (have, own)]
        return cut.row if others[0] == others[1] and key_of(have.axes[place]) is not None else None

    def _masks(self, step: Step, levels: dict[int, int]) -> _Masks | None:
        """What masks of images say of the keys of a site; None where there are none."""
        stream = step.site.stream
        told: list[tuple[Shown, tuple[int, int]]] = []
        for core in step.site.cores:
            keys = row_of(self._deeper(self.lifter.values[core.key].types[0], levels), stream)
            found = shown(self.lifter, core, keys, self.told)
            if found is not None:
                told.append((found, ends_of(keys, place_of(keys, stream))))
        return next((each for each in told if each[0].visible is not None), next(iter(told), None))

    def _plan(self, merge: Merge, now: TensorType, mask: _Masks | None) -> Node:
        """A plan that holds padding apart, where an attention of the site has a mask of images."""
        emit, removed = self.lifter.coercer.emit, merge.removed
        views = mask[0].views if mask else None
        scores, parity = emit_scores(self.lifter.coercer, merge.keys, now, merge.stream, views)
        if mask is None:
            return emit(ops.match, scores, removed, parity)
        told, ends = mask
        visible, kinds = told.visible, told.kinds
        if visible is None:
            scores = emit(ops.prefer_alike, scores, kinds, parity, *ends)
            return emit(ops.match, scores, removed, parity)
        alike = tuple(each for each in (kinds, told.pairs) if each is not None)
        scores = emit(ops.keep_apart, scores, visible, parity, *ends, *alike)
        plan = emit(ops.match, scores, removed, parity)
        return emit(ops.padding_last, plan, visible, *ends)

    def _level(self, step: Step) -> int:
        """The level that a site merges from: of the site before it, or where its own value stands.

        The latter where tokens that an op told apart are not averaged again: their groups are over.
        """
        stream = step.site.stream
        if self.lifter.remerge == "mean" and stream not in self.lifter.parted:
            after = step.site.after
            return self.depths[after, stream] if after is not None else 0
        own = self.lifter.values[step.site.node].types[0]
        return next(s.level for s in own.streams if s.id == stream)

    def _deeper(self, type_: TensorType, levels: Mapping[int, int]) -> TensorType:
        """A type with some streams at other levels."""
        at = self.lifter.coercer.levels.at
        return map_type(type_, lambda s: at(s, levels[s.id]) if s.id in levels else s)

    def _brought(self, node: Node, type_: TensorType) -> Node:
        value = self.lifter.values[node]
        return self.lifter.coercer.coerce(value.node, value.types[0], type_)
