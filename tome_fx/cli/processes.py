"""One run shared out over the processes that torchrun starts, or over this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is. The first one speaks and writes for all."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Processes:
        """Read what torchrun sets; one process where nothing is set."""
        rank, world, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        return cls(rank, world, local) if world > 1 else cls()

    @property
    def first(self) -> bool:
        """Is this the process that prints and writes?"""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device of this process: `cuda` is the GPU that torchrun means it to have."""
        return f"cuda:{self.local_rank}" if self.world > 1 and name == "cuda" else name

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes; counts below 2**53 are exact."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with _quiet_when_another_fails():
            dist.all_reduce(sums)
        return [float(value) for value in sums]

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Run the block in the first process, then in the others.

        So weights are fetched once, and what is wrong with the input is told once.
        """
        if not self.first:
            self._wait()
        yield
        if self.first:
            self._wait()

    def _wait(self) -> None:
        if self.world > 1:
            with _quiet_when_another_fails():
                dist.barrier()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started, until the block ends.

    The backend is gloo also for GPUs: all that travels is a row of sums on the CPU.
    """
    processes = Processes.from_environment()
    if processes.world == 1:
        yield processes
        return
    dist.init_process_group("gloo")
    try:
        yield processes
    finally:
        dist.destroy_process_group()


@contextmanager
def _quiet_when_another_fails() -> Iterator[None]:
    """End without a word where a connection breaks: the process that failed has said why."""
    try:
        yield
    except RuntimeError:
        raise SystemExit(1) from None
