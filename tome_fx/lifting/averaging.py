"""Values that differ within a group and meet merged tokens: may they be averaged?

What an op told apart, what an image has for each position, and tokens from before a merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch.fx import Node

from tome_fx.finding.masks import all_masks_of, padding_masks
from tome_fx.graph.axes import (
    Atom,
    Axis,
    Concat,
    TensorType,
    batch_axis,
    holds,
    is_merged,
    streams_of_axis,
)
from tome_fx.graph.calls import calls
from tome_fx.graph.cones import Cones, cones_of, laid_out, read_values
from tome_fx.graph.extents import is_truth, tensor_value
from tome_fx.graph.unify import repeated
from tome_fx.options import Remerge
from tome_fx.program import Findings, Program

# They make a table of positions.
_OF_POSITIONS = ("aten.cos", "aten.sin", "aten.embedding", "aten.index", "aten.index_select",
                 "aten.gather")  # fmt: skip


@dataclass(frozen=True)
class Operands:
    """The operands of a call by path: captured nodes, and the types that they have and need."""

    nodes: Mapping[str, Node]
    have: Mapping[str, TensorType]
    want: Mapping[str, TensorType]

    def brought_down(self) -> list[str]:
        """The paths of unmerged values that are needed merged, and differ among the tokens."""
        return [
            path
            for path in self.nodes
            if not is_merged(self.have[path])
            and is_merged(self.want[path])
            and not repeated(self.have[path], self.want[path])
        ]

    def from_before_a_merge(self) -> list[str]:
        """The paths of tokens that are needed with fewer of them, by the mean of their groups."""
        return [path for path in self.nodes if _loses(self.have[path], self.want[path])]


@dataclass
class Averages:
    """What decides about averages in one lift.

    ``mixed`` are captured values that an op computed from unmerged tokens, and which tell the
    members of a group apart.
    """

    program: Program
    findings: Findings
    remerge: Remerge
    mixed: set[Node] = field(default_factory=set)

    @cached_property
    def cones(self) -> Cones:
        """What each captured node depends on: asked for only where values were told apart."""
        return cones_of(self.program.graph)

    @cached_property
    def padding(self) -> frozenset[Node]:
        """Masks of padding: members of a group are of one kind."""
        return frozenset(padding_masks(self.findings, self.program))

    @cached_property
    def of_images(self) -> frozenset[Node]:
        """Captured values that differ from image to image, but for masks of padding."""
        found = self.program.of_images - self.padding
        inputs = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        values = ((n, tensor_value(n)) for n in inputs)
        pixels = [n for n, v in values if v is not None and v.is_floating_point()]
        if not self.program.one_image or not pixels:
            return found
        # No axis of images tells there what a table is: numbers of places make one.
        return frozenset(
            n for n in found if any(n is own or self.cones.depends(n, own) for own in pixels)
        )

    @cached_property
    def of_positions(self) -> frozenset[Node]:
        """Captured values that are looked up by inputs of whole numbers, or angles of them.

        They have no mean: each image has a table. Numbers by themselves may be truths about places.
        """
        other, made = set[Node](), set[Node]()
        for node in self.program.graph.nodes:
            read, value = read_values(node), tensor_value(node)
            given = node.op == "placeholder" and value is not None and value.is_floating_point()
            if given or is_truth(node) or not other.isdisjoint(read):
                other.add(node)
            elif not made.isdisjoint(read) or calls(node, _OF_POSITIONS):
                made.add(node)
        cores = (core for site in self.findings.sites for core in site.cores)
        masks = {part.node for core in cores for part in all_masks_of(core)}
        return self.program.of_images & made - masks

    def is_table(self, node: Node, have: TensorType) -> bool:
        """Has a group the row of its representative there, and not the mean of its members?"""
        return node not in self.of_images or (node in self.of_positions and not have.streams)

    @cached_property
    def tokens(self) -> frozenset[Node]:
        """What sites add to: the tokens themselves, whatever made them."""
        return frozenset(
            operand
            for site in self.findings.sites
            for operand in site.node.all_input_nodes
            if not any(self.cones.depends(operand, core.node) for core in site.cores)
        )

    def tell_apart(self, node: Node) -> None:
        """Note that ``node`` differs within a group, unless it is what groups are made of."""
        if node not in self.tokens:
            self.mixed.add(node)

    def whole_rows(self, user: Node, operands: Operands) -> frozenset[int]:
        """The streams along which ``user`` reads rows of places from before a merge.

        One value stood for such a row where it merged, a frame's class token say. That two of these
        are equal says nothing of the rows. Places beside the stream in one row are no row of it.
        """
        read = self.of_images.intersection(read_values(user))
        skips = (p for p in operands.from_before_a_merge() if operands.nodes[p] in read)
        held = [operands.have[path] for path in skips]
        return frozenset(
            site.stream
            for site in self.findings.sites
            for type_ in held
            if site.stream in type_.ids
            and _along(type_, site.stream) - _along(self.findings.types[site.node][0], site.stream)
        )

    def refused(self, user: Node, operands: Operands) -> str:
        """Why ``user`` needs all tokens instead; "" if averages will do or none are needed.

        They will where values come back to what they were made of (a residual add), and on the way
        to a later merge. Elsewhere, in the branches of a dense head or in a loss, nothing would be
        gained by them.
        """
        down = operands.brought_down()
        again = [path for path in down if operands.nodes[path] in self.mixed]
        foreign = any(self._is_foreign(operands.nodes[p], operands.have[p]) for p in down)
        if (not again and not foreign) or self.leads_on(user):
            return ""
        merged = [
            laid_out(n) for path, n in operands.nodes.items() if is_merged(operands.have[path])
        ]
        back = self.remerge == "mean" and all(
            any(self.cones.depends(operands.nodes[path], source) for source in merged)
            for path in again
        )
        if again and not back:
            return "it meets values that an op told apart within a group"
        return "it meets values that an image has for each position" if foreign else ""

    def made(self, user: Node, operands: Operands) -> Iterator[tuple[Node, str]]:
        """The operands that ``user`` reads averaged, and why they differ within a group."""
        down, skips = operands.brought_down(), operands.from_before_a_merge()
        read = read_values(user)
        for path, node in operands.nodes.items():
            if node not in read:
                continue
            if path in down and node in self.mixed:
                yield node, "values that an op told apart within a group are averaged again"
            elif path in down and self._is_foreign(node, operands.have[path]):
                table = self.is_table(node, operands.have[path])
                how = "are its representative's" if table else "are averaged"
                yield node, f"values that an image has for each position {how} in each group"
            elif path in skips and node in self.of_images:
                yield node, "tokens from before a merge are averaged in each group"

    def represented(self, user: Node, operands: Operands) -> list[str]:
        """The paths of tables behind all sites of which a group would have one row."""
        tables = [
            path
            for path in operands.brought_down()
            if self.is_table(operands.nodes[path], operands.have[path])
            and operands.nodes[path] not in self.padding
            and any(s.level and not s.extensive for s in operands.want[path].streams)
        ]
        return [] if not tables or self._leads_to_a_site(user) else tables

    def leads_on(self, user: Node) -> bool:
        """Is ``user`` on the way to a later merge, where averages are allowed at all?"""
        return self.remerge != "never" and self._leads_to_a_site(user)

    def _leads_to_a_site(self, user: Node) -> bool:
        return any(self.cones.depends(site.node, user) for site in self.findings.sites)

    def _is_foreign(self, node: Node, have: TensorType) -> bool:
        """Does an image have ``node`` for each position, without its being made of the tokens?

        What has no axis of images is a table, the same for all, though the model was given it.
        """
        held = batch_axis(have) is not None or self.program.one_image
        own = node in self.of_images and held
        return own and node not in self.mixed and not have.streams


def _loses(have: TensorType, want: TensorType) -> bool:
    """Is a value of all members needed with fewer tokens of a stream than it has?"""
    fewest: dict[int, int] = {}
    for stream in want.streams:
        fewest[stream.id] = min(stream.count, fewest.get(stream.id, stream.count))
    return any(not s.extensive and s.count > fewest.get(s.id, s.count) for s in have.streams)


def _along(type_: TensorType, stream: int) -> frozenset[object]:
    """The streams, by number, and other places of an image that a value has for each token of one.

    Of a row that several are put together in, what that one has.
    """
    found = [place for axis in type_.axes for place in _places(axis, stream)]
    return frozenset(found)


def _places(axis: Axis, stream: int) -> Iterator[object]:
    for factor in axis:
        if isinstance(factor, Atom) and factor.origin.kind == "conv":
            yield factor
        elif isinstance(factor, Concat):
            own = [part for part in factor.parts if holds(part, stream)]
            for part in own or factor.parts:
                yield from _places(part, stream)
        else:
            yield from (found.id for found in streams_of_axis((factor,)))
