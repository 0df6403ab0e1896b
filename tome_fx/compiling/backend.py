"""The backend of ``torch.compile``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from tome_fx.compiling.batches import with_one_batch
from tome_fx.compiling.inputs import Given, fold_numbers, given
from tome_fx.compiling.parts import from_outside
from tome_fx.compiling.tracing import program_of
from tome_fx.errors import (
    AlreadyTransformedError,
    CaptureError,
    ConfigError,
    MatchingError,
    NoAttentionFoundError,
    warn,
)
from tome_fx.locating import LOCK, locate_captured
from tome_fx.marks import refuse_marked
from tome_fx.options import BACKEND_OPTIONS, COMPILED, Settings, checked, reject_unknown, rule_table
from tome_fx.own_matching import closures_allowed
from tome_fx.pipeline import rewrite
from tome_fx.program import Program
from tome_fx.report import Report

Compiled = Callable[..., Any]
_TOLD: set[tuple[str, str]] = set()


@dataclass(frozen=True, eq=False)
class Backend:
    """A backend of ``torch.compile`` that merges tokens and hands on to another one.

    Equal for equal settings, so that compiling again with the same ones finds what was compiled.

    Attributes:
        settings: how to merge.
        inner: the backend that compiles the rewritten graph.
        mode: its mode, as ``torch.compile`` takes it.
        inner_options: its options.
        reports: what was found and done, one for each graph that was rewritten.
    """

    settings: Settings
    inner: str = "inductor"
    mode: str | None = None
    inner_options: Mapping[str, Any] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)

    def __call__(
        self, module: GraphModule, example_inputs: Sequence[Any], **options: Any
    ) -> Compiled:
        """Rewrite ``module`` and compile it by the inner backend."""
        chosen = self.updated(options) if options else self
        return chosen._compile(module, example_inputs)

    def updated(self, options: Mapping[str, Any]) -> Backend:
        """This backend with what ``torch.compile`` was given besides, sharing its reports."""
        merged = {**_plain(self), **(options.get("options") or {})}
        if options.get("mode") not in (None, "default"):
            merged["mode"] = options["mode"]
        return _made(merged, self.reports)

    def _compile(self, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        folded = GraphModule(module, _copied(module.graph))
        inputs = given(folded, example_inputs)
        fold_numbers(folded, inputs)
        merged = self._merged(folded, inputs)
        if merged is None:
            return self._inner(module, example_inputs)
        with self._held_tensors(example_inputs):
            compiled = self._inner(merged, example_inputs)
        return self._checking(compiled, inputs.numbers, module) if inputs.numbers else compiled

    def _merged(self, module: GraphModule, inputs: Given) -> GraphModule | None:
        """The rewritten graph with the inputs of ``module``; None to leave it as it is."""
        try:
            grad = torch.set_grad_enabled(torch.is_grad_enabled())  # what inference mode would undo
            refuse_marked(module.graph)
            with LOCK, torch.inference_mode(False), grad, torch.random.fork_rng(devices=[]):
                program = with_one_batch(program_of(module, inputs), self.settings.rules)
                located = locate_captured(program, self.settings)
        except (CaptureError, NoAttentionFoundError, AlreadyTransformedError) as error:
            self._tell(f"A graph is compiled without merging: {error}")
            return None
        outside = from_outside(located.findings, program)
        if outside and self.settings.protect is None:
            self._tell(
                f"A graph is compiled without merging, since its tokens come from outside: "
                f"{outside}. In a part of a model, behind a graph break or compiled by itself, "
                "nothing says which tokens are class tokens. Compile the whole model "
                "(fullgraph=True shows where it breaks; for DDP set "
                "torch._dynamo.config.optimize_ddp=False), or say how many tokens at the ends are "
                "special: protect=(front, back), for a whole model on rows alike protect=0.",
                # Parts of one model differ in the name of the input, and not in its shape.
                key=f"outside {outside.partition(' ')[2]}",
            )
            return None
        target = _root(inputs, program)
        try:
            report = rewrite(target, located, self.settings, "a graph of torch.compile").report
        except MatchingError:
            raise
        except ConfigError as error:
            self._tell(
                f"A graph is compiled without merging: {error} A part of a model has its own "
                "layers, and a schedule starts anew in each."
            )
            return None
        self.reports.append(report)
        if report.skipped:
            self._tell(report.skipped)
            return None
        return _with_inputs(target, inputs)

    def _held_tensors(self, example_inputs: Sequence[Any]) -> AbstractContextManager[Any]:
        """What compiles meets tensors that a function of the user holds, and that no graph does."""
        if self.settings.matching is None:
            return nullcontext()
        return closures_allowed(example_inputs)

    def _inner(self, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        options = dict(self.inner_options)
        if self.inner == "inductor":
            wrapper = torch._TorchCompileInductorWrapper(self.mode, options or None, None)
            result: Compiled = wrapper(module, list(example_inputs))
            return result
        found: Any = torch._dynamo.lookup_backend(self.inner)
        extra: dict[str, Any] = {"options": options} if options else {}
        if self.mode is not None:
            extra["mode"] = self.mode
        compiled: Compiled = found(module, list(example_inputs), **extra)
        return compiled

    def _checking(
        self, compiled: Compiled, numbers: Mapping[int, float], plain: GraphModule
    ) -> Compiled:
        """``compiled`` as long as the numbers that were folded into it are what they were."""

        def call(*args: Any) -> Any:
            if all(float(args[place]) == number for place, number in numbers.items()):
                return compiled(*args)
            self._tell(
                "A number that the compiled graph holds has changed (a dropout rate, an epsilon), "
                "so the model runs uncompiled and unmerged. Call torch._dynamo.reset().",
            )
            return plain(*args)

        return call

    def _tell(self, text: str, key: str = "") -> None:
        """Warn, once for each key and settings: a model may break into many graphs alike."""
        told = key or text, self._key()
        if told not in _TOLD:
            _TOLD.add(told)
            warn(text)

    def _key(self) -> str:
        # JSON has no tuples: (4, 0) is a schedule that falls, [4, 0] one of two layers.
        plain = {**_plain(self), "r": repr(self.settings.r)}
        plain["hardware"] = repr(self.settings.hardware)
        return json.dumps(plain, sort_keys=True, default=_identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backend) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def backend(
    r: Any = 16,
    *,
    inner_backend: str = "inductor",
    mode: str | None = None,
    inner_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Backend:
    """A backend for ``torch.compile(model, backend=tome_fx.backend(r=16))``.

    Args:
        r: tokens to remove at each layer, see :func:`tome_fx.transform`.
        inner_backend: what compiles the rewritten graph, by the name that ``torch.compile`` knows.
        mode: mode of the inner backend (``reduce-overhead``, ``max-autotune``).
        inner_options: its options.
        options: ``prop_attn``, ``rounding``, ``strict``, ``protect``, ``remerge``, ``min_ratio``,
            ``scatter``, ``attention``, ``every``, ``align``, ``batch``, ``hardware``,
            ``min_speedup``, ``rules`` and ``matching`` of :func:`tome_fx.transform`.

    Raises:
        ConfigError: an option is unknown or outside its range.
    """
    given_options = {"r": r, "inner_backend": inner_backend, "mode": mode, **options}
    return _made({**given_options, "inner_options": inner_options}, [])


def dynamo_backend(module: GraphModule, example_inputs: Sequence[Any], **options: Any) -> Compiled:
    """What ``torch.compile(model, backend="tome_fx", options={"r": 16})`` calls."""
    return Backend(Settings())(module, example_inputs, **options)


def _made(options: Mapping[str, Any], reports: list[Report]) -> Backend:
    reject_unknown([name for name in options if name not in BACKEND_OPTIONS], BACKEND_OPTIONS)
    row = dict(options)
    inner = row.pop("inner_backend", "inductor")
    mode, inner_options = row.pop("mode", None), row.pop("inner_options", None)
    inner_options = {} if inner_options is None else inner_options
    row["rules"] = rule_table(row.get("rules", ()))
    if inner not in torch._dynamo.list_backends(exclude_tags=()) or inner == "tome_fx":
        known = ", ".join(name for name in torch._dynamo.list_backends() if name != "tome_fx")
        raise ConfigError(f"inner_backend={inner!r} is not a backend of torch.compile: {known}.")
    if not isinstance(inner_options, Mapping):
        raise ConfigError(f"inner_options={inner_options!r} is no dict of options.")
    modes = dict.fromkeys(("default", *torch._inductor.list_mode_options()))
    if mode is not None and (
        not isinstance(mode, str) or (inner == "inductor" and mode not in modes)
    ):
        raise ConfigError(f"mode={mode!r} is not one of {', '.join(modes)}.")
    return Backend(checked(Settings(**row)), inner, mode, dict(inner_options), reports)


def _plain(backend: Backend) -> dict[str, Any]:
    return {
        **{name: getattr(backend.settings, name) for name in COMPILED},
        "inner_backend": backend.inner,
        "mode": backend.mode,
        "inner_options": dict(backend.inner_options),
    }


def _identity(value: Any) -> str:
    """What stands for a function in a key: itself, and no other that reads alike."""
    # A bound method is made anew wherever it is read.
    parts = (getattr(value, "__self__", None), getattr(value, "__func__", value))
    return f"{getattr(value, '__qualname__', value)!s} at {[id(part) for part in parts]}"


def _copied(graph: Graph) -> Graph:
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _root(inputs: Given, program: Program) -> GraphModule:
    """A graph module without a graph that holds what the program reads."""
    root = GraphModule(torch.nn.Module(), Graph())
    values = {inputs.nodes[i].name: inputs.values[i] for i in inputs.weights}
    for name, value in {**values, **program.constants}.items():
        setattr(root, name, value)
    return root


def _with_inputs(target: GraphModule, inputs: Given) -> GraphModule:
    """The rewritten graph with every input of Dynamo's graph, weights among them, in its order."""
    graph = Graph()
    placed: dict[str, Node] = {}
    for node in inputs.nodes:
        placed[node.name] = graph.placeholder(node.name)
        placed[node.name].meta = dict(node.meta)
    copies: dict[Node, Node] = {}
    for node in target.graph.nodes:
        if node.op in ("placeholder", "get_attr") and node.target in placed:
            copies[node] = placed[str(node.target)]
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta.pop("val", None)
    graph.lint()
    return GraphModule(target, graph)
