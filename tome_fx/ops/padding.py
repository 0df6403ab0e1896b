"""What a mask tells apart: padding from tokens, and tokens that see others from each other."""

from __future__ import annotations

import torch
from torch import Tensor

from tome_fx.ops.placing import permuted
from tome_fx.ops.plan import MergePlan

# A bias larger than this hides nothing.
HIDDEN = -1e3
# Similarities are 1 at most, and -2 for a NaN. Below all of these stand pairs that see each other
# and not the same others, then pairs of padding, then tokens that do not see each other: what each
# loses. In each the likest are first.
_UNLIKE, _PADDING, _UNSEEN = 4.0, 8.0, 12.0
# Odd: digits of the golden ratio, and of the roots of 2, 3 and 5.
_FACTORS = (-0x61C8864680B583EB, 0x6A09E667F3BCC909, 0x3B67AE8584CAA73B, 0x3C6EF372FE94F82B)


def shown(mask: Tensor, hides: bool = False) -> Tensor:
    """Which keys a mask shows: a boolean mask from a boolean or an additive one.

    Args:
        mask: of any shape; an additive one hides what it lowers by more than a logit could be.
        hides: a boolean mask is True where it hides.
    """
    if mask.dtype == torch.bool:
        return ~mask if hides else mask
    return mask >= HIDDEN


def seen(pairs: Tensor) -> Tensor:
    """Which tokens are no padding: ``[B, N]`` from a mask ``[B, queries, N]``, True where one sees.

    What no other token sees is padding. Two things are written so that no row is empty and say
    nothing: a diagonal that is visible for all, and a row that is visible whole where others are
    not, of a padded query: one that those others do not see.
    """
    whole = pairs.all(2, keepdim=True)
    told = pairs & ~(whole & ~whole.all(1, keepdim=True))
    pairs = told | (whole & _by_others(told)[:, :, None])
    own = pairs.diagonal(dim1=1, dim2=2)
    return _by_others(pairs) | (own & ~own.all(1, keepdim=True))


def _by_others(pairs: Tensor) -> Tensor:
    """Which tokens another one sees."""
    return (pairs & ~_diagonal(pairs)).any(1)


def kinds(pairs: Tensor) -> Tensor:
    """A number for what each token sees and is seen by: ``[B, N]`` int64 from such a mask.

    Tokens of the same kind see each other, see the same others and are seen by the same: sums of
    hashed places, which two different rows have in common next to never. Runtimes may sum whole
    numbers as floats, so a place has 40 bits.
    """
    whole = (pairs | _diagonal(pairs)).long()
    number = torch.arange(2 * pairs.shape[2], device=pairs.device)
    seeing, seen_by = torch.chunk(_hashed(number) % 2**40, 2)
    sees, is_seen = (whole * seeing).sum(2), (whole * seen_by[:, None]).sum(1)
    return _hashed(sees) + is_seen


def patterns(shows: Tensor) -> Tensor:
    """A number for the views that show a token: ``[B, N]`` int64 from ``[B, V, N]``, as kinds."""
    number = torch.arange(1, shows.shape[1] + 1, device=shows.device)
    return (shows.long() * (_hashed(number) % 2**40)[:, None]).sum(1)


def in_view(keys: Tensor, shows: Tensor) -> Tensor:
    """Keys ``[B, H, N, C]``, 0 where ``shows`` ``[B, V, N]`` hides them: ``H`` holds each view."""
    times = keys.shape[1] // shows.shape[1]
    return torch.where(shows.repeat_interleave(times, dim=1)[..., None], keys, 0.0)


def both(one: Tensor, other: Tensor) -> Tensor:
    """Kinds ``[B or 1, N]`` of tokens that are of the same one by two of them."""
    return _hashed(one) + other


def _diagonal(pairs: Tensor) -> Tensor:
    place = torch.arange(pairs.shape[2], device=pairs.device)
    return place[:, None] == place


def _hashed(number: Tensor) -> Tensor:
    """Well mixed, by products of int64 that wrap around alone: other runtimes have no more.

    ``x (2 x + 1)`` is the permutation of RC6 (Rivest et al., 1998); odd factors between them.
    """
    for factor in _FACTORS:
        number = number * (2 * number + 1) * factor + factor
    return number


def _sides(row: Tensor, parity: int, front: int, back: int) -> tuple[Tensor, Tensor]:
    """A value of each token as ``[B, |A|, 1]`` and ``[B, 1, |B|]``."""
    stream = row[:, front : row.shape[1] - back]
    return stream[:, parity::2, None], stream[:, None, 1 - parity :: 2]


def prefer_alike(
    scores: Tensor,
    kinds: Tensor,
    parity: int = 0,
    front: int = 0,
    back: int = 0,
    pairs: Tensor | None = None,
) -> Tensor:
    """Scores in which pairs of two kinds come behind all of one kind.

    Args:
        scores: ``[B, |A|, |B|]`` of the stream.
        kinds: ``[B or 1, N]`` on its axis, as :func:`keep_apart` has them.
        pairs: ``[B or 1, N, N]``, which token sees which; those of two kinds that do not see each
            other come behind those that do.
    """
    one, other = _sides(kinds, parity, front, back)
    lost: Tensor | float = _UNSEEN
    if pairs is not None:
        stop = pairs.shape[2] - back
        stream = pairs[:, front:stop, front:stop]
        sees = stream[:, parity::2, 1 - parity :: 2]
        is_seen = stream[:, 1 - parity :: 2, parity::2].transpose(1, 2)
        lost = torch.where(sees | is_seen, _UNLIKE, _UNSEEN)
    return torch.where(one == other, scores, scores - lost)


def keep_apart(
    scores: Tensor,
    visible: Tensor,
    parity: int = 0,
    front: int = 0,
    back: int = 0,
    kinds: Tensor | None = None,
    pairs: Tensor | None = None,
) -> Tensor:
    """Scores in which padding never pairs with what is visible, and with padding comes last.

    Before it come pairs of tokens that are seen and see each other, as where there is no padding.

    Args:
        scores: ``[B, |A|, |B|]`` of the stream.
        visible: ``[B, N]`` on its axis, ``front`` protected tokens before and ``back`` behind it.
        kinds: ``[B or 1, N]``; tokens of different kinds merge only when no others are left.
        pairs: ``[B or 1, N, N]``, as for :func:`prefer_alike`.
    """

    left, right = _sides(visible, parity, front, back)
    likeness = scores
    if kinds is not None:
        scores = prefer_alike(scores, kinds, parity, front, back, pairs)
    padding = torch.where(left | right, float("-inf"), likeness - _PADDING)
    return torch.where(left & right, scores, padding)


def padding_last(
    plan: MergePlan, visible: Tensor, front: int = 0, back: int = 0, onehot: bool = False
) -> MergePlan:
    """The same groups with those of padding behind the others, which keep their order.

    So the tokens of an image stand, and fall into A and B, as they do without any padding.
    """
    shows = visible[:, front : visible.shape[1] - back].gather(1, plan.keep).long()
    hidden = 1 - shows
    first, last = shows.cumsum(1) - 1, hidden.cumsum(1) - 1
    place = torch.where(shows.bool(), first, shows.sum(1, keepdim=True) + last)
    keep = permuted(place, plan.keep, onehot)
    return MergePlan(keep, plan.src, place.gather(1, plan.dst))
