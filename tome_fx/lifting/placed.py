"""Tables of places that meet merged tokens behind all sites: a row for each member, or for none.

On the way to a site that is what merging means: a token has one place, one angle. Behind them
nothing follows but a head, which gives each place its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from tome_fx.finding.infer import Types
from tome_fx.lifting.averaging import Averages, Operands
from tome_fx.lifting.behind import Behind, has_totals

OF_A_TABLE = "rows of a table for each place are their representative's in each group"


@dataclass(frozen=True)
class Placed:
    """What decides about such tables in one lift."""

    averages: Averages
    behind: Behind

    def refused(self, user: Node, results: Types) -> str:
        """Why all tokens meet the tables of a call that has some; "" if that costs work behind."""
        never = self.averages.remerge == "never"
        idle = self.behind.are_told_idle(user, results)
        return "it meets a table of what is at each place" if never or idle else ""

    def tables(self, user: Node, operands: Operands, results: Types) -> list[Node]:
        """The tables of a call, unless only rows of tokens are read that stand for no others.

        Beside totals a table has the sums of a group's rows, for sums and products over tokens.
        """
        tables = [
            operands.nodes[path]
            for path in self.averages.represented(user, operands)
            if not has_totals(operands.want[path]) or self.behind.are_told_of_totals(user, results)
        ]
        return tables if tables and self.behind.are_told(user, results) else []
