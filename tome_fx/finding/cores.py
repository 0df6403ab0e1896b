"""Attention cores: anchors, and the proof by types that they mix tokens of one stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from tome_fx.finding.masks import masks_of, may_hide
from tome_fx.graph.axes import (
    Atom,
    Axis,
    Concat,
    Factor,
    Frames,
    Stream,
    TensorType,
    extent,
    has_batch,
    has_stream,
    pieces,
    streams_of_axis,
)
from tome_fx.graph.calls import Call, bind, tensor_operands
from tome_fx.graph.extents import Extents
from tome_fx.graph.flex import is_flex
from tome_fx.graph.regroup import axis_kind
from tome_fx.graph.softmaxes import SOFTMAXES
from tome_fx.graph.upstream import operands_along
from tome_fx.program import Core, Miss
from tome_fx.rules.contract import Letters, distance_letters, einsum_letters, matmul_letters

PRODUCTS = ("aten.matmul", "aten.bmm", "aten.mm", "aten.baddbmm", "aten.einsum", "aten.cdist")
# A history that makes an axis a row of places in an image, a clip or a sequence.
_PLACES = ("input", "conv")
# A row of such or unknown factors may be tokens if it is a product; these never are.
_NEVER = ("channel", "constant", "literal")
CAUSAL = "it is causal: a merged token has no place in the order"


@dataclass(frozen=True)
class Anchor:
    """A softmax, fused attention or other weights with the product that makes its logits.

    ``query_axis`` and ``key_axis`` index the axes of ``query`` and ``key`` that become rows and
    columns of the logits, ``channel`` the contracted axis of ``key``.
    """

    node: Node
    kind: str
    query: Node
    key: Node
    query_axis: int
    key_axis: int
    channel: int


def anchors(graph: Graph, extents: Extents) -> list[tuple[Anchor, ...]]:
    """Every fused attention, and every softmax over the columns of a product.

    A softmax may stand behind several products (talking heads mix the logits by one more); each is
    an anchor, the nearest first, and at most one of them is proved by its types.
    """
    found: list[tuple[Anchor, ...]] = []
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        call = bind(node)
        if call.name == "aten.scaled_dot_product_attention":
            query, key = call["query"], call["key"]
            found.append((Anchor(node, "sdpa", query, key, -2, -2, -1),))
        elif call.name in SOFTMAXES:
            row = tuple(_softmax_anchors(call, extents))
            if row:
                found.append(row)
    return found


def _softmax_anchors(call: Call, extents: Extents) -> list[Anchor]:
    """Walk from a softmax up to the products that make its logits, with the axis it runs over."""
    start = call["self"]
    dim = call["dim"] % max(1, start.meta["val"].dim())
    return anchors_above(call.node, "softmax", start, dim, extents)


def anchors_above(node: Node, kind: str, start: Node, dim: int, extents: Extents) -> list[Anchor]:
    """The products that make what stands on axis ``dim`` of ``start``, as anchors at ``node``.

    None for weights that a softmax has a part in: it has anchors of its own.
    """
    waiting, seen = [(start, range(dim, dim + 1))], set()
    found: list[Anchor] = []
    while waiting:
        here, stretch = waiting.pop(0)
        if here in seen or not isinstance(here.target, torch._ops.OpOverload):
            continue
        seen.add(here)
        inner = bind(here)
        if inner.name in PRODUCTS:
            letters = letters_of(inner)
            if letters is None or len(stretch) != 1:
                continue
            found.extend(_product_anchors((node, kind), inner, letters, stretch.start))
            waiting.extend(_through_product(inner, letters, stretch.start))
        elif kind != "softmax" and inner.name in SOFTMAXES:
            return []
        else:
            waiting.extend(operands_along(inner, stretch, extents))
    return found


def letters_of(product: Call) -> Letters | None:
    """The letters of a product's operands and result."""
    operands = [node for _, node in tensor_operands(product)][-2:]
    ranks = [node.meta["val"].dim() for node in operands]
    if product.name == "aten.einsum":
        return einsum_letters(product["equation"], ranks)
    return (distance_letters if product.name == "aten.cdist" else matmul_letters)(*ranks)


