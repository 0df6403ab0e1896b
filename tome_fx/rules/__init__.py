"""What each op does to token axes: one small rule per op family, in a table anyone can extend."""

from tome_fx.rules.base import Builder as Builder
from tome_fx.rules.base import Context as Context
from tome_fx.rules.base import Lifted as Lifted
from tome_fx.rules.base import Refusal as Refusal
from tome_fx.rules.base import Rule as Rule
from tome_fx.rules.base import as_intensive as as_intensive
from tome_fx.rules.base import one as one
from tome_fx.rules.table import RULES as RULES
from tome_fx.rules.table import rule_for as rule_for
