"""What somebody put on a module since it was made: hooks, tensors, modules, attributes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tome_fx.graph.segments import PREFIX

_TABLES = ("_parameters", "_buffers", "_modules")
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
# Of each module itself, not of who uses it; what is compiled or wrapped is of the one that was.
_OWN = ("training", "meta", "_compiled_call_impl", "forward")


def constants_of(training: bool) -> str:
    """How the names begin that the constants of a captured program have on a result."""
    return f"_{'train' if training else 'eval'}_constant_"


# Of programs: copies have their own.
_MADE = (constants_of(True), constants_of(False), PREFIX)


@dataclass(frozen=True)
class Born:
    """The names of the attributes that a module was made with, and of its tensors and modules."""

    attributes: frozenset[str]
    entries: frozenset[str]


@dataclass(frozen=True)
class Extras:
    """Attributes and hooks by name, and what stands in each table beside what was born there."""

    attributes: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, Any]]
    passing: frozenset[str]


def born(module: nn.Module) -> Born:
    """What a module has as it was made."""
    entries = frozenset(name for table in _TABLES for name in getattr(module, table))
    return Born(frozenset({*vars(module), "_born"}), entries)


def extras_of(module: nn.Module, before: Born) -> Extras:
    """What was put on it since: on itself, not on its parts."""
    attributes = {
        name: copy.copy(value) if name in _HOOKS else value
        for name, value in vars(module).items()
        if name in _HOOKS or not (name in _OWN or _is_born(name, value, before))
        if getattr(value, "__self__", None) is not module
    }
    tables = {
        table: {
            name: value
            for name, value in getattr(module, table).items()
            if name not in before.entries and not name.startswith(_MADE)
        }
        for table in _TABLES
    }
    passing = module._non_persistent_buffers_set & tables["_buffers"].keys()
    return Extras(attributes, tables, frozenset(passing))


def _is_born(name: str, value: Any, before: Born) -> bool:
    """Is it of the module's own making? Plain data that people read they may also change."""
    return name in before.attributes and (name.startswith("_") or callable(value))


def put(module: nn.Module, extras: Extras) -> None:
    """Put extras on a module that was made as theirs was."""
    vars(module).update(extras.attributes)
    for table, values in extras.tables.items():
        getattr(module, table).update(values)
    module._non_persistent_buffers_set.update(extras.passing)