def _through_product(product: Call, letters: Letters, dim: int) -> Iterator[tuple[Node, range]]:
    """The operand that holds both rows and columns of the logits, if one does: heads are mixed."""
    operands = [node for _, node in tensor_operands(product)][-2:]
    column = letters.result[dim]
    for node, own, other in zip(operands, letters[:2], (letters.right, letters.left), strict=True):
        alone = [c for c in own if c in letters.result and c not in other]
        if column in alone and len(alone) > 1:
            yield node, range(own.index(column), own.index(column) + 1)


def _product_anchors(
    at: tuple[Node, str], product: Call, letters: Letters, dim: int
) -> Iterator[Anchor]:
    """One for each axis that the queries alone have: heads too, where all share one row of keys."""
    query, key = [node for _, node in tensor_operands(product)][-2:]
    column = letters.result[dim]
    names, other = letters.left, letters.right
    if column in letters.left and column not in letters.right:
        query, key, names, other = key, query, other, names
    inner = [c for c in other if c in names and c not in letters.result]
    rows = [c for c in names if c in letters.result and c not in other]
    columns = [c for c in other if c in letters.result and c not in names]
    if len(inner) != 1 or column not in columns:
        return
    for row in reversed(rows):
        places = names.index(row), other.index(column), other.index(inner[0])
        yield Anchor(*at, query, key, *places)


def token_atoms(anchor: Anchor, plain: Mapping[Node, tuple[TensorType, ...]]) -> Iterator[Axis]:
    """The runs of plain factors that are tokens of both the query and the key of an anchor."""
    query, key = plain.get(anchor.query), plain.get(anchor.key)
    if not query or not key:
        return
    if is_inside_places(key[0], anchor.key_axis):
        return
    rows = list(runs(_each(query[0].axes[anchor.query_axis])))
    for run in runs(_each(key[0].axes[anchor.key_axis])):
        if run in rows and is_tokens(run):
            yield run


def is_inside_places(type_: TensorType, token_axis: int) -> bool:
    """Is the attention inside windows or rows: does another axis hold places too?

    Frames of a clip are none: an axis of the input that no convolution has touched. Within frames,
    tokens merge at the same places of all frames, so that frames stay comparable.
    """
    own = token_axis % type_.rank
    within = ("conv",) if axis_kind(type_.axes[own]) == "conv" else _PLACES
    return any(
        isinstance(factor, Atom) and factor.origin.kind in within
        for i, axis in enumerate(type_.axes)
        if i != own
        for factor in axis
    )


def _each(axis: Axis) -> Axis:
    """The row of pieces that each of several frames has on ``axis``; else the axis."""
    rows = [factor for factor in axis if isinstance(factor, Concat) and len(factor.parts) > 1]
    others = [factor for factor in axis if factor not in rows]
    return tuple(rows) if len(rows) == 1 and all(map(_is_frames, others)) else axis


def runs(axis: Axis) -> Iterator[Axis]:
    """The pieces of an axis that a stream could be: plain products, inside concatenations too."""
    if len(axis) == 1 and isinstance(axis[0], Concat):
        for part in axis[0].parts:
            yield from runs(part)
    elif axis and all(isinstance(factor, Atom) for factor in axis):
        yield axis


def is_tokens(run: Axis) -> bool:
    """Could the factors of an axis be the tokens of an image, by their histories?"""
    if not all(isinstance(factor, Atom) for factor in run) or extent(run) < 2:
        return False
    kinds = [factor.origin.kind for factor in run if isinstance(factor, Atom)]
    if any(kind in _NEVER for kind in kinds):
        return False
    return len(kinds) > 1 or kinds[0] in _PLACES


