"""Lists and dicts among the inputs: a program takes them apart, and would not miss the others."""

from __future__ import annotations

from typing import Any

from torch.fx.graph import _PyTreeInfo
from torch.utils import _pytree as pytree

from tome_fx.errors import ShapeError

# Values that code can write out: in a signature, in a call.
PLAIN = (type(None), bool, int, float, str)


def containers_of(info: _PyTreeInfo) -> dict[str, Any]:
    """The lists and dicts among the inputs of a call, by name, with None for what they hold."""
    places, named = info.in_spec.child(0), info.in_spec.child(1)
    specs = [places.child(i) for i in range(places.num_children)]
    found = dict(zip(info.orig_args, specs, strict=False))
    found |= {name: named.child(i) for i, name in enumerate(named.context)}
    forms = ((name, _form(spec)) for name, spec in found.items())
    return {name: form for name, form in forms if form is not None}


def _form(spec: pytree.TreeSpec) -> Any:
    """Lists, tuples as lists, and dicts; None of anything else."""
    if spec.is_leaf():
        return None
    forms = [_form(spec.child(i)) for i in range(spec.num_children)]
    if spec.type in (list, tuple):
        return forms
    if spec.type is dict and all(isinstance(key, PLAIN) for key in spec.context):
        return dict(zip(spec.context, forms, strict=True))
    return None


def check_container(value: Any, form: Any, name: str) -> None:
    """Raise ShapeError where lists and dicts hold more, less or others than in ``form``."""
    if isinstance(form, dict):
        named = hasattr(value, "keys")
        same = named and set(value.keys()) == form.keys()
        found = f"holds {', '.join(map(str, value.keys()))}" if named else ""
        captured = ", ".join(map(str, form))
    else:
        # An output of transformers is a mapping, and read by number too.
        listed = hasattr(value, "__len__") and not isinstance(value, (dict, str))
        listed = listed or hasattr(value, "to_tuple")
        same = listed and len(value) == len(form)
        found, captured = f"has {len(value)}" if listed else "", f"{len(form)}"
    if not same:
        raise ShapeError(
            f"{name} {found or f'is of type {type(value).__name__}'}, but the model was captured "
            f"with {captured}, which the program is for alone. Transform the model again with the "
            "same in its example inputs."
        )
    for key, within in form.items() if isinstance(form, dict) else enumerate(form):
        if within is not None:
            check_container(value[key], within, f"{name}[{key!r}]")
