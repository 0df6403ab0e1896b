"""The model that a result came from: a copy of its structure that shares its tensors.

All tracing happens on the copy, so the user's model keeps its modes, hooks and everything else
whatever happens, and no weight is held twice.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tome_fx.capturing.checkpoints import SWITCHES
from tome_fx.capturing.examples import Example
from tome_fx.capturing.modes import (
    acts_in_training,
    deep_copy,
    holds_one_mode,
    modes_of,
    set_modes,
)
from tome_fx.capturing.skeleton import structure_copy
from tome_fx.capturing.tensors import held_at, shape_of, tensors_of, with_tensors
from tome_fx.errors import CaptureError, ConfigError
from tome_fx.graph.attributes import set_attribute, tell_kind
from tome_fx.graph.extras import constants_of
from tome_fx.graph.inherited import inherit
from tome_fx.graph.numbers import is_data
from tome_fx.graph.places import hold
from tome_fx.graph.shells import owner_of
from tome_fx.locating import LOCK, Located


@dataclass(frozen=True)
class Source:
    """A structure copy of the model (``skeleton``), or an exported program.

    Attributes:
        one_mode: does the model refuse to change its mode?
    """

    skeleton: nn.Module | torch.export.ExportedProgram
    name: str
    training: bool
    born: tuple[torch.dtype, torch.device] | None
    one_mode: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """An exported program has a file format of its own; its pickle cannot be read again."""
        if isinstance(self.skeleton, nn.Module):
            return Source, (self.skeleton, self.name, self.training, self.born, self.one_mode)
        file = io.BytesIO()
        torch.export.save(self.skeleton, file)
        return _loaded, (file.getvalue(), self.name, self.training)

    @property
    def can_capture(self) -> bool:
        """An exported program is what it is; a module can be captured again."""
        return isinstance(self.skeleton, nn.Module)

    def allow(self, mode: bool) -> None:
        """Raise CaptureError if the mode cannot be captured."""
        if self.one_mode and mode != self.training:
            raise CaptureError(
                "This module was made from an exported program, which holds one mode only. "
                "Transform the nn.Module itself to switch between train() and eval()."
            )

    @property
    def modes(self) -> dict[str, bool]:
        """Those of the model's parts, by path; none of an exported program."""
        return modes_of(self.skeleton) if isinstance(self.skeleton, nn.Module) else {}

    def restore(self, modes: Mapping[str, bool]) -> None:
        """Bring the model's parts to the modes that they had."""
        if isinstance(self.skeleton, nn.Module):
            set_modes(self.skeleton, modes)

    def settle(self) -> bool:
        """Bring the model to its mode as a whole. Were parts in another one, frozen ones say?"""
        before = self.modes
        if isinstance(self.skeleton, nn.Module):
            self.skeleton.train(self.skeleton.training)
        return before != self.modes

    def tell_modes(self, target: nn.Module) -> None:
        """Let the parts of ``target`` say the modes that those of the model have in its mode."""
        if not isinstance(self.skeleton, nn.Module):
            return
        if target.training != self.skeleton.training:
            self.skeleton.train(target.training)
        parts = dict(target.named_modules(remove_duplicate=False))
        for path, part in self.skeleton.named_modules(remove_duplicate=False):
            if path and path in parts:  # the whole has it already, and follows what is written
                parts[path].training = part.training

    def install(self, target: GraphModule) -> None:
        """Register the model's tensors, and what people ask it for, on ``target``."""
        own = set(dir(target))
        for path, tensor, persistent in tensors_of(self.skeleton):
            if path.partition(".")[0] in own:
                raise _taken(path)
            set_attribute(target, path, tensor, persistent)
        if isinstance(self.skeleton, nn.Module):
            for path, module in self.skeleton.named_modules(remove_duplicate=False):
                if path:
                    hold(target, path, module, but=SWITCHES)
            for name, value in vars(self.skeleton).items():
                if is_data(name, value) and not (name in own or hasattr(target, name)):
                    object.__setattr__(target, name, value)
            tell_kind(target, self.skeleton)
            inherit(target, self.skeleton)

    def like(self, target: nn.Module) -> nn.Module | torch.export.ExportedProgram:
        """The model with the tensors and the mode that ``target`` has now."""
        if not isinstance(self.skeleton, nn.Module):
            return self.skeleton
        self._sync(target)
        if target.training != self.skeleton.training:
            self.skeleton.train(target.training)
        return self.skeleton

    def to_trace(self, target: nn.Module) -> nn.Module | torch.export.ExportedProgram:
        """:meth:`like`, in a structure for one capture.

        A forward may keep what it made for later calls, a table that it looked up once, say. Made
        in a trace, that has no values.
        """
        model = self.like(target)
        return structure_copy(model) if isinstance(model, nn.Module) else model

    def release(self, target: nn.Module) -> None:
        """Hold shapes in place of what ``target`` holds, until the next capture.

        So weights have one owner, and go when they are sharded or replaced there.
        """
        if not isinstance(self.skeleton, nn.Module):
            return
        shapes: dict[int, Tensor] = {}  # by identity: tied ones stay tied
        for path, tensor, _ in list(tensors_of(self.skeleton)):
            owner, leaf = owner_of(self.skeleton, path)
            if held_at(target, path) is not tensor or isinstance(owner, torch.jit.ScriptModule):
                continue  # a script has its own table of them, which nobody may write to
            shape = shapes.setdefault(id(tensor), shape_of(tensor))
            if isinstance(shape, nn.Parameter):
                owner._parameters[leaf] = shape
            else:
                owner._buffers[leaf] = shape

    def is_borrowed(self, target: nn.Module) -> bool:
        """Do other tensors stand in the places of weights, for one call, say?"""
        weights = [
            p for p, weight, _ in tensors_of(self.skeleton) if isinstance(weight, nn.Parameter)
        ]
        return not all(isinstance(held_at(target, path), nn.Parameter) for path in weights)

    def synced(self, target: nn.Module) -> Source:
        """A source with a structure of its own, its tensors and mode those of ``target``."""
        self._check_whole(target)
        with LOCK:
            model = self.like(target)
            if isinstance(model, nn.Module):
                model = structure_copy(model)
            else:
                model = with_tensors(model, target)
            self.release(target)
        return replace(self, skeleton=model, training=target.training)

    def _check_whole(self, target: nn.Module) -> None:
        """Raise ConfigError where ``target`` has lost a tensor of the model."""
        for path, _, _ in tensors_of(self.skeleton):
            if held_at(target, path) is None:
                raise ConfigError(
                    f"{path} is no parameter of this module any more, and no copy would have what "
                    "makes it: a parametrization, say. Put that on the model, then transform it."
                )

    def copied(self, target: nn.Module, memo: dict[int, Any]) -> Source:
        """A source with tensors of its own."""
        own = self.synced(target)
        return replace(own, skeleton=deep_copy(own.skeleton, memo))

    def _sync(self, target: nn.Module) -> None:
        assert isinstance(self.skeleton, nn.Module)
        for path, tensor, _ in list(tensors_of(self.skeleton)):
            owner, leaf = owner_of(self.skeleton, path)
            current = held_at(target, path)
            if current is tensor or current is None:
                continue
            # FSDP 1 leaves rows of its share, FSDP 2 a DTensor.
            if hasattr(current, "full_tensor") or (
                current.shape != tensor.shape and current.dim() == 1
            ):
                raise ConfigError(
                    "The parameters of this module are sharded, and this asks for a new capture, "
                    "which needs them whole. Switch to each mode before you shard: call .eval() "
                    "and .train() once before fully_shard(result), and set gradient checkpointing "
                    "there too."
                )
            if current.shape != tensor.shape:
                here, there = tuple(current.shape), tuple(tensor.shape)
                raise ConfigError(
                    f"{path} has the shape {here} here and {there} in the model, and this asks for "
                    "a new capture of that. Change the model, then transform it."
                )
            if isinstance(owner, torch.jit.ScriptModule):
                raise ConfigError(
                    f"{path} is a weight of a scripted part, which cannot be given another one. "
                    "Cast, move or load the model, then transform that."
                )
            if isinstance(current, nn.Parameter):
                owner._parameters[leaf] = current
            else:
                owner._buffers[leaf] = current

    def signature(self, target: nn.Module) -> frozenset[tuple[torch.dtype, str]]:
        """The dtypes and devices of the tensors of ``target``."""
        tensors = [*target.parameters(), *target.buffers()]
        return frozenset((t.dtype, str(t.device)) for t in tensors)

    def example_like(self, example: Example | None, target: nn.Module) -> Example | None:
        """``example`` cast and moved as the parameters of ``target`` were since the transform."""
        now, born = _weight(target), self.born
        if example is None or now is None or born is None or now == born:
            return example

        def moved(value: Tensor) -> Tensor:
            dtype = now[0] if value.dtype == born[0] else value.dtype
            if value.is_meta:
                return torch.zeros(value.shape, dtype=dtype, device=now[1])
            return value.to(device=now[1], dtype=dtype)

        args, kwargs = torch.utils._pytree.tree_map_only(
            Tensor, moved, (example.args, dict(example.kwargs))
        )
        return Example(args, kwargs, example.batch, self.example_like(example.single, target))

    def adopt(self, target: nn.Module, located: Located) -> Located:
        """Put the captured constants on ``target`` and make the graph read them there."""
        name = constants_of(target.training)
        own = {path for path, _, _ in tensors_of(self.skeleton)}
        renamed: dict[str, str] = {}
        for path, value in located.program.constants.items():
            if path in own:
                continue
            renamed[path] = f"{name}{len(renamed)}"
            if isinstance(value, nn.Module):
                target.add_module(renamed[path], value)
            elif isinstance(value, Tensor):
                set_attribute(target, renamed[path], value.detach(), False)
            else:
                raise CaptureError(
                    f"forward makes a {type(value).__name__}, which cannot be a part of a program. "
                    "Make it in __init__, or use the global random state."
                )
        for node in located.program.graph.nodes:
            if node.op == "get_attr" and node.target in renamed:
                node.target = renamed[node.target]
        # It would keep the captured module alive, and with it the weights.
        located.program.graph.owning_module = None
        program = replace(located.program, constants={})
        return replace(located, program=program)


def _loaded(program: bytes, name: str, training: bool) -> Source:
    return Source(torch.export.load(io.BytesIO(program)), name, training, None, True)


def _taken(path: str) -> ConfigError:
    name = path.partition(".")[0]
    return ConfigError(
        f"The model has weights under {name!r}, which the result has a meaning of its own for. "
        "Wrap the model, in nn.Sequential(model) say, and transform the wrapper."
    )


def source_of(model: nn.Module | torch.export.ExportedProgram) -> Source:
    """The source for ``model``."""
    if not isinstance(model, nn.Module):
        return Source(model, type(model.graph_module).__name__, False, None, True)
    skeleton, one_mode = structure_copy(model), holds_one_mode(model)
    if one_mode:
        skeleton.training = acts_in_training(skeleton)  # it says True, whatever it holds
    return Source(skeleton, type(model).__name__, skeleton.training, _weight(model), one_mode)


def _weight(model: nn.Module) -> tuple[torch.dtype, torch.device] | None:
    """dtype and device of the first floating parameter."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    return None if weight is None else (weight.dtype, weight.device)
