"""A leaf: a module of the model that stays a call, since its own code cannot be captured.

    x = resize_by_values(pixels, shapes)   ->   (x,) = leaf_embeddings(pixels, shapes, *weights)

Code that reads sizes out of a tensor has no graph. What stands around it has one, and in there a
leaf is one op: its tensors come in, its weights among them, and tensors go out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from tome_fx.errors import InputError
from tome_fx.graph.shells import owner_of, shell


@dataclass(frozen=True)
class Measured:
    """An extent of an output: ``factor`` times axis ``dim`` of tensor ``index`` that comes in."""

    index: int
    dim: int
    factor: int


@dataclass(frozen=True)
class Made:
    """A tensor that a leaf makes."""

    shape: tuple[int | Measured, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Slot:
    """The place of a tensor among the arguments or results of a leaf."""

    index: int


@dataclass(frozen=True)
class Form:
    """Arguments or results: their structure, and each leaf of it, a :class:`Slot` for a tensor."""

    spec: pytree.TreeSpec
    values: tuple[Any, ...]

    @classmethod
    def of(cls, value: Any) -> tuple[Form, list[Tensor]]:
        """The form of ``value``, and its tensors in order."""
        values, spec = pytree.tree_flatten(value)
        tensors = [v for v in values if isinstance(v, Tensor)]
        places = iter(range(len(tensors)))
        held = (Slot(next(places)) if isinstance(v, Tensor) else v for v in values)
        return cls(spec, tuple(held)), tensors

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The value again, with ``tensors`` in it."""
        values = [tensors[v.index] if isinstance(v, Slot) else v for v in self.values]
        return pytree.tree_unflatten(values, self.spec)


class Leaf:
    """A module as a function of tensors.

    It takes the tensors among the arguments, in their order, and then the weights called
    ``names``; it returns the tensors among the results. Autograd sees through it. A compiler takes
    it as one op where nothing asks for gradients, and breaks the graph there otherwise.

    Attributes:
        path: of the module.
        reason: why it could not be captured.
        macs: multiply-accumulates per image.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        module: nn.Module,
        names: tuple[str, ...],
        given: Form,
        result: Form,
        made: tuple[Made, ...],
        macs: int,
    ) -> None:
        self.path, self.reason, self.macs = path, reason, macs
        self.training = module.training
        self.key = f"{path}:{id(self)}"
        # How a graph's code calls it.
        self.__name__ = self.__qualname__ = f"leaf_{path.replace('.', '_')}"
        # Not a module's child: its weights are those of the graph's own module.
        self._module, self.names = _hollow(module), names
        self.given, self.result, self._made = given, result, made
        _LEAVES[self.key] = self

    def __str__(self) -> str:
        return f"the call of {self.path}"

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run the module.

        Raises:
            InputError: what it makes has other shapes than at the capture.
        """
        whole = torch.compiler.is_dynamo_compiling() and not _is_exporting()
        # Autocast would give other dtypes than the op tells compilers, and they switch it off.
        whole = whole and not torch.is_autocast_enabled(tensors[0].device.type)
        if whole and not self.training and not _asks_gradients(tensors):
            return list(leaf(self.key, list(tensors)))
        made: list[Tensor] = self.run(*tensors)
        return made

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def run(self, *tensors: Tensor) -> list[Tensor]:
        """The call itself."""
        split = len(tensors) - len(self.names)
        weights = dict(zip(self.names, tensors[split:], strict=True))
        args, kwargs = self.given.filled(tensors[:split])
        made, found = Form.of(_with(self._module, weights)(*args, **kwargs))
        shapes = [tuple(value.shape) for value in found]
        expected = [_shape(made, tensors) for made in self._made]
        if made != self.result or shapes != expected:
            raise InputError(
                f"{self.path} made {_told(shapes, made)} from these inputs, and "
                f"{_told(expected, self.result)} when it was captured, which the program is for. "
                "Transform the model again with inputs like these as example_inputs."
            )
        return found

    def like(self, *tensors: Tensor) -> list[Tensor]:
        """Tensors of the shapes that it makes, with no values: for fake ones."""
        like = tensors[0]
        return [like.new_empty(_shape(made, tensors), dtype=made.dtype) for made in self._made]


_LEAVES: WeakValueDictionary[str, Leaf] = WeakValueDictionary()


@torch.library.custom_op("tome_fx::leaf", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def leaf(key: str, tensors: list[Tensor]) -> list[Tensor]:
    """A leaf as an op of PyTorch, for tracers and compilers."""
    given = {value.data_ptr() for value in tensors}
    found = (value.contiguous() for value in _LEAVES[key].run(*tensors))
    return [value.clone() if value.data_ptr() in given else value for value in found]


@leaf.register_fake
def _(key: str, tensors: list[Tensor]) -> list[Tensor]:
    return _LEAVES[key].like(*tensors)


def leaves_of(graph: Graph) -> list[Leaf]:
    """The leaves that a graph calls, in order."""
    return [node.target for node in graph.nodes if isinstance(node.target, Leaf)]


def call_leaves(graph: Graph) -> None:
    """Put the leaves themselves in place of the ops that a tracer took them for."""
    for node in graph.nodes:
        if node.target is torch.ops.tome_fx.leaf.default:
            key, tensors = node.args
            node.target, node.args = _LEAVES[key], tuple(tensors)


def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


# Dynamo asks this one itself: torch 2.11 takes the other for true wherever it traces.
_is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _asks_gradients(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(value.requires_grad for value in tensors)


def _shape(made: Made, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(
        size.factor * tensors[size.index].shape[size.dim] if isinstance(size, Measured) else size
        for size in made.shape
    )


def _told(shapes: Sequence[tuple[int, ...]], form: Form) -> str:
    others = [value for value in form.values if not isinstance(value, Slot)]
    return " and ".join([*(str(list(shape)) for shape in shapes), *map(repr, others)])


def _hollow(module: nn.Module) -> nn.Module:
    """The structure of a module, without its weights and the hooks that the graph holds.

    Hooks on the module itself are captured around its call; those within are its own code.
    """
    result = shell(module)
    for part in result.modules():
        part._parameters.update(dict.fromkeys(part._parameters))
        part._buffers.update(dict.fromkeys(part._buffers))
    result._forward_hooks.clear()
    result._forward_pre_hooks.clear()
    return result


def _with(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A module of its own for one call, so that calls in several threads do not meet."""
    result = shell(module)
    for path, value in weights.items():
        owner, name = owner_of(result, path)
        table: dict[str, Any] = vars(owner)["_parameters"]
        (table if name in table else owner._buffers)[name] = value
    return result
