"""Contractions: ``matmul``, ``bmm``, ``mm``, ``baddbmm``, ``addmm``, ``einsum``.

Every one is written as letters, so that one rule serves all: letters of two operands that agree
are one axis; a letter that the result lacks is contracted. Contracting tokens sums over members:
right as it stands if exactly one operand holds group totals (a softmax over the keys), else one
operand is scaled by the group sizes, or divided by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Origin,
    TensorType,
    batch_axis,
    extensive,
    extent,
    has_batch,
    has_stream,
    intensive,
    is_extensive,
    is_merged_axis,
    token_factor,
)
from tome_fx.graph.frames import meet_in_frames
from tome_fx.graph.unify import unify
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, one
from tome_fx.rules.local import demands, with_batch

# Products whose operands may get one more axis: by broadcasting, or by one more letter.
_GROWING = ("aten.matmul", "aten.einsum")


class Letters(NamedTuple):
    """Names of the axes of both operands and of the result, one letter an axis."""

    left: str
    right: str
    result: str


def matmul(context: Context) -> Lifted | Refusal:
    """``matmul``, ``bmm``, ``mm``, ``mv``: rows times columns, leading axes broadcast."""
    (left_path, left), (right_path, right) = list(context.types.items())[-2:]
    return contract(context, (left_path, right_path), matmul_letters(left.rank, right.rank))


def matmul_letters(left: int, right: int) -> Letters:
    """The letters of a matmul of operands with these ranks."""
    lead = "abcdefgh"
    rows = "i" if left > 1 else ""
    columns = "j" if right > 1 else ""
    wide = max(left - 2, right - 2, 0)
    left_lead = lead[wide - max(left - 2, 0) : wide]
    right_lead = lead[wide - max(right - 2, 0) : wide]
    return Letters(left_lead + rows + "k", right_lead + "k" + columns, lead[:wide] + rows + columns)


def added_matmul(context: Context) -> Lifted | Refusal:
    """``baddbmm`` and ``addmm``: a matmul plus a term that broadcasts against it."""
    names = ("batch1", "batch2") if "batch1" in context.types else ("mat1", "mat2")
    ranks = context.types[names[0]].rank, context.types[names[1]].rank
    product = contract(context, names, matmul_letters(*ranks))
    if isinstance(product, Refusal) or product.build is not None:
        return product if isinstance(product, Refusal) else Refusal("it adds to a sum over tokens")
    result = as_intensive(product.results[0])
    if result != product.results[0]:
        return Refusal("it adds to group totals")
    added = demands({"self": context.types["self"]}, result)
    return one(result, operands={**product.operands, **added})


def einsum(context: Context) -> Lifted | Refusal:
    """``einsum`` of two operands without repeated letters in one of them."""
    letters = einsum_letters(context.call["equation"], [t.rank for t in context.types.values()])
    if letters is None:
        return Refusal("this form of einsum is not known")
    left, right = context.types
    return contract(context, (left, right), letters)


def distances(context: Context) -> Lifted | Refusal:
    """``cdist``: rows against rows over their channels, as a product, but linear in neither."""
    letters = distance_letters(*(type_.rank for type_ in context.types.values()))
    types = {path: as_intensive(type_) for path, type_ in context.types.items()}
    if any(has_stream(type_.axes[-1]) for type_ in types.values()):
        return Refusal("it takes distances over tokens")
    first, second = types
    return contract(replace(context, types=types), (first, second), letters)


def distance_letters(left: int, right: int) -> Letters:
    """The letters of a cdist of operands with these ranks."""
    letters = matmul_letters(left, right)
    return Letters(letters.left, letters.right[:-2] + letters.right[:-3:-1], letters.result)


def einsum_letters(equation: str, ranks: list[int]) -> Letters | None:
    """The letters of an einsum equation, an ellipsis spelled out; None if it is not a product."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or len(ranks) != 2:
        return None
    spare = [c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in equation]
    lead = [
        max(rank - len(term.replace("...", "")), 0) for term, rank in zip(terms, ranks, strict=True)
    ]
    dots = "".join(spare[: max(lead)])[::-1]
    wide = [
        term.replace("...", dots[len(dots) - n :]) if "..." in term else term
        for term, n in zip(terms, lead, strict=True)
    ]
    if not arrow:
        once = sorted(c for c in set("".join(wide)) - set(dots) if "".join(wide).count(c) == 1)
        result = "..." + "".join(once)
    full = result.replace("...", dots)
    if any(len(set(term)) != len(term) for term in (*wide, full)):
        return None
    return Letters(wide[0], wide[1], full)


