"""The front door through ``torch.export``."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.export._trace as export_trace
from torch import nn
from torch._functorch._aot_autograd import frontend_utils
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from tome_fx.capturing.alike import said_to_be_alike
from tome_fx.capturing.blame import blame
from tome_fx.capturing.branches import batches_of, group_of
from tome_fx.capturing.calling import accept_defaults, keep_containers, spelled_out
from tome_fx.capturing.describing import (
    KEPT,
    LOST,
    describe,
    mutates,
    no_fast_path,
    read_by,
)
from tome_fx.capturing.examples import Example
from tome_fx.capturing.insides import read_insides, reads_insides
from tome_fx.capturing.known import WRITE_IN, compute, constants_known, count_again
from tome_fx.capturing.nesting import levels_closed
from tome_fx.errors import CaptureError
from tome_fx.graph.casts import copy_casts
from tome_fx.graph.checks import is_check
from tome_fx.graph.extents import tensor_value
from tome_fx.graph.flex import flex_allowed, write_flex
from tome_fx.graph.inplace import make_detached, make_plain
from tome_fx.graph.leaves import call_leaves
from tome_fx.graph.regions import (
    has_regions,
    inline_gradient_regions,
    inline_regions,
    is_mapped,
)
from tome_fx.graph.values import only_computes
from tome_fx.program import Program

_NUMBERS = (bool, int, float, torch.SymBool, torch.SymInt, torch.SymFloat)

# What is logged of an export that fails, and where.
_LOGS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
_TOLD = ("Unable to find user code corresponding to", "failed while attempting to run meta for")
# What to do beside that about code that reads what is made of an image.
_BOTH = " Of what an image decides there is no graph: torch.where(condition, a, b) computes both."
_KEY = (
    "The size of a batch is no key of a dict while it is traced: keep what is made for one image "
    "and expand it, or look it up by int(size), which fixes the batch."
)
_SIDE_EFFECTS = "While compiling, we found certain side effects"
# What torch says where it cannot take apart what ``forward`` returns.
UNKNOWN_RESULT = "in output, which is not a known type"
_PACKED = (
    "Such an object holds weights where no graph can read them, as the modules of "
    "torch.ao.quantization do. Quantise by torchao in its place: its weights are tensors."
)


def from_export(
    model: nn.Module, example: Example, shared: bool = False, strict: bool = False
) -> Program:
    """``torch.export``, batch dynamic wherever the model allows it.

    ``shared`` says that all inputs have one batch. By themselves they may have several: CLIP takes
    any number of texts with its images. ``strict`` reads the model's code instead of running it.

    ``nn.MultiheadAttention``'s fast path is off meanwhile: it is one op that hides the attention.

    Raises:
        CaptureError: the model cannot be exported; ``shared`` fixes its batch.
    """

    with said_to_be_alike(model, example) if shared else contextlib.nullcontext():
        program = _exported(model, example, _sizes(example, torch.export.Dim.AUTO), strict)
    limits = None if _divides(program) else batches_of(program, example.batch)
    if limits is None:
        grouped = _in_groups(model, example, program, strict)
        program = grouped or _exported(model, example, None, strict)
    else:
        program = replace(program, least=limits[0], most=limits[1])
    if shared and program.static_batch:
        raise CaptureError("With one batch for all inputs, the model's code fixes it.")
    call_leaves(program.graph)
    given = inspect.signature(model.forward).bind(*example.args, **dict(example.kwargs))
    # What ``forward`` gathers has one name there; a call names each.
    accept_defaults(program.graph, model, {**given.arguments, **example.kwargs})
    return program


def _sizes(example: Example, images: Any) -> Any:
    """``images`` for the first axis of each input that has a row for each of several."""

    def spec(value: Any) -> Any:
        return {0: images} if example.has_rows(value) and example.batch > 1 else None

    return pytree.tree_map(spec, (example.args, dict(example.kwargs)))


def _in_groups(
    model: nn.Module, example: Example, program: Program, strict: bool
) -> Program | None:
    """The program for any number of groups of images, where the code takes them in such."""
    times = group_of(program, example.batch)
    if times is None:
        return None
    groups = torch.export.Dim("groups", min=1)
    with contextlib.suppress(CaptureError):
        grouped = _exported(model, example, _sizes(example, times * groups), strict)
        if not _divides(grouped) and batches_of(grouped, example.batch // times) == (1, None):
            return replace(grouped, times=times)
    return None


def _exported(model: nn.Module, example: Example, shapes: Any, strict: bool) -> Program:
    try:
        spelled = spelled_out(model, example)
        with no_fast_path(), flex_allowed(), constants_known(), _untold(), spelled:
            exported = torch.export.export(
                model,
                example.args,
                dict(example.kwargs),
                dynamic_shapes=None if shapes is None else _named_shapes(model, shapes),
                strict=strict,
            )
    except Exception as error:
        text = f"torch.export cannot capture it: {blame(error)}"
        if _reads_values(error):
            raise CaptureError(text, next_step=WRITE_IN + _BOTH, reads_values=True) from error
        if "fake tensor in the exported program constant" in str(error):
            text = f"{LOST} ({blame(error).rpartition(' At ')[2] or 'forward'})."
            raise CaptureError(text, next_step=KEPT) from error
        if "unhashable type: non-nested SymInt" in str(error):
            raise CaptureError(text, next_step=_KEY) from error
        if "__obj_flatten__" in str(error):
            text = f"torch.export cannot capture an object of C++: {blame(error)}"
            raise CaptureError(text, next_step=_PACKED) from error
        raise CaptureError(text) from error
    return from_exported_program(exported)


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Within, export says nothing of its own where it fails: another way may not.

    It prints the graph so far, and logs that a value which it cannot know has no name in code, and
    the trace of an op that refuses its operands: the error says so too. It warns that what code
    keeps for later calls should be a buffer, and that code writes to what is no tensor: a copy need
    not care for that.
    """
    logs = [logging.getLogger(name) for name in _LOGS]
    for log in logs:
        log.addFilter(_tells_more)
    quiet = SimpleNamespace(warn=lambda *args, **kwargs: None)
    try:
        with (
            patch.object(export_trace, "print", lambda *args, **kwargs: None, create=True),
            patch.object(frontend_utils, "warnings", quiet),  # of which it has no others
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", _SIDE_EFFECTS)
            yield
    finally:
        for log in logs:
            log.removeFilter(_tells_more)


def _tells_more(record: logging.LogRecord) -> bool:
    """Does a line of a log say what the error does not?"""
    return not str(record.msg).startswith(_TOLD)


def _divides(program: Program) -> bool:
    """Does the model's code divide a fixed number by the batch, as that of texts by the images?

    Such a program is none for other batches: at a large one nothing is left of the quotient.
    """
    values = [tensor_value(node) for node in program.graph.nodes]
    sizes = [size for value in values if value is not None for size in value.shape]
    return any(not isinstance(s, int) and program.extents.of(s) == 0 for s in sizes)


def _named_shapes(model: nn.Module, shapes: Any) -> Any:
    """``dynamic_shapes`` as export wants it: by the names of the parameters of ``forward``."""
    args, kwargs = shapes
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def from_exported_program(exported: torch.export.ExportedProgram) -> Program:
    """The program's own graph with its parameters as attributes, made functional.

    Regions of another gradient mode or autocast are subprograms there: they are inlined, so that
    tokens are followed through them. What runs under ``vmap`` becomes ops on all images, and
    FlexAttention other attention.
    """
    module = exported.module()
    assert isinstance(module, GraphModule)
    if has_regions(module.graph):
        inline_regions(module)
    make_detached(module.graph)
    make_plain(module.graph)
    write_flex(module)
    if _is_open(module.graph):
        module = _without_writes(exported)
        write_flex(module)
    read = read_by(module)
    made = set(exported.graph_signature.inputs_to_lifted_tensor_constants.values())
    constants = {name: read[name] for name in read.keys() & made}
    compute(module, constants)
    count_again(module.graph, constants)
    keep_containers(module.graph)
    return describe(module.graph, read_by(module), "export")


def _is_open(graph: Graph) -> bool:
    """Does a graph hold what no pass reads: regions, parts under ``vmap``, writes, insides?"""
    mapped = has_regions(graph) or is_mapped(graph)
    return mapped or mutates(graph) or reads_insides(graph)


def _without_writes(exported: torch.export.ExportedProgram) -> GraphModule:
    kept = _edited(exported, _keep)
    signature = exported.graph_signature
    held = {*signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}
    inline_gradient_regions(kept.graph_module, held)
    try:
        try:
            module = _decomposed(kept)
        except RuntimeError:  # torch 2.11 cannot trace again what some checks count
            module = _decomposed(_edited(kept, _uncheck))
        assert isinstance(module, GraphModule)
        read_insides(module, exported)
        return module
    except Exception as error:
        text = "torch.export captured it, and cannot write its program without writes in place"
        reads = _reads_values(error)
        raise CaptureError(f"{text}: {blame(error)}", reads_values=reads) from error


def _decomposed(exported: torch.export.ExportedProgram) -> nn.Module:
    with levels_closed():
        module: nn.Module = exported.run_decompositions({}).module()
    return module


def _reads_values(error: Exception) -> bool:
    return isinstance(error, DataDependentOutputException) or "data-dependent" in str(error)


def _edited(
    exported: torch.export.ExportedProgram, edit: Callable[[Graph], None]
) -> torch.export.ExportedProgram:
    """The same program with its graph edited."""
    program, module = copy.copy(exported), exported.graph_module
    graph = copy.deepcopy(module.graph)
    edit(graph)
    edited = program._graph_module = GraphModule(module, graph)
    for name, part in edited.named_children():
        edited.add_module(name, copy.deepcopy(part))
    edited.meta = module.meta
    return program


def _keep(graph: Graph) -> None:
    """Spell what a second tracing would lose: where gradients end, casts that change nothing."""
    make_detached(graph)
    copy_casts(graph)


def _uncheck(graph: Graph) -> None:
    """Leave out checks of values, which no pass keeps, and what only they read."""
    read: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op != "call_function":
            continue
        counts = only_computes(node.target) or isinstance(node.meta.get("val"), _NUMBERS)
        if is_check(node) or (node in read and not node.users and counts):
            read.update(node.all_input_nodes)
            graph.erase_node(node)
