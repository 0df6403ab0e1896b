"""How a program is called: as its model is, also with a default written out."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from tome_fx import ops
from tome_fx.capturing.examples import Example

_PLAIN = (type(None), bool, int, float, str)


def _left_at_default(value: object, captured: object, name: str) -> None:
    # A function of its own: generated code has one name for each object that it calls.
    ops.check_constant(value, captured, name)


class Calling(_PyTreeCodeGen):
    """A captured call, and parameters of the model that were left at their defaults there.

    A caller may name those; another value than the captured one is refused. One that was given
    there and is left out has the model's default, which is refused by its name then.
    """

    def __init__(
        self, info: _PyTreeInfo, defaults: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        names = [*info.orig_args, *(f"{name}={value!r}" for name, value in defaults.items())]
        super().__init__(info._replace(orig_args=names))
        self.defaults = MappingProxyType(dict(defaults))
        # None may come before one that must be given.
        last = itertools.takewhile(lambda name: name in given, reversed(info.orig_args))
        self.given = MappingProxyType({name: given[name] for name in last})

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        """The text of ``forward`` up to its body."""
        text: str = super().gen_fn_def(*args, **kwargs)
        for name, value in self.given.items():  # from the last: no brackets come before it
            named = re.compile(rf"(def forward\([^)]*\b{re.escape(name)})(?=[,)])")
            found = named.search(text)
            if found is not None:
                text = f"{text[: found.end()]}={value!r}{text[found.end() :]}"
        checks = (
            f"\n    _left_at_default({name}, {value!r}, {name!r})"
            for name, value in self.defaults.items()
        )
        return text + "".join(checks)

    def additional_globals(self) -> list[tuple[str, Any]]:
        """What the text refers to."""
        return [*super().additional_globals(), ("_left_at_default", _left_at_default)]


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


def accept_defaults(graph: Graph, model: nn.Module, given: set[str]) -> None:
    """Let ``forward`` of ``graph`` take the parameters of ``model`` that were not ``given``."""
    codegen = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.in_spec.num_children != 2:
        return
    plain = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if isinstance(parameter.default, _PLAIN)
    }
    left = {name: default for name, default in plain.items() if name not in given}
    if plain:
        graph.set_codegen(Calling(codegen.pytree_info, left, plain))