def contract(context: Context, paths: tuple[str, str], letters: Letters) -> Lifted | Refusal:
    """The rule for any product of two operands written in letters."""
    left, right = (context.types[path] for path in paths)
    if len(letters.left) != left.rank or len(letters.right) != right.rank:
        return Refusal("its letters do not fit its operands")
    axes: dict[str, Axis] = {}
    for letter in dict.fromkeys(letters.left + letters.right):
        axis = _shared(left, right, letters, letter)
        if axis is None:
            return Refusal("its operands hold different tokens on one axis")
        axes[letter] = axis
    summed = [c for c in axes if c not in letters.result]
    if any(has_batch(axes[c]) for c in summed):
        return Refusal("it sums over images")
    if not all(_meet(left, right, letters, c) for c in summed):
        return Refusal("it sums over tokens of other frames, and each has groups of its own")
    result = TensorType(tuple(_kind_of(left, right, letters, c, axes[c]) for c in letters.result))
    result = TensorType(tuple(_channel(context, i, axis) for i, axis in enumerate(result.axes)))
    wanted = _operands(context, paths, letters, axes)
    if isinstance(wanted, Refusal):
        return wanted
    for letter in summed:
        problem = _weigh(context, wanted, paths, letters, letter)
        if problem is not None:
            return problem
    return one(result, operands=wanted, arguments=_respelled(context, paths, letters, wanted, axes))


def _meet(left: TensorType, right: TensorType, letters: Letters, letter: str) -> bool:
    """Do tokens that are summed over meet those of their own frames alone?"""
    both = [c for c in letters.left if c in letters.right]
    axes = {c: (left.axes[letters.left.index(c)], right.axes[letters.right.index(c)]) for c in both}
    return letter not in axes or meet_in_frames(*axes[letter], axes.values())


def _respelled(
    context: Context,
    paths: tuple[str, str],
    letters: Letters,
    wanted: dict[str, TensorType],
    axes: dict[str, Axis],
) -> dict[str, str]:
    """An einsum's equation with a letter for the images of a table that got an axis for them."""
    grown = [wanted[path].rank - context.types[path].rank for path in paths]
    if not any(grown):
        return {}
    batch = next(c for c in axes if has_batch(axes[c]))
    left, right = (batch * more + names for more, names in zip(grown, letters[:2], strict=True))
    return {"equation": f"{left},{right}->{letters.result}"}


def _shared(left: TensorType, right: TensorType, letters: Letters, letter: str) -> Axis | None:
    here = [
        type_.axes[names.index(letter)]
        for type_, names in ((left, letters.left), (right, letters.right))
        if letter in names
    ]
    wide = [axis for axis in here if extent(axis) != 1] or here[:1]
    return wide[0] if len(wide) == 1 else unify(*wide)


def _kind_of(
    left: TensorType, right: TensorType, letters: Letters, letter: str, axis: Axis
) -> Axis:
    """A product is linear in each factor: a total along a kept axis stays a total."""
    kinds = [
        is_extensive(type_.axes[names.index(letter)])
        for type_, names in ((left, letters.left), (right, letters.right))
        if letter in names
    ]
    # Two totals on one kept axis are brought to members first (see _operands).
    return extensive(axis) if kinds.count(True) == 1 else intensive(axis)


