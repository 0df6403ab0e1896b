"""One of two processes, started by torchrun: ``worker.py CASE``. It exits with 0 if all is well."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tome_fx
from tests.tiny import images, tiny
from tome_fx import pipeline


def train(program: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.AdamW(program.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        program(x).square().mean().backward()
        optimizer.step()


def merging() -> tome_fx.ToMeModule:
    return tome_fx.transform(tiny().double().train(), 2)


def alone(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Weights and outputs of one process that sees the whole batch."""
    fast = merging()
    train(fast, x)
    return [p.detach() for p in fast.parameters()], fast.eval()(x).detach()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def share(x: Tensor) -> Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def ddp(checkpointed: bool = False) -> None:
    x = images(4).double()
    weights, outputs = alone(x)
    fast = merging()
    if checkpointed:
        fast.set_grad_checkpointing()
    wrapped = DistributedDataParallel(fast)
    train(wrapped, share(x))
    for ours, theirs in zip(fast.parameters(), weights, strict=True):
        close(ours.detach(), theirs)
    wrapped.eval()
    close(wrapped(share(x)), share(outputs))


def ddp_of_the_model() -> None:
    """The other way round: the model in DDP is unwrapped, and shares what it learns.

    In training the result would not average gradients.
    """
    x = images(4).double()
    model = tiny().double().train()
    wrapped = DistributedDataParallel(model)
    for whole in (wrapped, torch.compile(wrapped)):
        refused(lambda whole=whole: tome_fx.transform(whole, 2), "averages", "(transform(model.mo")
    assert tome_fx.explain(wrapped, 2).schedule == (2, 2)
    fast = tome_fx.transform(wrapped.eval(), 2)
    train(wrapped.train(), share(x))
    close(fast.eval()(x), tome_fx.transform(model.eval(), 2)(x))


def sharded() -> None:
    x = images(4).double()
    weights, outputs = alone(x)
    fast = merging()
    fast.eval().train()  # capture both modes while the weights are whole
    fully_shard(fast)
    train(fast, share(x))
    for ours, theirs in zip(fast.parameters(), weights, strict=True):
        close(ours.full_tensor().detach(), theirs)
    close(fast.eval()(share(x)), share(outputs))
    fast.r = 1
    assert fast.schedule == (1, 1)
    fast(share(x))


def refused(call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except tome_fx.ConfigError as error:
        text = str(error)
    else:
        raise AssertionError("it was not refused")
    assert all(word in text for word in words), text


def sharded_too_early() -> None:
    fast = merging()
    fully_shard(fast)
    refused(fast.eval, "sharded", ".eval() and .train() once before")
    assert fast.training
    train(fast, share(images(4).double()))  # it still trains
    refused(lambda: fast.set_grad_checkpointing(), "sharded")
    refused(lambda: fully_shard(merging().blocks), "as a whole")
    model = tiny()
    fully_shard(model)
    refused(lambda: tome_fx.transform(model, 2), "then shard the result")


CASES: dict[str, Callable[[], None]] = {
    "ddp": ddp,
    "ddp_checkpointed": lambda: ddp(checkpointed=True),
    "ddp_of_the_model": ddp_of_the_model,
    "sharded": sharded,
    "sharded_too_early": sharded_too_early,
}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pipeline.is_worth_it = lambda report, settings: True  # models of a few tokens save nothing
    dist.init_process_group("gloo")
    try:
        for name in sys.argv[1:] or CASES:
            CASES[name]()
            print(f"{name} is well", flush=True)  # noqa: T201
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
