"""How a program is called: as its model is, also with a default written out."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MappingProxyType, MethodType
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from tome_fx.capturing.containers import PLAIN, check_container, containers_of
from tome_fx.capturing.examples import Example
from tome_fx.capturing.unread import LeftOut
from tome_fx.capturing.ways import Ways, was_given

# Names in generated code that no parameter has: what a call names and the model gathers, what
# stands for an argument that it lacks, and who decides.
MORE, LACKED, WAYS = "_tome_fx_more", "_tome_fx_lacked", "_tome_fx_ways"


def _was_given(value: object, name: str) -> None:
    was_given(value, name, (None, LeftOut))


class Calling(_PyTreeCodeGen):
    """A captured call, and what else a caller may name.

    That is parameters of the model that were left at their default, and what it gathers by ``**``:
    where they are others than the captured, :class:`Ways` decides. One that was given, and no None,
    is refused by its name where a call lacks it. Lists and dicts hold as many as they did: what
    takes them apart would not miss the others.

    Args:
        info: the captured call.
        defaults: parameters that were left at their default, with it.
        plain: those that were given a plain value, with that.
        optional: those that were given and that a call of the model may lack, with their default,
            or :class:`LeftOut`.
        gathers: does the model take what it does not name?
    """

    def __init__(
        self,
        info: _PyTreeInfo,
        defaults: Mapping[str, Any] = MappingProxyType({}),
        plain: Mapping[str, Any] = MappingProxyType({}),
        optional: Mapping[str, Any] = MappingProxyType({}),
        gathers: bool = False,
    ) -> None:
        names = [*info.orig_args, *(f"{name}={value!r}" for name, value in defaults.items())]
        super().__init__(info._replace(orig_args=[*names, *([f"**{MORE}"] if gathers else [])]))
        self.ways = Ways({**plain, **defaults}, optional)
        self.gathers = gathers
        self.containers = MappingProxyType(containers_of(info))
        # In a call by place, one in front of those that a call must have is one of them.
        lacked = itertools.takewhile(lambda name: name in optional, reversed(info.orig_args))
        self.lacked = tuple(lacked)
        self.needed = tuple(name for name in self.lacked if name not in plain)

    def returning(self, spec: pytree.TreeSpec) -> Calling:
        """The same call with another result."""
        other = copy.copy(self)
        other.pytree_info = self.pytree_info._replace(out_spec=spec)
        return other

    def anew(self) -> Calling:
        """The same call, for another module to say how else it may be made."""
        other = copy.copy(self)
        other.ways = self.ways.anew()
        return other

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        """The text of ``forward`` up to its body."""
        text: str = super().gen_fn_def(*args, **kwargs)
        for name in self.lacked:
            named = re.compile(rf"def forward\([^)]*?\b{re.escape(name)}(?=[,)])")
            text = named.sub(lambda found: f"{found[0]}={LACKED}", text, count=1)
        found = re.search(r"def forward\(.*", text)  # to the end of its line
        end = len(text) if found is None else found.end()
        checks = [f"_was_given({name}, {name!r})" for name in self.needed]
        checks += [
            f"check_container({name}, {form!r}, {name!r})" for name, form in self.containers.items()
        ]
        names = "".join(f"{name}, " for name in self.ways.captured)
        if names or self.gathers:
            usual = f"{WAYS}.usual(({names}), {MORE if self.gathers else '{}'})"
            checks.append(f"{names}= {usual}" if names else usual)
        return "".join((text[:end], *(f"\n    {check}" for check in checks), text[end:]))

    def additional_globals(self) -> list[tuple[str, Any]]:
        """What the text refers to."""
        named: dict[str, Any] = {"_was_given": _was_given, "check_container": check_container}
        named |= {LACKED: LeftOut, WAYS: self.ways}
        return [*super().additional_globals(), *named.items()]


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
        graph.set_codegen(Calling(info))


def accept_defaults(graph: Graph, model: nn.Module, given: Mapping[str, Any]) -> None:
    """Let ``forward`` of ``graph`` take the parameters of ``model`` that were not ``given``.

    And refuse by name the optional ones that were, and those that it gathers by ``**``.
    """
    info = _call_of(graph)
    if info is None:
        return
    parameters = inspect.signature(model.forward).parameters
    gathers = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    plain = {n: v for n, v in given.items() if type(v) in PLAIN and n in info.orig_args}
    default = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    left = {n: d for n, d in default.items() if type(d) in PLAIN and n not in given}
    own = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    lackable = [n for n in given if n in info.orig_args and (n in default or n not in own)]
    optional = {n: default.get(n, LeftOut) for n in lackable}
    if left or plain or optional or gathers or containers_of(info):
        graph.set_codegen(Calling(info, left, plain, optional, gathers))


def ways_of(graph: Graph) -> Ways | None:
    """How else the program of a graph may be called, if that is known."""
    return graph._codegen.ways if isinstance(graph._codegen, Calling) else None


def hidden(forward: FunctionType) -> None:
    """Let a ``forward`` not tell that it gathers names.

    transformers' Trainer gives more to one that does, and gathering is not what it asks for.
    """
    vars(forward).pop("__signature__", None)
    signature = inspect.signature(forward)
    told = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    forward.__signature__ = signature.replace(parameters=told)  # type: ignore[attr-defined]


def called_so(model: nn.Module, values: Mapping[str, Any]) -> list[None] | None:
    """Let ``forward`` of a copy get ``values`` too, or in place of what it is given.

    Returns:
        What holds something for each call, once there are some; None where ``forward`` is not all
        of the call, or not that of its class.
    """
    hooked = model._forward_hooks or model._forward_pre_hooks
    own = "forward" in vars(model) or type(model).__call__ is not nn.Module.__call__
    if own or hooked or isinstance(model, GraphModule):
        return None
    calls: list[None] = []
    forward = type(model).forward
    signature = inspect.signature(forward)
    kinds = signature.parameters.items()
    named = {name for name, p in kinds if p.kind is not p.VAR_KEYWORD}
    lacked = {name for name, value in values.items() if value is LeftOut}
    others = {name: value for name, value in values.items() if name not in lacked}

    @functools.wraps(forward)
    def called(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments.update({n: value for n, value in others.items() if n in named})
        for name in lacked & named:
            bound.arguments.pop(name, None)
        more = {name: value for name, value in others.items() if name not in named}
        kept = {n: value for n, value in {**bound.kwargs, **more}.items() if n not in lacked}
        return forward(*bound.args, **kept)

    try:
        # A copy of a method is one of the copy.
        model.forward = MethodType(called, model)
    except Exception:  # a property, say
        return None
    return calls


def _call_of(graph: Graph) -> _PyTreeInfo | None:
    """How a graph is called, where that is by place and by name."""
    codegen = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.in_spec.num_children != 2:
        return None
    return codegen.pytree_info
