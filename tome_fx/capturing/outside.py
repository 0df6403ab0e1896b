"""What code of a model writes to outside of it, a list of features say, is left as it was.

    features: dict[str, Tensor] = {}

    def keep(layer, args, result):
        features["last"] = result

    layer.register_forward_hook(keep)

A capture runs such code a few times, on values of a trace among others.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.closures import content_of, names_in

# So many values are looked at, those first that code is nearest to, and objects within objects.
LIMIT, DEPTH = 10_000, 2
# Others may do more than hold, when they are asked for what they hold.
_TABLES, _ROWS = (dict, OrderedDict, defaultdict), (list, deque, set)
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_DATA = (Tensor, *_SYMBOLIC, int, float, complex, str, bytes, type(None))
_PASSED_BY = (*_DATA, nn.Module, type, ModuleType)
_ABSENT = object()


@contextmanager
def outside_left(model: object) -> Iterator[None]:
    """Within, code of ``model`` may write to what it names; on leaving that holds what it held.

    Lists, tables, sets, attributes of objects and global variables are looked at that functions of
    the model, its parts and its hooks name or hold. What is not data (tensors, numbers, text), and
    what belongs to torch or here, stays as the code leaves it.
    """
    held = [*_held(model)] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for one in held:
            one.restore()


class _Kept(Protocol):
    def restore(self) -> None: ...


@dataclass(frozen=True)
class _Table:
    """Some entries of a table: those that ``before`` has, or has as absent."""

    table: dict[Any, Any]
    before: dict[Any, Any]

    def restore(self) -> None:
        for key, value in self.before.items():
            now = self.table.get(key, _ABSENT)
            if now is value or not _is_data(value if now is _ABSENT else now):
                continue
            if value is _ABSENT:
                del self.table[key]
            else:
                self.table[key] = value


@dataclass(frozen=True)
class _Whole:
    """A table, with the entries that come."""

    table: dict[Any, Any]
    before: dict[Any, Any]

    def restore(self) -> None:
        come = dict.fromkeys((key for key in self.table if key not in self.before), _ABSENT)
        _Table(self.table, {**self.before, **come}).restore()


@dataclass(frozen=True)
class _Row:
    """A list, a queue or a set."""

    row: list[Any] | deque[Any] | set[Any]
    before: list[Any]

    def restore(self) -> None:
        now, known = list(map(id, self.row)), list(map(id, self.before))
        if now == known or not all(_is_data(x) for x in self.row if id(x) not in set(known)):
            return
        self.row.clear()
        if isinstance(self.row, set):
            self.row.update(self.before)
        else:
            self.row.extend(self.before)


def _held(model: nn.Module) -> Iterator[_Kept]:
    waiting, seen = deque((one, 0) for one in _code_on(model)), dict[int, Any]()
    while waiting and len(seen) < LIMIT:
        one, within = waiting.popleft()
        if id(one) in seen or isinstance(one, _PASSED_BY) or _is_of_capture(one):
            continue
        seen[id(one)] = one
        kind, inside = type(one), _inside(one)
        if within and kind in (FunctionType, MethodType):
            continue  # the target of a thread, say, which writes what is its own
        if kind is FunctionType:
            space = one.__globals__
            named = {name: space.get(name, _ABSENT) for name in names_in(one.__code__)}
            yield _Table(space, named)
            inside += [v for v in named.values() if getattr(v, "__globals__", space) is space]
        elif kind in _TABLES:
            yield _Whole(one, dict(one))
        elif kind in _ROWS:
            yield _Row(one, [*one])
        elif not inside and within < DEPTH and _is_somebodys(one):
            waiting.append((vars(one), within + 1))
        waiting += ((value, within) for value in inside)


def _code_on(model: nn.Module) -> Iterator[Any]:
    """The functions of the classes of the parts, and those that were put on a part."""
    kinds = {type(module) for module in model.modules()}
    yield from (function for kind in kinds for function in _functions(kind))
    for module in model.modules():
        for value in vars(module).values():
            for one in value.values() if isinstance(value, dict) else [value]:
                # What is no function comes along in a copy, but for what its code names.
                yield from [one] if isinstance(one, FunctionType) else _functions(type(one))
                if isinstance(one, (MethodType, functools.partial)):
                    yield one.__func__ if isinstance(one, MethodType) else one.func


def _functions(kind: type) -> Iterator[FunctionType]:
    for base in kind.__mro__:
        if not _is_of_capture(base):
            yield from (value for value in vars(base).values() if isinstance(value, FunctionType))


def _inside(one: Any) -> list[Any]:
    """What a function, a method, a table or a row holds."""
    kind = type(one)
    if kind is FunctionType:
        cells = [value for cell in one.__closure__ or () for value in content_of(cell)]
        return [*cells, *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values(), vars(one)]
    if kind is MethodType:
        return [one.__self__, one.__func__]
    if kind is functools.partial:
        return [one.func, one.args, one.keywords]
    if kind in _TABLES:
        return [*one.values()]
    return [*one] if kind in (*_ROWS, tuple, frozenset) else []


def _is_somebodys(one: Any) -> bool:
    """Is it of a class of somebody's own? What a thread says of itself has to stay true."""
    library = str(type(one).__module__).partition(".")[0] in sys.stdlib_module_names
    return hasattr(one, "__dict__") and not library


def _is_of_capture(held: Any) -> bool:
    """Does it belong to what captures, whose notes are of the capture?"""
    # A function may have the name of another one that it wraps.
    function = isinstance(held, FunctionType)
    module = held.__globals__.get("__name__") if function else getattr(held, "__module__", "")
    return str(module).partition(".")[0] in ("torch", "tome_fx")


def _is_data(value: Any) -> bool:
    return all(isinstance(leaf, _DATA) for leaf in pytree.tree_leaves(value))
