"""Functions on a copied model that reach for the original, by a closure say, reach for the copy.

    def patched(attention):
        def forward(x):
            return attention.proj(mix(attention.qkv(x)))  # the original's, also in a copy
        return forward

    for block in model.blocks:
        block.attn.forward = patched(block.attn)

``copy.deepcopy`` takes functions and weak references as they are.
"""

from __future__ import annotations

import dis
import functools
import weakref
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from torch import nn


def bring_along(copied: nn.Module, made: Mapping[int, Any]) -> None:
    """Edit the modules of a copy so that their functions hold what was copied with them.

    Args:
        made: what stands in the copy for an object of the original, by its ``id``.
    """
    moved = _Moved(made)
    moved.note_writes(_held_by(copied))
    for module in copied.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, (dict, list)):
                moved.within(value)
            else:
                new = moved.of(value)
                if new is not value:
                    vars(module)[name] = new


def _held_by(model: nn.Module) -> list[Any]:
    """What the modules have as attributes, and in their tables."""
    values = [value for module in model.modules() for value in vars(module).values()]
    tables = [value for value in values if isinstance(value, dict)]
    return [*values, *(value for table in tables for value in table.values())]


class _Moved:
    """What values are in a copy: themselves, unless they lead to something that was copied."""

    def __init__(self, made: Mapping[int, Any]) -> None:
        self._made = made
        # What an object became, beside the object itself: no other one may get its id.
        self._known: dict[int, tuple[Any, Any]] = {}
        self._written: dict[int, CellType] = {}
        self._spaces: dict[int, dict[str, Any]] = {}

    def note_writes(self, values: list[Any]) -> None:
        """Let cells that functions among the values write to be the copy's own, empty ones too."""
        for function in self._reached(values):
            if type(function) is FunctionType and function.__closure__:
                written = set(_written(function.__code__))
                cells = zip(function.__code__.co_freevars, function.__closure__, strict=True)
                self._written |= {id(cell): cell for name, cell in cells if name in written}

    def within(self, table: dict[Any, Any] | list[Any]) -> None:
        """Edit a table, or a list, that belongs to the copy."""
        for key, value in list(table.items() if isinstance(table, dict) else enumerate(table)):
            new = self.of(value)
            if new is not value:
                table[key] = new

    def of(self, value: Any) -> Any:
        """The value as it is in the copy."""
        if id(value) not in self._known:
            if self._is_copied(value):
                self._known[id(value)] = value, self._made[id(value)]
            elif self._leads_there(value):
                self._known[id(value)] = value, self._anew(value)
            else:
                self._known[id(value)] = value, value
        return self._known[id(value)][1]

    def _is_copied(self, value: Any) -> bool:
        return self._made.get(id(value), value) is not value

    def _leads_there(self, value: Any) -> bool:
        passed = []
        for one in self._reached([value]):
            known = self._known.get(id(one), (one, one))[1]
            if known is not one or self._is_copied(one) or id(one) in self._written:
                return True
            passed.append(one)
        self._known |= {id(one): (one, one) for one in passed}
        return False

    def _reached(self, values: list[Any]) -> Iterator[Any]:
        """The values, and all that they lead to."""
        waiting, seen = [*values], dict[int, Any]()
        while waiting:
            one = waiting.pop()
            if id(one) not in seen:
                seen[id(one)] = one
                yield one
                waiting += self._inside(one) if id(one) not in self._known else []

    def _inside(self, value: Any) -> list[Any]:
        kind = type(value)
        if kind is FunctionType:
            defaults = [value.__defaults__, value.__kwdefaults__, *vars(value).values()]
            return [*(value.__closure__ or ()), *defaults, *self._globals(value).values()]
        if kind is CellType:
            return _content(value)
        if kind is MethodType:
            return [value.__self__, value.__func__]
        if kind is weakref.ref:
            # Nobody else would hold another function that it is of.
            return [value()] if self._is_copied(value()) else []
        if kind is functools.partial:
            return [value.func, value.args, value.keywords]
        if kind is dict:
            return [*value.values()]
        return [*value] if kind in (list, tuple, set) else []

    def _anew(self, value: Any) -> Any:
        kind = type(value)
        if kind is FunctionType:
            return self._function(value)
        if kind is MethodType:
            return MethodType(self.of(value.__func__), self.of(value.__self__))
        if kind is weakref.ref:
            return weakref.ref(self.of(value()))
        if kind is functools.partial:
            func, args, keywords = map(self.of, (value.func, value.args, value.keywords))
            return functools.partial(func, *args, **keywords)
        if kind in (dict, list):
            own: dict[Any, Any] | list[Any] = kind(value)
            self._known[id(value)] = value, own  # it may hold itself
            self.within(own)
            return own
        return kind(map(self.of, value))

    def _function(self, function: FunctionType) -> FunctionType:
        """The same code with cells of its own, where what they hold was copied or is written."""
        cells = function.__closure__ or ()
        own = tuple(map(self._cell, cells))
        others = {name: self.of(value) for name, value in self._globals(function).items()}
        space = self._space(function.__globals__, others)
        twin = FunctionType(function.__code__, space, function.__name__, None, own)
        self._known[id(function)] = function, twin  # it may hold itself
        for cell, mine in zip(cells, own, strict=True):
            for content in _content(cell) if mine is not cell else ():
                mine.cell_contents = self.of(content)
        twin.__defaults__ = self.of(function.__defaults__)
        twin.__kwdefaults__ = self.of(function.__kwdefaults__)
        twin.__dict__.update({name: self.of(value) for name, value in vars(function).items()})
        twin.__qualname__, twin.__doc__ = function.__qualname__, function.__doc__
        twin.__module__, twin.__annotations__ = function.__module__, function.__annotations__
        return twin

    def _space(self, held: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        """One for all functions of a module that name what was copied."""
        if others:
            own: dict[str, Any] = self._spaces.setdefault(id(held), {**held})
            own.update(others)
            return own
        return held

    def _cell(self, cell: CellType) -> CellType:
        """One for all functions that share the cell; empty, where it is another one."""
        if id(cell) not in self._known:
            self._known[id(cell)] = cell, CellType() if self._leads_there(cell) else cell
        mine: CellType = self._known[id(cell)][1]
        return mine

    def _globals(self, function: FunctionType) -> dict[str, Any]:
        """What has a global name in the code of a function, and was copied with the model."""
        known = function.__globals__
        named = {name: known[name] for name in _names(function.__code__) if name in known}
        return {name: value for name, value in named.items() if self._is_copied(value)}


def _content(cell: CellType) -> list[Any]:
    """What is in a cell, if anything is yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _written(code: CodeType) -> Iterator[str]:
    """The names of other scopes that code, and that of the functions in it, assigns to."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars:
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from (name for name in _written(constant) if name in code.co_freevars)


def _names(code: CodeType) -> Iterator[str]:
    """The names in code, and in that of the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
