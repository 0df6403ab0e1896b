"""Frames of a sample that need not merge at the same places: views, crops, frames looked at apart.

    x = clip.flatten(0, 1)           [B*F, C, h, w]      each frame by itself
    x = x.view(B, F * N, C)          [B, F*N, C]         or all in one row, attending to each other
    x = x.view(B * N, F, C)          [B*N, F, C]         along time, place by place: as one

The last needs the same places in all frames; without it each frame has groups of its own, as if it
were an image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch.fx import Node

from tome_fx.finding.infer import Types
from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Concat,
    Factor,
    Frames,
    Stream,
    TensorType,
    extent,
    has_stream,
)
from tome_fx.graph.calls import calls
from tome_fx.graph.cones import cones_of
from tome_fx.graph.ends import channels_of
from tome_fx.graph.frames import FRAMES, frames_of, is_of, per_of, with_images
from tome_fx.graph.softmaxes import SOFTMAXES
from tome_fx.graph.unify import segments
from tome_fx.program import Findings, Site, StreamDef

_Types = Mapping[Node, Types]
# Types with other streams, and the calls that no rule answers for there, with the reason.
_Typed = Callable[[tuple[StreamDef, ...]], tuple[_Types, Mapping[Node, str]]]

_ATTENDING = ("aten.scaled_dot_product_attention", *SOFTMAXES, "aten.matmul", "aten.bmm",
              "aten.baddbmm", "aten.einsum")  # fmt: skip


def with_frames(
    streams: tuple[StreamDef, ...],
    types: _Types,
    plain: _Types,
    sites: Sequence[Site],
    typed: _Typed,
) -> tuple[_Types, tuple[StreamDef, ...]]:
    """Types and streams with frames that have groups of their own, where nothing needs them alike.

    What leads to a site must have its tokens there all the same, and so must all attention and
    what comes back to the tokens. What mixes frames place by place, as attention along time and
    convolutions over it do, has them merge at the same places.

    Args:
        types, plain: of the program, with ``streams`` and without any.
    """
    leading = _before(site.node for site in sites)
    found = {s.id: s.per or _per(s, streams, sites, leading, types) for s in streams}
    if not any(found.values()):
        return types, streams
    frames = set(itertools.chain.from_iterable(found.values()))
    own = tuple(replace(stream, per=found[stream.id]) for stream in streams)
    bare = tuple(replace(stream, per=()) for stream in streams)
    (apart, refused), (alike, before) = typed(own), typed(bare)
    # Before the first attention all tokens are there, however they are held.
    cones = cones_of(next(iter(plain)).graph)
    starts = {node for site in sites for core in site.cores for node in (core.query, core.key)}
    # Frames may be tokens elsewhere, of a summary of each that attend to each other.
    counted = [stream for stream in streams if frames.issuperset(stream.atoms)]
    same = all(
        _outlines(alike[node], counted) == _outlines(apart[node], counted)
        for node in leading
        if any(cones.depends(node, start) for start in starts)
    ) and all(site.stream in apart[site.node][0].ids for site in sites)
    mixing = {node for node, reason in refused.items() if before.get(node) != reason}
    mixing |= {node for node in apart if _loses_frames(node, apart, plain)}
    merged = [site.node for site in sites]
    mixing = {node for node in mixing if any(cones.depends(node, site) for site in merged)}
    if not same or any(_is_in_the_way(n, streams, sites, leading, apart) for n in mixing):
        return alike, bare
    return (alike, bare) if mixing and _come_back(mixing, apart) else (apart, own)


def _is_in_the_way(
    node: Node,
    streams: Sequence[StreamDef],
    sites: Sequence[Site],
    leading: set[Node],
    apart: _Types,
) -> bool:
    """Does a call that mixes frames need the same places of all of them to have merged?

    Frames of the input may merge alike in its place. Windows may not, and what takes them together
    gets all tokens back, as long as it does not lead to another merge of the same tokens.
    """
    mixed = {s.id for n in node.all_input_nodes for t in apart.get(n, ()) for s in t.streams}
    windows = {stream.id for stream in streams if stream.per}
    if not mixed <= windows:
        return calls(node, _ATTENDING) or node in leading
    return node in _before(site.node for site in sites if site.stream in mixed)


def _come_back(mixing: Iterable[Node], apart: _Types) -> bool:
    """Does anything that is made of frames together meet tokens of each of them again?"""
    nodes = list(apart)
    cones = cones_of(nodes[0].graph)
    framed = {node for node in nodes if any(map(frames_of, apart[node]))}
    for user, node in itertools.product(nodes, mixing):
        if user is not node and cones.depends(user, node):
            beside = framed.intersection(user.all_input_nodes)
            if not all(cones.depends(own, node) for own in beside):
                return True
    return False


def _loses_frames(node: Node, apart: _Types, plain: _Types) -> bool:
    """Has a call as many values as before, but no longer the frames of its tokens?

    It is one without a rule for tokens then, and may have mixed the frames: all tokens come back.
    """
    held = [n for n in node.all_input_nodes if any(map(frames_of, apart.get(n, ())))]
    if not held or any(map(frames_of, apart[node])):
        return False
    left = {f for type_ in plain[node] for axis in type_.axes for f in _every(axis)}
    size = max((_size(type_) for type_ in plain[node]), default=0)
    return any(
        size >= _size(plain[n][0])
        and any(Atom(f.extent, f.origin) not in left for f in frames_of(apart[n][0]))
        for n in held
    )


def _every(axis: Axis) -> Iterator[Factor]:
    """The factors of an axis, and those of the pieces of its concatenations."""
    for factor in axis:
        yield factor
        for part in factor.parts if isinstance(factor, Concat) else ():
            yield from _every(part)


def _size(type_: TensorType) -> int:
    return math.prod(map(extent, type_.axes))


def _before(sites: Iterable[Node]) -> set[Node]:
    """The nodes that sites are made of, and these."""
    waiting, found = list(sites), set[Node]()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _per(
    stream: StreamDef,
    streams: Sequence[StreamDef],
    sites: Iterable[Site],
    leading: set[Node],
    types: _Types,
) -> Axis:
    """The images, and the frames that stand beside the tokens of a stream where it merges.

    Empty where no frames do. What a site adds may be written frame by frame, in pieces: an atom as
    long says which they are.
    """
    others = _others(streams, stream.id)
    held = [
        _spelled(type_, others)
        for node in leading
        for type_ in types[node]
        if stream.id in type_.ids
    ]
    given = [f for t in held for axis in t.axes for f in axis if _may_be_frames(f)]
    found: dict[Factor, None] = {}
    for site in (site for site in sites if site.stream == stream.id):
        for factor in _around(_spelled(types[site.node][0], others)):
            if isinstance(factor, Concat):
                same = [atom for atom in given if atom.extent == factor.extent]
                found.update(dict.fromkeys(same[:1]))
            else:
                found[factor] = None
    if not any(map(_may_be_frames, found)):
        return ()
    return with_images(tuple(found))


def _around(type_: TensorType) -> Iterator[Factor]:
    """What stands beside tokens and channels: images, frames, frames written one by one."""
    channels = channels_of(type_)
    for factor in (f for i, axis in enumerate(type_.axes) if i != channels for f in axis):
        written = isinstance(factor, Concat) and not has_stream((factor,))
        if written or isinstance(factor, Batch) or _may_be_frames(factor):
            yield factor


def frame_notes(findings: Findings) -> Iterator[str]:
    """How the frames of each stream merge, one line for all that merge alike."""
    told = []
    for site in findings.sites:
        others = _others(findings.streams, site.stream)
        type_ = _spelled(findings.types[site.node][0], others)
        beside = [factor for factor in _around(type_) if not isinstance(factor, Batch)]
        windows = any(is_of(factor, ("conv",)) for factor in beside)
        told.append((math.prod(f.extent for f in beside), bool(per_of(type_)), windows))
    for frames, apart, windows in dict.fromkeys(told):
        if frames > 1 and apart:
            named = "windows" if windows else "frames (views, tiles)"
            yield f"each of the {frames} {named} of a sample merges its own tokens"
        elif frames > 1:
            yield (
                f"the same places of all {frames} frames of a sample merge: they are not looked at "
                "one by one"
            )


def _others(streams: Iterable[StreamDef], own: int) -> list[StreamDef]:
    """The streams but for one that may be frames: of a summary of each, which attend elsewhere."""
    return [s for s in streams if s.id != own and all(map(_may_be_frames, s.atoms))]


def _spelled(type_: TensorType, streams: Iterable[StreamDef]) -> TensorType:
    """A type with some streams of the input called by their atoms."""
    atoms = {stream.id: stream.atoms for stream in streams if not stream.front + stream.back}

    def spelled(factor: Factor) -> Axis:
        return atoms.get(factor.id, (factor,)) if isinstance(factor, Stream) else (factor,)

    axes = (tuple(itertools.chain.from_iterable(map(spelled, axis))) for axis in type_.axes)
    return TensorType(tuple(axes))


def _may_be_frames(factor: Factor) -> bool:
    return isinstance(factor, Frames) or is_of(factor, FRAMES)


def _outlines(types: Types, counted: Sequence[StreamDef]) -> list[list[object]]:
    """Types but for frames and the names of plain axes."""
    return [[segments(axis) for axis in _spelled(type_, counted).axes] for type_ in types]
