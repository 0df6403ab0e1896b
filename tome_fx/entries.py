"""A list that was asked for, and is changed by asking for another one."""

from __future__ import annotations

from typing import Any, NoReturn

from tome_fx.errors import ConfigError


class Entries(list[Any]):
    """``r`` with a number for each layer. A program is planned where ``r`` is assigned, once."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError(
            f"r={self!r} is planned already: a change of its entries would do nothing. Assign a "
            "whole list: fast.r = [*fast.r[:-1], 0], say."
        )

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def __reduce__(self) -> tuple[type[Entries], tuple[list[Any]]]:
        return Entries, (list(self),)
