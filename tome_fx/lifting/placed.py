"""Tables of places that meet merged tokens behind all sites: a row for each member, or for none.

On the way to a site that is what merging means: a token has one place, one angle. Behind them
nothing follows but a head, which gives each place its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from tome_fx.finding.infer import Types
from tome_fx.graph.axes import TensorType, is_extensive
from tome_fx.lifting.averaging import Averages, Operands
from tome_fx.lifting.behind import Behind


@dataclass(frozen=True)
class Placed:
    """What decides about such tables in one lift."""

    averages: Averages
    behind: Behind

    def reason(self, user: Node, operands: Operands, results: Types) -> str:
        """Why all tokens meet a table; "" if none is there, or it costs work behind it."""
        if not self._tables(user, operands, results):
            return ""
        never = self.averages.remerge == "never"
        idle = self.behind.are_told_idle(user, results)
        return "it meets a table of what is at each place" if never or idle else ""

    def made(self, user: Node, operands: Operands, results: Types) -> list[tuple[Node, str]]:
        """The tables of which each group has one row."""
        why = "rows of a table for each place are their representative's in each group"
        return [(table, why) for table in self._tables(user, operands, results)]

    def _tables(self, user: Node, operands: Operands, results: Types) -> list[Node]:
        """Those of which more is read than the rows of tokens that stand for no others.

        Beside totals a table has the sums of a group's rows, for sums and products over tokens.
        """
        tables = [
            operands.nodes[path]
            for path in self.averages.represented(user, operands)
            if not _has_totals(operands.want[path]) or self.behind.are_told_of_totals(user, results)
        ]
        return tables if tables and self.behind.are_told(user, results) else []


def _has_totals(type_: TensorType) -> bool:
    return any(map(is_extensive, type_.axes))
