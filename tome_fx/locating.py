"""From a model to a program in which attention and tokens are found: the first three passes."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from tome_fx import ops
from tome_fx.capturing.backwards import OWN_GRADIENT, warn_of_lost
from tome_fx.capturing.checkpoints import asks_for_checkpoints, checkpoints_noticed
from tome_fx.capturing.examples import Example
from tome_fx.capturing.fixed import has_numbers
from tome_fx.capturing.forgetting import modes_forgotten
from tome_fx.capturing.known import WRITE_IN
from tome_fx.capturing.original import Original
from tome_fx.capturing.ungraded import data_recorded, inference_recorded, regions_recorded
from tome_fx.errors import CaptureError, NoAttentionFoundError
from tome_fx.graph.axes import batch_axis
from tome_fx.graph.cones import cones_of
from tome_fx.graph.extents import known_size, tensor_value
from tome_fx.graph.leaves import leaves_of
from tome_fx.graph.single import is_of_one
from tome_fx.marks import refuse_marked
from tome_fx.nothing_found import nothing_found
from tome_fx.options import Settings
from tome_fx.passes.capture import Door, capture
from tome_fx.passes.locate import locate
from tome_fx.passes.normalize import normalize
from tome_fx.program import Findings, Program, unbatched

# Tracing sets process-wide state (dispatch modes, export's registries): one capture at a time.
LOCK = threading.RLock()


@dataclass(frozen=True)
class Located:
    """A captured program and what was found in it: all that planning needs."""

    program: Program
    findings: Findings


def locate_program(
    model: nn.Module | torch.export.ExportedProgram, example: Example | None, settings: Settings
) -> Located:
    """Capture, normalize and locate.

    Raises:
        CaptureError: the model cannot be turned into a graph.
        NoAttentionFoundError: it holds no attention over tokens.
        AlreadyTransformedError: it was made of a result of a transform.
    """
    here = torch.is_grad_enabled()
    # Weights that were made in inference mode have no gradients, and tracing would save them for
    # some.
    located = _located(model, example, settings, not _of_inference(model))
    if not here and ops.UNGRADED in located.program.unlike:
        return _located(model, example, settings, False)
    return located


def _located(
    model: nn.Module | torch.export.ExportedProgram,
    example: Example | None,
    settings: Settings,
    graded: bool,
) -> Located:
    # What is made in inference mode cannot be traced for training later.
    with (
        LOCK,
        torch.inference_mode(False),
        torch.set_grad_enabled(graded),
        torch.random.fork_rng(devices=[]),
        modes_forgotten(),
        inference_recorded(),
        data_recorded(),
        regions_recorded(),
        checkpoints_noticed() as checkpoints,
    ):
        door = cast(Door, settings.capture)
        original = Original(model) if isinstance(model, nn.Module) else None
        reading = _Reading(model, door, original, settings)
        program, found = reading.read(example)
    asked = bool(checkpoints) or asks_for_checkpoints(model)
    program = replace(program, checkpointed=asked)
    if original is not None:
        calls = {leaf.path for leaf in leaves_of(program.graph)}
        lost = original.backwards.lost(calls)
        warn_of_lost(lost)
        program = replace(program, backwards=lost.functions)
        if original.backwards.functions.keys() & calls:
            return _checked(program, found, OWN_GRADIENT)
    return _checked(program, found)


def _of_inference(model: nn.Module | torch.export.ExportedProgram) -> bool:
    """Were the weights of the model, all of them, made under ``torch.inference_mode``?"""
    weights = list(model.parameters()) if isinstance(model, nn.Module) else []
    lazy = torch.nn.parameter.UninitializedParameter
    made = [weight.is_inference() for weight in weights if not isinstance(weight, lazy)]
    return bool(made) and all(made)


@dataclass(frozen=True)
class _Reading:
    """How a model is captured, and what for."""

    model: nn.Module | torch.export.ExportedProgram
    door: Door
    original: Original | None
    settings: Settings

    def read(self, example: Example | None) -> tuple[Program, Findings]:
        """The program with most sites, by the readings of its inputs."""
        try:
            program, found = self._captured(example)
        except CaptureError as failure:
            whole = self._in_place_of(failure, example)
            if whole is None:
                raise
            return whole
        read = program.fixed or program.decided  # by a way that shares no batch
        several = program.how == "export" and not read and _several_inputs(program)
        several = several and not _of_own_numbers(example)
        if several and _lost_images(program, found):
            # What picks tokens by an index of its own has the batch of the index.
            with contextlib.suppress(CaptureError):
                again, better = self._captured(example, shared=True)
                more = len(better.sites) > len(found.sites)
                tied = replace(again, tied=True)
                program, found = (tied, better) if more else (program, found)
        if not found.sites and example is not None and leaves_of(program.graph):
            # What reads a grid may stay a call, and the attention with it.
            given = example.single or example
            whole = self._whole(given) if has_numbers(replace(given, batch=0)) else None
            if whole is not None:
                return whole
        if found.sites or not found.misses:  # there is no attention, however it is read
            return program, found
        return self._for_one_image(example, program) or (program, found)

    def _captured(self, example: Example | None, shared: bool = False) -> tuple[Program, Findings]:
        program = capture(
            self.model, example, self.door, shared, self.original, self.settings.check
        )
        return program, _findings(program, self.settings)

    def _for_one_image(
        self, example: Example | None, program: Program
    ) -> tuple[Program, Findings] | None:
        """A program for one image, where no attention within several images is found.

        One image of the example may be taken out of its batch, or its patches are the rows of the
        input, without an axis of images.
        """
        if example is not None and example.single is not None:
            with contextlib.suppress(CaptureError):
                single, found = self._captured(example.single)
                return (single, found) if _of_one(found) else None
            return None
        if program.static_batch:
            return _as_one(program, self.settings)
        return None if example is None else self._whole(example)

    def _in_place_of(
        self, failure: CaptureError, example: Example | None
    ) -> tuple[Program, Findings] | None:
        """What another reading of the first axis makes of a model that cannot be captured.

        One row in front need not be a batch of one: then it must not be given twice. Nor need
        several be a batch: then numbers for each of them are those of one row.
        """
        if example is None:
            return None
        given = example.single or example
        numbers = has_numbers(replace(given, batch=0))
        helps = numbers if failure.reads_values else example.single is not None
        return self._whole(given) if helps else None

    def _whole(self, example: Example) -> tuple[Program, Findings] | None:
        """The program of an example whose first axis is no batch."""
        with contextlib.suppress(CaptureError):
            return _as_one(self._captured(replace(example, batch=0, single=None))[0], self.settings)
        return None


def _as_one(program: Program, settings: Settings) -> tuple[Program, Findings] | None:
    """A program read as one for one image without an axis of images, if that has sites."""
    single = unbatched(program)
    found = _findings(single, settings)
    return (single, found) if _of_one(found) else None


def locate_captured(program: Program, settings: Settings) -> Located:
    """Normalize and locate.

    Raises:
        NoAttentionFoundError: ``program`` holds no attention over tokens.
        AlreadyTransformedError: it was made of a result of a transform.
    """
    found = _findings(program, settings)
    single = None
    if found.misses and not found.sites and program.static_batch:
        single = _as_one(program, settings)
    return _checked(*(single or (program, found)))


def _findings(program: Program, settings: Settings) -> Findings:
    refuse_marked(program.graph)
    normalize(program.graph, settings.rules)
    return locate(program, settings.rules, settings.protect)


def _of_one(found: Findings) -> bool:
    """Are there sites, and is none on tokens of several images side by side?

    What would be an axis of images in another reading must not be one of places in this.
    """
    values = [(core.key, core.channel) for site in found.sites for core in site.cores] + [
        (site.node, -1) for site in found.sites
    ]
    types = [(found.types[node][0], channel) for node, channel in values]
    return bool(found.sites) and all(is_of_one(t, channel % t.rank) for t, channel in types)


def _several_inputs(program: Program) -> bool:
    given = [node for node in program.graph.nodes if node.op == "placeholder"]
    return sum(tensor_value(node) is not None for node in given) > 1


def _of_own_numbers(example: Example | None) -> bool:
    """Does the example show several images in one input, and another number in the next?"""
    given = [] if example is None else (example.single or example).leaves
    return len({leaf.shape[0] for leaf in given if isinstance(leaf, Tensor) and leaf.dim() > 3}) > 1


def _as_images(node: Node) -> tuple[int, ...] | None:
    """What inputs of images are alike in: their number in the example, and channels or patches."""
    value = tensor_value(node)
    if value is None or value.dim() < 3:
        return None
    inner = value.shape[1:] if value.dim() == 3 else value.shape[1:-2]
    return value.dim(), known_size(value.shape[0]), *map(known_size, inner)


def _lost_images(program: Program, found: Findings) -> bool:
    """Is an attention made of the images without an axis of them, or is there no site at all?"""
    if not found.sites:
        return True
    lost = [
        miss.node
        for miss in found.misses
        if all(batch_axis(type_) is None for type_ in found.types.get(miss.node, ()))
    ]
    cones = cones_of(program.graph)
    given = [node for node in cones.order if node.op == "placeholder"]
    batched = {node for node in given if node.name in program.batched}
    # Images of another input may have a batch of their own, as texts do, which keep theirs.
    like = {_as_images(node) for node in batched} - {None}
    images = [node for node in given if node in batched or _as_images(node) in like]
    return any(cones.depends(node, image) for node in lost for image in images)


def _checked(program: Program, findings: Findings, next_step: str = WRITE_IN) -> Located:
    misses = findings.misses
    leaves = leaves_of(program.graph)
    if leaves and not findings.sites:
        raise CaptureError(
            leaves[0].reason,
            leaves[0].path,
            f"No attention is found around it. {next_step}",
        )
    if not findings.sites and not (misses and all(miss.harmless for miss in misses)):
        raise NoAttentionFoundError(nothing_found(program, findings))
    return Located(program, findings)
