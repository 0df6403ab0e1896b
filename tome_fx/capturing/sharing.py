"""Parameters that two modules share, while one of the two is cast or moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from tome_fx.graph.insides import kind_of, parts


@contextmanager
def unshared(module: nn.Module) -> Iterator[None]:
    """Within, ``module`` holds parameters of its own on the same storage.

    ``nn.Module`` casts by writing to ``parameter.data``, which would cast every module that holds
    the parameter, and to ``parameter.grad.data`` likewise. On leaving, a parameter that did not
    change is the shared object again.
    """
    own: dict[nn.Parameter, nn.Parameter] = {}
    for table in _tables(module):
        for name, shared in table.items():
            if shared is None:
                continue
            if shared not in own:
                own[shared] = nn.Parameter(shared.detach(), shared.requires_grad)
                own[shared].grad = None if shared.grad is None else shared.grad.detach()
            table[name] = own[shared]
    try:
        yield
    finally:
        back = {mine: shared for shared, mine in own.items() if _same(mine, shared)}
        for table in _tables(module):
            table.update({n: back[p] for n, p in table.items() if p is not None and p in back})


def _tables(module: nn.Module) -> list[dict[str, nn.Parameter | None]]:
    return [inner._parameters for inner in module.modules()]


def _same(left: nn.Parameter, right: nn.Parameter) -> bool:
    return (
        left.dtype == right.dtype
        and left.device == right.device
        and left.shape == right.shape
        and kind_of(left) == kind_of(right)
        and all(map(_in_one_place, parts(left), parts(right)))
    )


def _in_one_place(left: Tensor, right: Tensor) -> bool:
    return left.is_meta or left.data_ptr() == right.data_ptr()
