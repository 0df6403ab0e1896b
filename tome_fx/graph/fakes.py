"""A graph run on tensors of given sizes without values: shapes and dtypes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map_only

from tome_fx.graph.extents import Extents
from tome_fx.graph.insides import is_made_of_others
from tome_fx.graph.leaves import Leaf


class FakeRun(Interpreter):
    """Runs a graph under :attr:`mode`, on inputs as a captured graph has them.

    Args:
        module: what the graph reads its parameters from.
        sizes: what its symbols stand for.
        graph: the one of ``module`` if None.

    Attributes:
        left_out: functions that are of calls alone, and return nothing.
    """

    left_out: ClassVar[Collection[Any]] = ()

    def __init__(self, module: torch.nn.Module, sizes: Extents, graph: Graph | None = None) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.sizes = sizes
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def run_like(self, captured: Graph) -> Any:
        """Run on the inputs of ``captured``; returns what the graph does."""
        inputs = [node.meta.get("val") for node in captured.nodes if node.op == "placeholder"]
        with self._mode(), torch.no_grad():
            return self.run(*map(self._fake, inputs), enable_io_processing=False)

    def told(self, value: Any) -> Any:
        """What a node made, as fake tensors."""
        return value

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or is_made_of_others(value):
            return value  # of the second only what is inside is read
        place = self._place(value)
        return torch.empty(self.sizes.shape(value), dtype=value.dtype, device=place)

    def _mode(self) -> AbstractContextManager[Any]:
        return self.mode

    def _place(self, value: Tensor) -> torch.device:
        return value.device

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A leaf has no more than shapes to tell, and what is inside of a weight is one too."""
        if isinstance(target, Leaf):
            return target.like(*args)
        if target in self.left_out:
            return None
        made = super().call_function(target, args, kwargs)
        return self._fake(made) if target is getattr else made

    def run_node(self, n: Node) -> Any:
        """Run one node; a parameter is fake where its value is known."""
        held = n.meta.get("val") if n.op == "get_attr" else None
        return super().run_node(n) if held is None else self._fake(held)


class MetaRun(FakeRun):
    """The same on the meta device, in a quarter of the time, where all tensors are on one device.

    Fake tensors keep the device beside the shape, in Python, op by op. With one device for all
    there is nothing to keep: :meth:`told` puts it back. An error may be the meta device's own, and
    strides may differ where a device has its own order (convolutions, fused attention).

    Args:
        device: the one of all tensors, as :func:`only_device` finds it.
    """

    def __init__(self, module: torch.nn.Module, sizes: Extents, device: torch.device) -> None:
        super().__init__(module, sizes)
        self.device = device

    def told(self, value: Any) -> Any:
        """What a node made, as :class:`FakeRun` has it: fake tensors on the device."""
        wrap = self.mode.fake_tensor_converter.from_meta_and_device

        def told(made: Tensor) -> Tensor:
            whole = is_made_of_others(made)
            return made if whole else wrap(self.mode, made, self.device)

        return tree_map_only(Tensor, told, value)

    def _mode(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _place(self, value: Tensor) -> torch.device:
        return torch.device("meta")

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What is made anew is made there too, where no device is named as well."""
        schema = getattr(target, "_schema", None)
        places = [] if schema is None else [a.name for a in schema.arguments if a.kwarg_only]
        if "device" in kwargs or "device" in places:
            kwargs = {**kwargs, "device": "meta"}
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A constant that nothing is known of."""
        return tree_map_only(
            Tensor, lambda held: held.to("meta"), super().get_attr(target, args, kwargs)
        )


def only_device(*graphs: Graph) -> torch.device | None:
    """The one device of all values that are known.

    None where there are several, and where autocast chooses dtypes by it.
    """
    nodes = [node for graph in graphs for node in graph.nodes]
    if any("autocast" in str(node.target) for node in nodes):
        return None
    values = tree_leaves([node.meta.get("val") for node in nodes])
    devices = {value.device for value in values if isinstance(value, Tensor)}
    device = devices.pop() if len(devices) == 1 else None
    if device is None or device.type == "meta":
        return device
    return None if torch.is_autocast_enabled(device.type) else device
