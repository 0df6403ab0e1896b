"""What a forward call does to the tensors that modules hold, seen while it is traced."""

from __future__ import annotations

from torch import nn
from torch.fx import Graph, Proxy


class Tensors:
    """The tensors of a model as they were before it was traced.

    ``self.count = self.count + 1`` leaves a traced value in the module: `record` puts the buffer
    back and writes the value to it in the graph.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [
            (module, name, f"{path}.{name}" if path else name, buffer)
            for path, module in model.named_modules()
            for name, buffer in module._buffers.items()
        ]

    def put_back(self) -> dict[str, object]:
        """Restore all buffers. Returns what stood in their places, by name."""
        found: dict[str, object] = {}
        for module, name, path, buffer in self._buffers:
            value = module._buffers[name]
            if value is not buffer:
                found[path] = value
                module._buffers[name] = buffer
        return found

    def record(self, graph: Graph, assigned: dict[str, object]) -> None:
        """Write what was assigned to a buffer to it, in the graph.

        Raises:
            RuntimeError: that is no recorded value.
        """
        changed = [path for path, value in assigned.items() if not isinstance(value, Proxy)]
        if changed:
            raise RuntimeError(
                f"it changes {changed[0]}, which symbolic tracing does not record. Use "
                "capture='export', and register_buffer for what it writes to."
            )
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        with graph.inserting_before(output):
            for path, value in assigned.items():
                assert isinstance(value, Proxy)
                graph.call_method("copy_", (graph.get_attr(path), value.node))