def _channel(context: Context, place: int, axis: Axis) -> Axis:
    """A parameter's axis in the result of a product is an output channel."""
    fixed = [f for f in axis if isinstance(f, Atom) and f.origin.kind == "constant"]
    if not axis or len(fixed) != len(axis):
        return axis
    return (Atom(extent(axis), Origin("channel", context.call.node.name, (place,))),)


def _operands(
    context: Context, paths: tuple[str, str], letters: Letters, axes: dict[str, Axis]
) -> dict[str, TensorType] | Refusal:
    """Each operand with the shared axes put in; two totals on one kept axis become members."""
    wanted: dict[str, TensorType] = {}
    frame = TensorType(tuple(axes[c] for c in letters.result))
    for path, names in zip(paths, (letters.left, letters.right), strict=True):
        type_ = context.types[path]
        row = [_met(axis, axes[c]) for axis, c in zip(type_.axes, names, strict=True)]
        brought = TensorType(tuple(row))
        if brought != type_:
            # A table that merges with its tokens differs from image to image.
            images = next((axis for axis in axes.values() if has_batch(axis)), None)
            if context.call.name != "aten.einsum":
                brought = with_batch(brought, frame)
            elif images is not None and batch_axis(brought) is None and images not in row:
                brought = TensorType((images, *row))
            if brought.rank != type_.rank and context.call.name not in _GROWING:
                return Refusal("a table of its tokens has no axis for the images")
        wanted[path] = brought
    for letter in (c for c in letters.result if c in letters.left and c in letters.right):
        holders = _holders(wanted, paths, letters, letter)
        if all(is_extensive(wanted[path].axes[place]) for path, place in holders):
            for path, place in holders:
                wanted[path] = _replace(wanted[path], place, intensive)
    return wanted


def _met(axis: Axis, target: Axis) -> Axis:
    """A plain axis that meets merged tokens is about them."""
    meets = is_merged_axis(target) and extent(axis) != 1 and not has_stream(axis)
    return intensive(target) if meets else axis


def _holders(
    wanted: dict[str, TensorType], paths: tuple[str, str], letters: Letters, letter: str
) -> list[tuple[str, int]]:
    """Path and axis of each operand that has the letter; axes put in front are counted."""
    row = []
    for path, names in zip(paths, (letters.left, letters.right), strict=True):
        if letter in names:
            row.append((path, wanted[path].rank - len(names) + names.index(letter)))
    return row


def _replace(type_: TensorType, place: int, change: Callable[[Axis], Axis]) -> TensorType:
    axis = change(type_.axes[place])
    return TensorType((*type_.axes[:place], axis, *type_.axes[place + 1 :]))


def _weigh(
    context: Context,
    wanted: dict[str, TensorType],
    paths: tuple[str, str],
    letters: Letters,
    letter: str,
) -> Refusal | None:
    """Bring the operands of a sum over tokens to one total and one member value."""
    holders = _holders(wanted, paths, letters, letter)
    axes = [wanted[path].axes[place] for path, place in holders]
    if not any(map(has_stream, axes)):
        return None
    own = [has_stream(a) for p in paths for a in _axis(context, p, paths, letters, letter)]
    if not all(own):
        merged = any(map(is_merged_axis, axes))
        return Refusal("it mixes tokens by a weight for each position") if merged else None
    if any(token_factor(axis) is None for axis in axes):
        return Refusal("it sums over tokens for each of other tokens")
    # What one operand has alone is summed as it stands, else one of both weighs the other.
    totals = [holder for holder, axis in zip(holders, axes, strict=True) if is_extensive(axis)]
    if len(totals) != 1:
        path, place = holders[1] if totals else holders[0]
        wanted[path] = _replace(wanted[path], place, intensive if totals else extensive)
    return None


def _axis(
    context: Context, path: str, paths: tuple[str, str], letters: Letters, letter: str
) -> list[Axis]:
    """The axis that an operand itself has for a letter, as a list of one or none."""
    names = letters.left if path == paths[0] else letters.right
    return [context.types[path].axes[names.index(letter)]] if letter in names else []
