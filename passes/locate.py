"""Locate: read the program's types and say where attention is and where a merge can go.

    q, k, v = ...                          core: the attention, over the tokens of one stream
    y = scaled_dot_product_attention(q, k, v)
    x1 = x + proj(y)                       site: the first add of something behind the core and
    x2 = x1 + mlp(norm(x1))                      something before its queries

Nothing is matched by name or by shape. A core is an anchor (fused attention, or a softmax) whose
query and key axes have the same history; the history, not the size, makes an axis a token axis.
Only where no site is found so, the adds around attention inside windows or frames serve.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from tome_fx.finding.contractions import contraction_anchors
from tome_fx.finding.cores import (
    CAUSAL,
    Anchor,
    anchors,
    cores_of,
    opaque_misses,
    token_atoms,
)
from tome_fx.finding.diagonals import told_by_diagonals
from tome_fx.finding.frames import with_frames
from tome_fx.finding.infer import Types, infer
from tome_fx.finding.inner import by_features, inner_cores, inner_runs
from tome_fx.finding.named_frames import names_of_frames
from tome_fx.finding.order import before_order, is_causal
from tome_fx.finding.protect import Read, protected_positions, reads_by_index
from tome_fx.finding.sites import Found, find_sites
from tome_fx.finding.telling import uneven_masks
from tome_fx.finding.weighed import weighed_for_sums
from tome_fx.graph.axes import Atom, Axis, extent
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.extents import tensor_value
from tome_fx.program import Core, Findings, Miss, Program, StreamDef
from tome_fx.rules.base import Rule
from tome_fx.rules.table import APART
from tome_fx.rules.views import parts, rows_of


def locate(
    program: Program, rules: Mapping[str, Rule], protect: tuple[int, int] | None = None
) -> Findings:
    """Find streams, cores, sites, MLPs and protected tokens in ``program``.

    Args:
        protect: how many tokens to protect at the front and back of every stream, in place of
            those that the program reads by index.
    """
    plain: _AllTypes = infer(program, (), {}, rules)
    found = anchors(program.graph, program.extents)
    found += contraction_anchors(program.graph, plain, program.extents)
    rules, plain, mixing = _apart(program, rules, plain, found)
    types, streams = _typed(program, rules, protect, plain, _token_runs(found, plain))
    proved, misses = _proved(found, types, _words(streams, program))
    cores, causal = _by_order(proved, program)
    misses += [Miss(core.node, "attention", CAUSAL) for core in causal]
    misses += opaque_misses(program.graph)
    every = [anchor.node for anchor in itertools.chain(*found)]

    def place(types: _AllTypes, views: bool = False) -> Found:
        return find_sites(program.graph, cores, types, every, mixing, views)

    refusing = _Refusing(program, plain, rules)
    views = place(types, views=True).sites
    types, streams = with_frames(streams, types, plain, views, refusing)
    placed = place(types)
    sites, too_early = before_order(placed.sites, causal, program)
    misses += [*placed.misses, *too_early]
    mixing = placed.mixing
    if not sites and not all(miss.harmless for miss in misses):
        runs = _whole(inner_runs(program.graph, found, plain))
        inside = _typed(program, rules, protect, plain, runs)
        known = {core.node for core in causal}
        every_core = inner_cores(program.graph, found, inside[0])
        cores, causal = _by_order(every_core, program, known)
        placed = find_sites(program.graph, cores, inside[0], every)
        inner, _ = before_order(placed.sites, causal, program)
        ordered = {core.node for core in causal}
        misses = [replace(m, reason=CAUSAL) if m.node in ordered else m for m in misses]
        if inner:
            types, streams = inside
            sites = tuple(by_features(site, types) for site in inner)
            served = {core.node for site in inner for core in site.cores}
            misses = [miss for miss in misses if miss.node not in served]
    tokens = _tokens(found, plain)
    used = (core for site in sites for core in site.cores)
    uneven = frozenset(node for core in used for node in uneven_masks(core, types, program))
    itself: dict[Node, str] = {}
    if sites:
        itself |= dict.fromkeys(weighed_for_sums(program, types, streams), _WEIGHED)
        itself |= dict.fromkeys(told_by_diagonals(program, types), _ITSELF)
    return Findings(
        types,
        plain,
        streams,
        sites,
        tuple(misses),
        tokens,
        rules,
        mixing,
        uneven,
        itself,
        names_of_frames(types) if any(stream.per for stream in streams) else {},
    )


_ITSELF = "its table tells each token from all others"
_WEIGHED = "its table weighs each token for a sum"
_WORDS = "what is looked up in a table, as words are, stays whole beside the tokens of an image"
_Anchors = list[tuple[Anchor, ...]]
_AllTypes = Mapping[Node, Types]


def _apart(
    program: Program, rules: Mapping[str, Rule], plain: _AllTypes, found: _Anchors
) -> tuple[Mapping[str, Rule], _AllTypes, frozenset[Node]]:
    """Rules and plain types, with tokens of its own for each image or frame that is taken apart.

    Only where one attends to another: else frames are branches of one stream, which stay merged
    where they part. Then also the calls where frames meet all the same.
    """
    nodes = program.graph.nodes
    if not any(_takes_apart(node, plain) for node in nodes):
        return rules, plain, frozenset()
    own = {**APART, **rules}
    apart = infer(program, (), {}, own)
    every = list(itertools.chain(*found))
    if any(_shared(anchor, plain) != _shared(anchor, apart) for anchor in every):
        return own, apart, frozenset()
    return rules, plain, frozenset(n for n in nodes if _rows(n, apart) > _rows(n, plain))


def _shared(anchor: Anchor, types: _AllTypes) -> tuple[int, int]:
    """How many rows of tokens are queries and keys of an attention, and how many different ones."""
    rows = list(token_atoms(anchor, types))
    return len(rows), len(set(rows))


def _rows(node: Node, types: _AllTypes) -> int:
    """How many different rows of places do the operands of a call hold?"""
    return len(rows_of(types[n][0] for n in node.all_input_nodes if types.get(n)))


def _takes_apart(node: Node, plain: _AllTypes) -> bool:
    if not calls(node, APART) or not plain.get(node):
        return False
    call = bind(node)
    return any(parts(call, type_, plain[node]) for type_ in plain.get(call["self"], ())[:1])


def _typed(
    program: Program,
    rules: Mapping[str, Rule],
    protect: tuple[int, int] | None,
    plain: _AllTypes,
    runs: Iterable[Axis],
) -> tuple[_AllTypes, tuple[StreamDef, ...]]:
    """Types with each run of factors named a stream, and the streams with their protected ends."""
    streams = tuple(StreamDef(index, atoms) for index, atoms in enumerate(runs))
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
    plain: _AllTypes
    rules: Mapping[str, Rule]

    def __call__(self, streams: tuple[StreamDef, ...]) -> tuple[_AllTypes, dict[Node, str]]:
        refused: dict[Node, str] = {}
        return infer(self.program, streams, self.plain, self.rules, refused), refused


def _proved(
    found: _Anchors, types: _AllTypes, words: frozenset[int]
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


def _token_runs(found: _Anchors, plain: _AllTypes) -> list[Axis]:
    """Each run of factors that is both a query and a key axis of some core."""
    runs = dict.fromkeys(
        atoms
        for anchor in itertools.chain(*found)
        for atoms in token_atoms(anchor, plain)
        if extent(atoms) > 1
    )
    return _whole(list(runs))


def _whole(runs: list[Axis]) -> list[Axis]:
    """Without parts: of the rows of a grid that is also one row of tokens, the tokens are whole."""
    return [run for run in runs if not any(_within(run, other) for other in runs)]


def _within(run: Axis, other: Axis) -> bool:
    width = len(run)
    places = range(len(other) - width + 1) if width < len(other) else ()
    return any(other[start : start + width] == run for start in places)


def _tokens(found: _Anchors, plain: _AllTypes) -> int:
    """Tokens that the first attention looks at, 0 without one."""
    every = itertools.chain(*found)
    keys = [(plain[anchor.key], anchor.key_axis) for anchor in every if plain.get(anchor.key)]
    return extent(keys[0][0][0].axes[keys[0][1]]) if keys else 0


def _is_part(node: Node, found: _Anchors, cores: list[Core]) -> bool:
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
