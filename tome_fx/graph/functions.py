"""Functions that go on as others."""

from __future__ import annotations

from types import FunctionType


def rewritten(function: FunctionType, like: FunctionType) -> FunctionType:
    """``function`` itself, with the code of ``like``; neither has free variables.

    A call that is running goes on with the code that it began with: what that reads stays.
    """
    if function is not like:
        function.__globals__.update(like.__globals__)
        for name in ("__code__", "__defaults__", "__kwdefaults__", "__annotations__", "__doc__"):
            setattr(function, name, getattr(like, name))
    return function
