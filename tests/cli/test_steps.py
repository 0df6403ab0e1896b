"""One step with a model as benchmarks time it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tome_fx.cli.steps import in_mode, step_of


def test_a_step_of_training_leaves_its_own_gradients_alone() -> None:
    module, x = nn.Linear(3, 2).eval(), torch.ones(4, 3)
    with in_mode(module, True):
        assert module.training
        step = step_of(module, module, x, train=True)
        step()
        step()
        assert module.weight.grad is not None
        assert torch.equal(module.weight.grad, torch.full((2, 3), 4.0)), "of one step, not of two"
    assert not module.training
    assert module.weight.grad is None


def test_a_step_of_inference_records_nothing() -> None:
    module, x, seen = nn.Linear(3, 2), torch.ones(4, 3), list[Tensor]()

    def run(x: Tensor) -> Tensor:
        seen.append(module(x))
        return seen[-1]

    step_of(run, module, x)()
    step_of(run, module, x, amp=torch.bfloat16)()
    assert [out.dtype for out in seen] == [torch.float32, torch.bfloat16]
    assert all(out.is_inference() for out in seen)
    assert module.weight.grad is None
