"""One step with a model, as it is measured: a pass of inference, or forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def step_of(
    run: Callable[[Tensor], Tensor],
    module: nn.Module,
    x: Tensor,
    *,
    train: bool = False,
    amp: torch.dtype | None = None,
) -> Callable[[], object]:
    """A call of ``run``, which is ``module`` or compiled from it, on ``x``.

    Args:
        train: with backward, from the sum of what it returns. Gradients are made anew each time
            and held until the next one.
        amp: the dtype of autocast, or None.
    """

    def forward() -> Tensor:
        with torch.autocast(x.device.type, amp) if amp else contextlib.nullcontext():
            return run(x)

    def infer() -> object:
        with torch.inference_mode():
            return forward()

    def learn() -> None:
        module.zero_grad(set_to_none=True)
        torch.autograd.backward(forward().float().sum())

    return learn if train else infer


@contextlib.contextmanager
def in_mode(module: nn.Module, train: bool) -> Iterator[None]:
    """``module`` in training or not; without gradients and in evaluation behind it."""
    module.train(train)
    try:
        yield
    finally:
        module.zero_grad(set_to_none=True)
        module.eval()
