"""How a program is called: as its model is, also with a default written out."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from tome_fx import ops
from tome_fx.capturing.containers import PLAIN, check_container, containers_of
from tome_fx.capturing.examples import Example
from tome_fx.errors import ShapeError


def _left_at_default(value: object, captured: object, name: str) -> None:
    # A function of its own: generated code has one name for each object that it calls.
    ops.check_constant(value, captured, name)


class LeftOut:
    """Stands for an input that a call lacks."""


def _was_given(value: object, name: str) -> None:
    if value is None or value is LeftOut:
        how = "None" if value is None else "left out"
        raise ShapeError(
            f"{name} is {how}, but the model was captured with it. For calls without it, transform "
            "the model again without it in its example inputs."
        )


class Calling(_PyTreeCodeGen):
    """A captured call, and parameters of the model that have a default.

    A caller may name those that were left at it; another value than the captured one is refused.
    One that was given, and no None, is refused by its name where a call lacks it. Lists and dicts
    hold as many as they did: what takes them apart would not miss the others. Nothing gathers
    what else a caller names: transformers' Trainer gives more to a ``forward`` that does.
    """

    def __init__(
        self, info: _PyTreeInfo, defaults: Mapping[str, Any], given: Collection[str]
    ) -> None:
        names = [*info.orig_args, *(f"{name}={value!r}" for name, value in defaults.items())]
        super().__init__(info._replace(orig_args=names))
        self.defaults = MappingProxyType(dict(defaults))
        self.containers = MappingProxyType(containers_of(info))
        # None may come before one that must be given.
        self.given = [*itertools.takewhile(lambda name: name in given, reversed(info.orig_args))]

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        """The text of ``forward`` up to its body."""
        text: str = super().gen_fn_def(*args, **kwargs)
        for name in self.given:
            named = re.compile(rf"def forward\([^)]*?\b{re.escape(name)}(?=[,)])")
            text = named.sub(lambda found: f"{found[0]}=LeftOut", text, count=1)
        found = re.search(r"def forward\(.*", text)  # to the end of its line
        end = len(text) if found is None else found.end()
        checks = [f"_was_given({name}, {name!r})" for name in self.given]
        checks += [
            f"check_container({name}, {form!r}, {name!r})" for name, form in self.containers.items()
        ]
        left = [f"_left_at_default({n}, {value!r}, {n!r})" for n, value in self.defaults.items()]
        first, second = ("".join(f"\n    {check}" for check in some) for some in (checks, left))
        return f"{text[:end]}{first}{text[end:]}{second}"

    def additional_globals(self) -> list[tuple[str, Any]]:
        """What the text refers to."""
        functions = (_left_at_default, _was_given, check_container, LeftOut)
        return [*super().additional_globals(), *((one.__name__, one) for one in functions)]


@contextmanager
def spelled_out(model: nn.Module, example: Example) -> Iterator[None]:
    """Within, ``forward`` names what it is given by ``**``.

    torch 2.11 cannot export with dynamic shapes what another name gathers.
    """
    signature, forward = inspect.signature(model.forward), model.forward
    given = signature.bind(*example.args, **dict(example.kwargs)).arguments
    kinds = inspect.Parameter
    named = [p for p in signature.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    gathered = [p for p in signature.parameters.values() if p.kind is kinds.VAR_KEYWORD]
    names = given.get(gathered[0].name, {}) if gathered else {}
    if not names:
        yield
        return

    @functools.wraps(forward)
    def spelled(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    own = [kinds(name, kinds.KEYWORD_ONLY) for name in names]
    spelled.__signature__ = signature.replace(parameters=[*named, *own])  # type: ignore[attr-defined]
    with other_forward(model, spelled):
        yield


@contextmanager
def other_forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """Within, ``module`` has another ``forward``, unless its class has that as a property."""
    own = vars(module).get("forward")
    try:
        module.forward = forward
    except AttributeError:
        yield
        return
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def inputs_of(graph: Graph, example: Example) -> Iterator[tuple[Node, Any]]:
    """The inputs of a program, and what the example holds for each."""
    kwargs, codegen = dict(example.kwargs), graph._codegen
    if isinstance(codegen, _PyTreeCodeGen) and kwargs:
        names = codegen.pytree_info.in_spec.child(1).context
        kwargs = {name: kwargs[name] for name in names}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    yield from zip(inputs, pytree.tree_leaves((example.args, kwargs)), strict=True)


def keep_containers(graph: Graph) -> None:
    """Let ``forward`` of ``graph`` refuse lists and dicts that are others than the captured."""
    info = _call_of(graph)
    if info is not None and containers_of(info):
        graph.set_codegen(Calling(info, {}, ()))


def accept_defaults(graph: Graph, model: nn.Module, given: Mapping[str, Any]) -> None:
    """Let ``forward`` of ``graph`` take the parameters of ``model`` that were not ``given``.

    And refuse by name the optional ones that were, and those that it gathers by ``**``.
    """
    info = _call_of(graph)
    if info is None:
        return
    parameters = inspect.signature(model.forward).parameters
    optional = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    left = {n: d for n, d in optional.items() if type(d) in PLAIN and n not in given}
    own = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    may_lack = optional.keys() | (given.keys() - own)
    needed = [name for name, value in given.items() if name in may_lack and value is not None]
    if left or needed or containers_of(info):
        graph.set_codegen(Calling(info, left, needed))


def _call_of(graph: Graph) -> _PyTreeInfo | None:
    """How a graph is called, where that is by place and by name."""
    codegen = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.in_spec.num_children != 2:
        return None
    return codegen.pytree_info
