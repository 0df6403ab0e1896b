"""What was found and done, as data; printed as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """One attention block: where it is, its tokens (the protected ones included), its MACs."""

    index: int
    attention: str
    mlp: str
    kind: str
    tokens_in: int
    tokens_out: int
    removed: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class Protected:
    """Tokens that never merge: how many, at which end, and why."""

    count: int
    where: str
    reason: str


@dataclass(frozen=True)
class Unmerge:
    """A place where merged tokens took their old number again, and what it costs.

    ``op`` is the op that wanted it; ``kind`` is ``unmerge``, or ``merge`` where values that an op
    told apart were averaged again.
    """

    op: str
    module: str
    source: str
    reason: str
    bytes_per_image: int
    kind: str = "unmerge"


@dataclass(frozen=True)
class NearMiss:
    """Something that looks like a place to merge and is none, with the reason."""

    what: str
    module: str
    source: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The account of one transform; ``str()`` is a table, :meth:`to_dict` is JSON-able.

    MACs are multiply-accumulates per image. ``macs_matching`` is the part of ``macs_after`` that
    the matching itself costs.
    """

    model: str
    capture: str
    r: Any
    schedule: tuple[int, ...]
    blocks: tuple[Block, ...]
    protected: tuple[Protected, ...]
    macs_before: int
    macs_after: int
    macs_matching: int
    unmerges: tuple[Unmerge, ...]
    near_misses: tuple[NearMiss, ...]
    notes: tuple[str, ...]

    @property
    def flop_ratio(self) -> float:
        """How many times fewer MACs: the limit of the speed-up."""
        return self.macs_before / self.macs_after if self.macs_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return {**asdict(self), "flop_ratio": self.flop_ratio}

    def __str__(self) -> str:
        from tome_fx.table import render

        return render(self)
