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
from collections.abc import Iterable, Mapping

from torch.fx import Node

from tome_fx.finding.contractions import contraction_anchors
from tome_fx.finding.cores import (
    Anchor,
    anchors,
    is_inside_places,
    token_atoms,
)
from tome_fx.finding.diagonals import told_by_diagonals
from tome_fx.finding.infer import infer
from tome_fx.finding.inner import inner_runs
from tome_fx.finding.looking import AllTypes, Anchors, Look, Seen
from tome_fx.finding.named_frames import names_of_frames
from tome_fx.finding.telling import uneven_masks
from tome_fx.finding.weighed import weighed_for_sums
from tome_fx.finding.windows import is_stretch, windows_of
from tome_fx.graph.axes import Axis, extent
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.cones import cones_of
from tome_fx.program import Findings, Program
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
    plain: AllTypes = infer(program, (), {}, rules)
    found = anchors(program.graph, program.extents)
    found += contraction_anchors(program.graph, plain, program.extents)
    rules, plain, mixing = _apart(program, rules, plain, found)
    look = Look(program, rules, protect, plain, found, mixing)
    seen = _seen(look)
    if not seen.sites and not all(miss.harmless for miss in seen.misses):
        seen = look.inside(seen, _alone(_whole(inner_runs(program.graph, found, plain))))
    types, streams, sites = seen.types, seen.streams, seen.sites
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
        seen.misses,
        tokens,
        rules,
        seen.mixing,
        uneven,
        itself,
        names_of_frames(types) if any(stream.per for stream in streams) else {},
    )


_ITSELF = "its table tells each token from all others"
_WEIGHED = "its table weighs each token for a sum"


def _seen(look: Look) -> Seen:
    """What shows by attention over all tokens, or over those of windows that stay apart.

    Windows serve where they have more places to merge at: the tokens of all windows, as some of the
    blocks may have them in one row, are tokens of each window too.
    """
    runs = _token_runs(look.found, look.plain)
    seen = look.at(_alone(_whole(runs)))
    windows = windows_of(look.program.graph, look.found, look.plain)
    if not windows or _merge_as_windows(look, seen):
        return seen
    rest = [run for run in runs if not any(_within(row, run) for row in windows)]
    apart = look.at(_alone(_whole([*rest, *windows])) | windows)
    stay = all(stream.per for stream in apart.streams if stream.atoms in windows)
    return apart if stay and len(apart.sites) > len(seen.sites) else seen


def _merge_as_windows(look: Look, seen: Seen) -> bool:
    """Are windows tokens of attention elsewhere that merge while attention inside them goes on?

    What comes of the tokens in a window is that of a token then, and is averaged with it (TNT).
    """
    depends = cones_of(look.program.graph).depends
    for anchor in itertools.chain(*look.found):
        plain = look.plain.get(anchor.key)
        if not plain or not is_inside_places(plain[0], anchor.key_axis):
            continue
        beside = seen.types[anchor.key][0].ids
        own = [site.node for site in seen.sites if site.stream in beside]
        before = [site for site in own if not depends(site, anchor.node)]
        behind = [site for site in own if depends(site, anchor.node)]
        if any(depends(late, early) for late in behind for early in before):
            return True
    return False


def _alone(runs: Iterable[Axis]) -> dict[Axis, Axis]:
    """Runs whose plans are for images alone."""
    return dict.fromkeys(runs, ())


def _apart(
    program: Program, rules: Mapping[str, Rule], plain: AllTypes, found: Anchors
) -> tuple[Mapping[str, Rule], AllTypes, frozenset[Node]]:
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


def _shared(anchor: Anchor, types: AllTypes) -> tuple[int, int]:
    """How many rows of tokens are queries and keys of an attention, and how many different ones."""
    rows = list(token_atoms(anchor, types))
    return len(rows), len(set(rows))


def _rows(node: Node, types: AllTypes) -> int:
    """How many different rows of places do the operands of a call hold?"""
    return len(rows_of(types[n][0] for n in node.all_input_nodes if types.get(n)))


def _takes_apart(node: Node, plain: AllTypes) -> bool:
    if not calls(node, APART) or not plain.get(node):
        return False
    call = bind(node)
    return any(parts(call, type_, plain[node]) for type_ in plain.get(call["self"], ())[:1])


def _token_runs(found: Anchors, plain: AllTypes) -> list[Axis]:
    """Each run of factors that is both a query and a key axis of some core."""
    runs = dict.fromkeys(
        atoms
        for anchor in itertools.chain(*found)
        for atoms in token_atoms(anchor, plain)
        if extent(atoms) > 1
    )
    return list(runs)


def _whole(runs: list[Axis]) -> list[Axis]:
    """Without parts: of the rows of a grid that is also one row of tokens, the tokens are whole."""
    return [run for run in runs if not any(_within(run, other) for other in runs)]


def _within(run: Axis, other: Axis) -> bool:
    return len(run) < len(other) and is_stretch(run, other)


def _tokens(found: Anchors, plain: AllTypes) -> int:
    """Tokens that the first attention looks at, 0 without one."""
    every = itertools.chain(*found)
    keys = [(plain[anchor.key], anchor.key_axis) for anchor in every if plain.get(anchor.key)]
    return extent(keys[0][0][0].axes[keys[0][1]]) if keys else 0
