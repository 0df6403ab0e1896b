"""A look at a program with some rows of tokens named: the attention and the sites that show."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch.fx import Node

from tome_fx.finding.cores import CAUSAL, Anchor, cores_of, opaque_misses
from tome_fx.finding.frames import with_frames
from tome_fx.finding.infer import Types, infer
from tome_fx.finding.inner import by_features, inner_cores
from tome_fx.finding.order import before_order, is_causal
from tome_fx.finding.protect import Read, protected_positions, reads_by_index
from tome_fx.finding.sites import find_sites
from tome_fx.graph.axes import Atom, Axis, extent
from tome_fx.graph.extents import tensor_value
from tome_fx.program import Core, Miss, Program, Site, StreamDef
from tome_fx.rules.base import Rule

_WORDS = "what is looked up in a table, as words are, stays whole beside the tokens of an image"
Anchors = list[tuple[Anchor, ...]]
AllTypes = Mapping[Node, Types]


@dataclass(frozen=True)
class Seen:
    """What shows in a program whose ``streams`` are named.

    Attributes:
        causal: the cores that are causal, which are no place to merge.
        mixing: calls on tokens of several frames or images that are branches of one stream.
    """

    types: AllTypes
    streams: tuple[StreamDef, ...]
    sites: tuple[Site, ...]
    misses: tuple[Miss, ...]
    causal: tuple[Core, ...]
    mixing: frozenset[Node]


@dataclass(frozen=True)
class Look:
    """A program with its plain types, and the anchors that were found in it.

    Attributes:
        protect: how many tokens to protect at both ends; None for those that are read by index.
        mixing: such calls that are known before; attention between images is added to them.
    """

    program: Program
    rules: Mapping[str, Rule]
    protect: tuple[int, int] | None
    plain: AllTypes
    found: Anchors
    mixing: frozenset[Node]

    def at(self, runs: Mapping[Axis, Axis]) -> Seen:
        """What shows with each of ``runs`` a stream.

        Args:
            runs: the factors of each, and what its plans are for; () for images alone.
        """
        program = self.program
        types, streams = _typed(program, self.rules, self.protect, self.plain, runs)
        proved, misses = _proved(self.found, types, _words(streams, program))
        cores, causal = _by_order(proved, program)
        misses += [Miss(core.node, "attention", CAUSAL) for core in causal]
        misses += opaque_misses(program.graph)
        every, mixing = self._every, self.mixing
        placed = find_sites(program.graph, cores, types, every, mixing, views=True)
        refusing = _Refusing(program, self.plain, self.rules)
        apart, streams = with_frames(streams, types, self.plain, placed.sites, refusing)
        if apart is not types or placed.shared:
            placed = find_sites(program.graph, cores, apart, every, mixing)
        sites, too_early = before_order(placed.sites, causal, program)
        misses += [*placed.misses, *too_early]
        return Seen(apart, streams, sites, tuple(misses), tuple(causal), placed.mixing)

    def inside(self, seen: Seen, runs: Mapping[Axis, Axis]) -> Seen:
        """What shows around attention inside windows, where ``seen`` is nothing."""
        program = self.program
        types, streams = _typed(program, self.rules, self.protect, self.plain, runs)
        known = {core.node for core in seen.causal}
        every_core = inner_cores(program.graph, self.found, types)
        cores, causal = _by_order(every_core, program, known)
        placed = find_sites(program.graph, cores, types, self._every)
        inner, _ = before_order(placed.sites, causal, program)
        ordered = {core.node for core in causal}
        misses = [replace(m, reason=CAUSAL) if m.node in ordered else m for m in seen.misses]
        if not inner:
            return replace(seen, misses=tuple(misses))
        sites = tuple(by_features(site, types) for site in inner)
        served = {core.node for site in inner for core in site.cores}
        left = tuple(miss for miss in misses if miss.node not in served)
        return replace(seen, types=types, streams=streams, sites=sites, misses=left)

    @cached_property
    def _every(self) -> list[Node]:
        return [anchor.node for anchor in itertools.chain(*self.found)]


def _typed(
    program: Program,
    rules: Mapping[str, Rule],
    protect: tuple[int, int] | None,
    plain: AllTypes,
    runs: Mapping[Axis, Axis],
) -> tuple[AllTypes, tuple[StreamDef, ...]]:
    """Types with each run of factors named a stream, and the streams with their protected ends."""
    streams = tuple(StreamDef(i, run, per=per) for i, (run, per) in enumerate(runs.items()))
    types = infer(program, streams, plain, rules)
    reads = () if protect is not None else tuple(reads_by_index(types, program))
    guarded = tuple(_protect(stream, reads, protect) for stream in streams)
    if guarded != streams:
        types = infer(program, guarded, plain, rules)
    return types, guarded


@dataclass(frozen=True)
class _Refusing:
    """Types with other streams, and the calls that no rule answers for there, with the reason."""

    program: Program
    plain: AllTypes
    rules: Mapping[str, Rule]

    def __call__(self, streams: tuple[StreamDef, ...]) -> tuple[AllTypes, dict[Node, str]]:
        refused: dict[Node, str] = {}
        return infer(self.program, streams, self.plain, self.rules, refused), refused


def _proved(
    found: Anchors, types: AllTypes, words: frozenset[int]
) -> tuple[list[Core], list[Miss]]:
    """The cores that types prove, those of one anchor a softmax, and why the others are none.

    Streams of ``words`` stay whole where others stand beside them, or in other attention.
    """
    cores: list[Core] = []
    misses: list[Miss] = []
    for row in found:
        answers = [cores_of(anchor, types) for anchor in row]
        proved = next((answer for answer in answers if not isinstance(answer, Miss)), ())
        seen = tuple(core for core in proved if core.stream not in words) or proved
        cores.extend(seen)
        misses.extend(Miss(core.node, "attention", _WORDS) for core in proved if core not in seen)
        misses.extend(answer for answer in answers[:1] if not proved and isinstance(answer, Miss))
    if any(core.stream not in words for core in cores):  # a text has a tower of its own
        misses.extend(Miss(c.node, "attention", _WORDS) for c in cores if c.stream in words)
        cores = [core for core in cores if core.stream not in words]
    return cores, [miss for miss in misses if not _is_part(miss.node, found, cores)]


def _by_order(
    cores: Iterable[Core], program: Program, known: Collection[Node] = ()
) -> tuple[list[Core], list[Core]]:
    """The cores whose tokens have no order, and those that are causal or ``known`` to be."""
    free: list[Core] = []
    causal: list[Core] = []
    for core in cores:
        ordered = core.node in known or is_causal(core, program)
        (causal if ordered else free).append(core)
    return free, causal


def _words(streams: Iterable[StreamDef], program: Program) -> frozenset[int]:
    """The streams whose tokens are looked up by a number each, as words are."""
    numbers = {
        node.name
        for node in program.graph.nodes
        if node.op == "placeholder"
        and (value := tensor_value(node)) is not None
        and not value.is_floating_point()
    }
    return frozenset(
        stream.id
        for stream in streams
        if any(isinstance(atom, Atom) and atom.origin.node in numbers for atom in stream.atoms)
    )


def _is_part(node: Node, found: Anchors, cores: list[Core]) -> bool:
    """Is the softmax at ``node`` one over channels, a part of an attention that was found?"""
    keys = {core.key for core in cores if core.kind == "contraction"}
    return any(row[0].node is node and keys & {row[0].query, row[0].key} for row in found)


def _protect(
    stream: StreamDef, reads: Sequence[Read], protect: tuple[int, int] | None
) -> StreamDef:
    if protect is not None:
        whole = extent(stream.atoms)
        front = min(protect[0], whole)
        back = min(protect[1], whole - front)
        return replace(stream, front=front, back=back, reasons=("the protect option asks for it",))
    front, back, reasons = protected_positions(stream, reads)
    return replace(stream, front=front, back=back, reasons=reasons)