def cores_of(
    anchor: Anchor, types: Mapping[Node, tuple[TensorType, ...]]
) -> tuple[Core, ...] | Miss:
    """The core at an anchor for each row of tokens that mixes with itself there, or why none is."""
    query, key = types.get(anchor.query), types.get(anchor.key)
    if not query or not key:
        return _miss(anchor, "its operands have no type")
    rows = _ids(query[0].axes[anchor.query_axis])
    columns = _ids(key[0].axes[anchor.key_axis])
    if _all_fixed(key[0].axes[anchor.key_axis]):
        return Miss(anchor.node, "attention", "it has no two tokens that could merge", True)
    if not columns and not any(has_batch(axis) for axis in key[0].axes):
        return _miss(anchor, "its keys have no batch axis")
    if not columns:
        return _miss(anchor, f"its keys are not tokens of a stream: {key[0]}")
    mixed = list(dict.fromkeys(stream for stream in columns if stream in rows))
    if not mixed:
        return _miss(anchor, "its queries are not its keys' tokens; the keys are weighted only")
    if anchor.kind == "softmax" and not all(_is_over(anchor.node, s, types) for s in mixed):
        return _miss(anchor, "it is not over its keys")
    if anchor.kind == "sdpa" and bind(anchor.node).get("is_causal"):
        return _miss(anchor, CAUSAL)
    channel = anchor.channel % key[0].rank
    cores = tuple(
        Core(anchor.node, anchor.kind, anchor.query, anchor.key, channel, stream)
        for stream in mixed
    )
    of_frames = len(key[0].axes[anchor.key_axis]) > 1
    if of_frames and any(may_hide(mask) for core in cores for mask, _ in masks_of(core)):
        return _miss(anchor, "its mask is about the tokens of all frames")
    return cores


def _all_fixed(axis: Axis) -> bool:
    """No piece of the axis holds two tokens that could merge: one each, or learned, or protected.

    Learned tokens alone are none of an image: what is found there is not what was looked for.
    """
    parts = pieces(axis[0]) if len(axis) == 1 else (axis,)
    if len(parts) == 1 and extent(axis) > 1 and _is_learned(axis):
        return False
    return all(extent(part) < 2 or all(map(_is_fixed, part)) for part in parts)


def _is_fixed(factor: Factor) -> bool:
    if isinstance(factor, Stream):
        return factor.extent < 2
    return isinstance(factor, Atom) and factor.origin.kind in ("constant", "protected")


def _is_learned(axis: Axis) -> bool:
    return all(isinstance(f, Atom) and f.origin.kind == "constant" for f in axis)


def _is_over(softmax: Node, stream: int, types: Mapping[Node, tuple[TensorType, ...]]) -> bool:
    """Does a softmax run over the tokens of a stream?"""
    row = types.get(softmax, ())
    return bool(row) and stream in _ids(row[0].axes[bind(softmax)["dim"] % max(1, row[0].rank)])


def _ids(axis: Axis) -> list[int]:
    """Ids of the streams of a whole axis; an axis that also holds heads or images counts none.

    Frames it may hold: the tokens of each with its own class token, say, in one row.
    """
    tokens = [factor for factor in axis if has_stream((factor,))]
    others = [factor for factor in axis if factor not in tokens]
    if len(tokens) != 1 or not all(map(_is_frames, others)) or extent(axis) < 2:
        return []
    return [stream.id for stream in streams_of_axis(axis)]


def _is_frames(factor: Factor) -> bool:
    """Is it called so, an axis of the input that no convolution touched, or pieces of one?"""
    if isinstance(factor, Frames):
        return True
    parts = pieces(factor)
    atoms = [atom for part in parts for atom in part]
    known = all(isinstance(atom, Atom) for atom in atoms)
    kinds = {atom.origin.kind for atom in atoms if isinstance(atom, Atom)}
    return known and (kinds == {"input"} or (len(parts) > 1 and not kinds & {"channel", "conv"}))


def opaque_misses(graph: Graph) -> list[Miss]:
    """FlexAttention that could not be written as other ops."""
    reason = (
        "flex_attention is asked for sums of exponents or for blocks that no mask hides, or a "
        "score_mod or mask_mod is not read as one that is done for each score by itself"
    )
    return [Miss(node, "attention", reason) for node in graph.nodes if is_flex(node)]


def _miss(anchor: Anchor, reason: str) -> Miss:
    return Miss(anchor.node, "attention", reason)
