"""What the passes hand to each other: frozen descriptions of a captured program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from tome_fx.graph.axes import Atom, Axis, Frames, TensorType
from tome_fx.graph.cones import made_of_inputs
from tome_fx.graph.cuts import tiles_of
from tome_fx.graph.extents import Extents
from tome_fx.ops.modes import GRADED, Mode
from tome_fx.rules.base import Rule


@dataclass(frozen=True)
class Program:
    """A captured program.

    Attributes:
        graph: in pre-dispatch ATen; every node has a fake value in ``meta``.
        constants: what the graph reads and the model does not hold under that name: tensors made
            in ``forward``, and subprograms.
        how: the front door it came through (``export``, ``symbolic_trace``, ...).
        extents: stand-ins for its symbolic sizes.
        batch: extent of the batch axis: a stand-in, or the size where the program fixed it.
        batched: placeholders whose first axis is the batch; none in a program for one image
            whose patches, say, are the rows of its input.
        static_batch: the model's own code fixed the batch size.
        least: images that it is for; for fewer the model's own code goes another way.
        most: the same for more, if there are such.
        times: its code takes images in groups of so many, the frames of a clip, say.
        tied: its inputs have one batch in it, though the model would take several.
        guarded: whoever runs it checks the shapes of its inputs.
        checkpointed: the model's own code checkpoints its gradients.
        backwards: by module, functions with a gradient of their own that the program does not have.
        decided: buffers whose values decided which of its code was captured.
        remembers: attributes by which a call of the model changes the next one.
        fixed: inputs of whole numbers that decided shapes, with the values that it is for.
        mode: that of the calls which it is for (``tome_fx.ops.GRADED``, say).
        unlike: the modes in which the model computes something else.
        asked: where its code asks for the mode of a call, and other such things, by what it asks.
        given: tensors that the example held for other inputs than the images, by their names.
    """

    graph: Graph
    constants: Mapping[str, torch.Tensor | nn.Module]
    how: str
    extents: Extents
    batch: int
    batched: frozenset[str]
    static_batch: bool
    least: int = 1
    most: int | None = None
    times: int = 1
    tied: bool = False
    guarded: bool = False
    checkpointed: bool = False
    backwards: Mapping[str, str] = field(default_factory=dict)
    decided: tuple[str, ...] = ()
    remembers: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    mode: Mode = GRADED
    unlike: tuple[Mode, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def of_images(self) -> frozenset[Node]:
        """Nodes whose values, not only their shapes, depend on an input."""
        return frozenset(made_of_inputs(self.graph))

    @cached_property
    def tiles(self) -> frozenset[Node]:
        """Slices that cut rows into stretches, each of which may be an image; for one alone."""
        return tiles_of(self.graph) if self.one_image else frozenset()

    @property
    def one_image(self) -> bool:
        """Is it for one image alone? Then its values need no axis of images."""
        return self.batch == 1

    def batch_near(self, images: int) -> int:
        """The batch that it is for, or the one nearest to so many images (or groups)."""
        if self.static_batch:
            return self.batch
        return max(self.least, images if self.most is None else min(images, self.most))

    def images_near(self, images: int) -> int:
        """The images of that batch: of each group of them, where its code takes them in groups."""
        return self.batch_near(images) * self.times

    def __str__(self) -> str:
        batch = f"batch {self.batch}" if self.static_batch else "any batch"
        return f"captured by {self.how}, {batch}\n{self.graph}"


def unbatched(program: Program) -> Program:
    """The same program, read as one for one image whose inputs have no axis of images."""
    return replace(program, batch=1, batched=frozenset(), static_batch=True)


@dataclass(frozen=True)
class StreamDef:
    """A stream: the product of plain factors that it is born as, and its protected ends.

    ``front`` and ``back`` tokens at its ends are read by index later, so they never merge;
    ``reasons`` names the reader. ``per``: the images and those frames that have groups of their
    own, in order; empty where only images have.
    """

    id: int
    atoms: Axis
    front: int = 0
    back: int = 0
    reasons: tuple[str, ...] = ()
    per: Axis = ()

    def __str__(self) -> str:
        ends = f", {self.front} protected in front, {self.back} behind"
        born = ", ".join(
            f"{atom.extent} of {atom.origin.node}" for atom in self.atoms if isinstance(atom, Atom)
        )
        return f"S{self.id}: {born}{ends if self.front or self.back else ''}"


@dataclass(frozen=True)
class Core:
    """An attention core: tokens of one stream mix by weights from their own keys.

    ``node`` is the fused attention or the softmax, ``query`` and ``key`` the values that make the
    weights; ``channel`` is the axis of ``key`` that the similarity contracts.
    """

    node: Node
    kind: str
    query: Node
    key: Node
    channel: int
    stream: int


@dataclass(frozen=True)
class Mlp:
    """The two or more linears on the tokens behind a site, without an attention between."""

    linears: tuple[Node, ...]
    end: Node
    module: str


@dataclass(frozen=True)
class Site:
    """Where a merge goes: behind the residual add that follows one or more parallel cores.

    ``after`` is the site whose tokens reach it: the one before it, or where its branch began.
    """

    node: Node
    cores: tuple[Core, ...]
    stream: int
    mlp: Mlp | None
    after: Node | None = None


@dataclass(frozen=True)
class Miss:
    """Something that looks like a site and is not used as one, with the reason.

    ``harmless``: there was nothing to merge, since the attention has one token of its own.
    """

    node: Node
    what: str
    reason: str
    harmless: bool = False


@dataclass(frozen=True)
class Findings:
    """What ``locate`` found in a program.

    Attributes:
        types: the types of each node's outputs, nothing merged.
        plain: the same without streams: the fallback where a rule refuses.
        streams: the streams, by id.
        sites: in program order.
        tokens: on the axis of the first attention's keys.
        rules: for more ops than the table's, or in place of those; they gave the types.
        mixing: calls on tokens of several frames or images that are branches of one stream.
        uneven: masks of the model that may hide a token from some members of a group alone.
        itself: calls that tell tokens of a group apart by a table of the model, with the reason.
        frames: the frames with groups of their own, by the atoms of values that meet them, as masks
            of other inputs do.
    """

    types: Mapping[Node, tuple[TensorType, ...]]
    plain: Mapping[Node, tuple[TensorType, ...]]
    streams: tuple[StreamDef, ...]
    sites: tuple[Site, ...]
    misses: tuple[Miss, ...]
    tokens: int
    rules: Mapping[str, Rule]
    mixing: frozenset[Node] = frozenset()
    uneven: frozenset[Node] = frozenset()
    itself: Mapping[Node, str] = field(default_factory=dict)
    frames: Mapping[Atom, Frames] = field(default_factory=dict)

    def mergeable(self, site: Site) -> int:
        """Unprotected tokens of the site's stream before any merge."""
        streams = self.types[site.node][0].streams
        return next(stream.extent for stream in streams if stream.id == site.stream)

    def __str__(self) -> str:
        lines = [f"stream {stream}" for stream in self.streams]
        for site in self.sites:
            cores = ", ".join(f"{core.node} ({core.kind})" for core in site.cores)
            mlp = f", MLP {site.mlp.module or site.mlp.end}" if site.mlp else ""
            lines.append(f"site {site.node}: S{site.stream}, attention {cores}{mlp}")
        lines.extend(f"no site for {miss.node}: {miss.reason}" for miss in self.misses)
        return "\n".join(lines)


@dataclass(frozen=True)
class Step:
    """One site with its share of the schedule: ``removed`` tokens of ``before``."""

    site: Site
    before: int
    removed: int
    asked: int


@dataclass(frozen=True)
class MergeSchedule:
    """The plan: a step for each site, in program order.

    ``align``: what the tokens behind each merge are a multiple of, where one is in reach.
    """

    steps: tuple[Step, ...]
    align: int = 1

    def __str__(self) -> str:
        return "\n".join(
            f"{step.site.node}: {step.before} - {step.removed} -> {step.before - step.removed}"
            for step in self.steps
        )


@dataclass(frozen=True)
class Coerced:
    """A place where tokens were unmerged (``unmerge``) or members merged down (``merge``)."""

    what: str
    node: Node
    reason: str
    bytes_per_image: int
