"""A graph run node by node, with the time and the bytes of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from tome_fx.measuring.machine import synchronize
from tome_fx.profiling.steps import UNREAD
from tome_fx.profiling.traffic import moved


class TimedRun(Interpreter):
    """Runs a graph eagerly and waits for the device before and after each node.

    Attributes:
        seconds: of each node, one entry a pass.
        moved: bytes of each node, see :func:`tome_fx.profiling.traffic.moved`.
    """

    def __init__(self, module: GraphModule, device: torch.device) -> None:
        super().__init__(module)
        self.device = device
        self.seconds: dict[Node, list[float]] = {node: [] for node in module.graph.nodes}
        self.moved: dict[Node, int] = dict.fromkeys(module.graph.nodes, 0)
        self._clock: Callable[[], float] = time.perf_counter

    def run_node(self, n: Node) -> Any:
        """Run one node and note what it took."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        synchronize(self.device)
        start = self._clock()
        result = getattr(self, n.op)(n.target, args, kwargs)
        synchronize(self.device)
        self.seconds[n].append(self._clock() - start)
        if n.op == "call_function":
            read = [value for at, value in enumerate(args) if at != UNREAD.get(n.target)]
            self.moved[n] = moved((read, kwargs), result)
        return result

    def once(self, x: Tensor) -> None:
        """Run the whole graph once."""
        with torch.inference_mode():
            self.run(x, enable_io_processing=False)

    def forget(self) -> None:
        """Drop the times so far: those of a warm-up."""
        for kept in self.seconds.values():
            kept.clear()
