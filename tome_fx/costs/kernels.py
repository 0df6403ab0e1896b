"""From ops to kernels, roughly as a compiler makes them, and from kernels to time.

Each product is a kernel. Pointwise ops and reductions join the kernel of the latest thing that they
read, or where that is a product the one that reads it already; so a residual add, its norm and a
cast are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node

from tome_fx.costs.hardware import DeviceModel
from tome_fx.costs.work import Op, Value

# In no kernel: what is made of no data.
_NOWHERE = -1


@dataclass(frozen=True)
class Kernel:
    """One kernel: its first op's node, operations in half precision and others, bytes moved."""

    node: Node
    half: int
    single: int
    moved: int

    def seconds(self, device: DeviceModel) -> float:
        return device.seconds(self.half, self.single, self.moved)


def kernels_of(ops: Sequence[Op], apart: Callable[[Node], object]) -> list[Kernel]:
    """The kernels of a program.

    Args:
        ops: in order, as from :func:`tome_fx.costs.work.work_of`.
        apart: ops whose nodes differ in this are never in one kernel, so that each has an owner.
    """
    groups = _groups(ops, apart)
    maker = {value.key: i for i, group in enumerate(groups) for op in group for value in op.writes}
    root = _roots(ops)
    users: dict[int, set[int]] = {}
    for i, group in enumerate(groups):
        for op in group:
            for value in op.reads:
                users.setdefault(root.get(value.key, value.key), set()).add(i)
    return [_kernel(group, i, maker, root, users) for i, group in enumerate(groups)]


def _roots(ops: Sequence[Op]) -> dict[int, int]:
    """For each view the value that it shows."""
    root: dict[int, int] = {}
    for op in ops:
        if op.kind == "view" and op.reads:
            shown = root.get(op.reads[0].key, op.reads[0].key)
            root.update({value.key: shown for value in op.writes if value.key != shown})
    return root


def _groups(ops: Sequence[Op], apart: Callable[[Node], object]) -> list[list[Op]]:
    root = _roots(ops)
    groups: list[list[Op]] = []
    made_in: dict[int, int] = {}
    reader: dict[int, int] = {}  # of a kernel: the first one that reads it
    for op in ops:
        keys = [root.get(value.key, value.key) for value in op.reads]
        if op.kind == "view" or all(made_in.get(key) == _NOWHERE for key in keys):
            # What is made of no data is made again in whatever reads it.
            made_in.update({v.key: _NOWHERE for v in op.writes if op.kind != "view" or not keys})
            continue
        latest = max(made_in.get(key, _NOWHERE) for key in keys)
        if op.kind == "fused" and latest >= 0 and groups[latest][0].kind == "alone":
            latest = reader.get(latest, latest)
        joins = (
            op.kind == "fused"
            and latest >= 0
            and groups[latest][0].kind == "fused"
            and apart(groups[latest][0].node) == apart(op.node)
        )
        if not joins:
            reader.setdefault(latest, len(groups))
            latest = len(groups)
            groups.append([])
        groups[latest].append(op)
        made_in.update({value.key: latest for value in op.writes})
    return groups


def _kernel(
    group: Sequence[Op],
    index: int,
    maker: dict[int, int],
    root: dict[int, int],
    users: dict[int, set[int]],
) -> Kernel:
    def outside(value: Value) -> bool:
        return maker.get(root.get(value.key, value.key)) != index

    read = {root.get(v.key, v.key): v.size for op in group for v in op.reads if outside(v)}
    last = {value.key for value in group[-1].writes}
    written = {
        v.key: v.size
        for op in group
        for v in op.writes
        if v.key in last or users.get(v.key, set()) - {index}
    }
    half = sum(2 * op.macs for op in group if op.half)
    single = sum(2 * op.macs for op in group if not op.half)
    for op in group:
        if op.kind == "fused":  # an operation for each element that it looks at
            single += max(value.count for value in (*op.reads, *op.writes))
    return Kernel(group[0].node, half, single, sum(read.values()) + sum(written.values()))
