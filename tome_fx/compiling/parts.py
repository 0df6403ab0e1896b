"""Is a graph that Dynamo hands over a whole model, as far as its tokens are concerned?

Behind a graph break, in a block that is compiled by itself or in a later bucket of a distributed
model, tokens come from outside: nothing in the graph says which of them are class tokens. What
leaves a graph has all its tokens in any case.

A graph makes its tokens itself where it cuts an image, a clip or a grid into places, or looks ids
up in a table. What it picks, sorts or joins is as well known as what that was. Features that enter
as rows of an input are not: of them ``protect`` says which are special.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.fx import Graph, Node

from tome_fx.finding.cores import PRODUCTS
from tome_fx.graph.axes import Atom, Axis, Concat, TensorType, extent, has_batch, holds
from tome_fx.graph.calls import packet_name
from tome_fx.graph.cones import read_values
from tome_fx.program import Core, Findings, Program

Types = Mapping[Node, tuple[TensorType, ...]]
# Ops that make places; the others that do so only regroup axes, and count where they cut a grid.
_PLACES = ("conv", "_conv", "unfold", "im2col", "pixel_unshuffle")
_CUTS = ("reshape", "view", "_unsafe_view", "unflatten", "view_as", "reshape_as")
# Kinds of axes that are never rows of an input.
_OWN = ("channel", "constant", "literal", "border")
# Their other operands are mixed in; they are not on the axis.
_MIXING = (*(name.removeprefix("aten.") for name in PRODUCTS), "scaled_dot_product_attention")
# Axes of rows of features: images, tokens, channels. What has more may be a grid.
_ROWS = 3


def from_outside(findings: Findings, program: Program) -> str:
    """The input whose rows would merge though the graph did not make them; "" if none is."""
    walk = _Walk(findings, program)
    for stream in dict.fromkeys(site.stream for site in findings.sites):
        cores = [core for site in findings.sites if site.stream == stream for core in site.cores]
        for node in _before(program.graph, cores):
            source = walk.entering(node, stream)
            if source is not None:
                return f"{source.name} {walk.shown(source)}"
    return ""


def _before(graph: Graph, cores: Iterable[Core]) -> list[Node]:
    """What the queries and keys of some attention are made of, in program order."""
    needed = {end for core in cores for end in (core.query, core.key)}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]


@dataclass(frozen=True)
class _Walk:
    """The way back from the tokens of an attention to where they were made."""

    findings: Findings
    program: Program

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self.program.graph.nodes}

    def entering(self, node: Node, stream: int) -> Node | None:
        """The input whose rows come onto the axis of ``stream`` in ``node``, if some do."""
        type_ = self._type(node, self.findings.types)
        places = [at - type_.rank for at, axis in enumerate(type_.axes) if holds(axis, stream)]
        if not places or not _is_features(node):
            return None
        if node.op == "placeholder":
            return node if self._has_features(node, places) else None
        return self._of_operands(node, places, stream)

    def shown(self, node: Node) -> TensorType:
        """The type of an input, as the error names it."""
        return self._type(node, self.findings.types)

    def _of_operands(
        self, node: Node, places: list[int], stream: int | None, cut: bool = False
    ) -> Node | None:
        """The same, by the operands that do not hold the stream's tokens yet."""
        here = self._atoms_at(node, places)
        if node.target is operator.getitem:
            node = node.all_input_nodes[0]
        if _op(node).startswith(_PLACES) or _op(node) in _MIXING:
            return None
        for operand in read_values(node):  # `x.type_as(images)` is none of the images
            known = self._type(operand, self.findings.types)
            if stream is not None and any(holds(axis, stream) for axis in known.axes):
                continue
            if _op(node) in _CUTS:
                source = self._made_of(self._cut(operand, node, here), cut=True)
            elif self._has_features(operand, places):
                every = self._every_atom(operand)
                same = [atom for atom in every if atom in here]
                source = self._made_of(same or self._atoms_at(operand, places), cut)
            else:
                source = None
            if source is not None:
                return source
        return None

    def _made_of(self, atoms: Iterable[Atom], cut: bool) -> Node | None:
        """The input that axes are rows of, if they are; ``cut``: a reshape cut them to pieces."""
        for atom in atoms:
            born = self.nodes.get(atom.origin.node)
            if atom.origin.kind in _OWN or born is None:
                continue
            here = self._places_of(atom, born)
            if born.op != "placeholder":
                source = self._of_operands(born, here, None, cut)
            else:
                grid = cut and self._type(born, self.findings.plain).rank > _ROWS
                source = born if self._has_features(born, here) and not grid else None
            if source is not None:
                return source
        return None

    def _cut(self, operand: Node, node: Node, here: list[Atom]) -> list[Atom]:
        """What a reshape cuts, if anything of ``here`` is born there, else what it passes on."""
        every, after = self._every_atom(operand), self._every_atom(node)
        born = any(atom.origin.node == node.name for atom in here)
        return [atom for atom in every if (atom not in after if born else atom in here)]

    def _every_atom(self, node: Node) -> list[Atom]:
        return self._atoms_at(node, range(-self._type(node, self.findings.plain).rank, 0))

    def _atoms_at(self, node: Node, places: Iterable[int]) -> list[Atom]:
        """The plain factors on some axes, counted from the last one."""
        axes = self._type(node, self.findings.plain).axes
        return [atom for place in places if -place <= len(axes) for atom in _atoms(axes[place])]

    def _places_of(self, atom: Atom, born: Node) -> list[int]:
        """The axes that an atom is on where it is born, in whichever output that is."""
        types = self.findings.plain.get(born, ())
        found = [
            at - t.rank for t in types for at, axis in enumerate(t.axes) if atom in _atoms(axis)
        ]
        return list(dict.fromkeys(found))

    def _has_features(self, node: Node, places: list[int]) -> bool:
        """Is it a value of the images with features besides its ``places``? A mask has none."""
        type_ = self._type(node, self.findings.plain)
        rest = (axis for at, axis in enumerate(type_.axes) if at - type_.rank not in places)
        wide = any(extent(axis) > 1 and not has_batch(axis) for axis in rest)
        return wide and node in self.program.of_images and _is_features(node)

    def _type(self, node: Node, types: Types) -> TensorType:
        row = types.get(node, ())
        return row[0] if row else TensorType(())


def _op(node: Node) -> str:
    """``add`` for ``aten.add.Tensor``, nothing for what is no op."""
    known = isinstance(node.target, torch._ops.OpOverload)
    return packet_name(node.target).removeprefix("aten.") if known else ""  # type: ignore[arg-type]


def _is_features(node: Node) -> bool:
    """Could a value be features of tokens? Integers are ids, orders and masks."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _atoms(axis: Axis) -> Iterator[Atom]:
    for factor in axis:
        if isinstance(factor, Atom):
            yield factor
        elif isinstance(factor, Concat):
            for part in factor.parts:
                yield from _atoms(part)
