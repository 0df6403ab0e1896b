"""The model as it is: run for real, beside what traces it."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from tome_fx.capturing.backwards import Backwards
from tome_fx.capturing.examples import Example
from tome_fx.capturing.questions import Questions
from tome_fx.capturing.running import run_model
from tome_fx.capturing.skeleton import structure_copy, uncompiled
from tome_fx.graph.flex import flex_allowed
from tome_fx.ops.modes import Mode, in_mode

# Images that are run though the first of them would do: more would take long.
SMALL = 8


class Original:
    """A copy of a model that shares its tensors and is never traced.

    Attributes:
        module: the copy.
        backwards: what it had for its gradients alone, in the runs so far.
        questions: what it asked of the calls that it was in.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = uncompiled(structure_copy(model))
        self.backwards = Backwards()
        self.questions = Questions()
        self._buffers = _names(self.module)
        self._last: tuple[Example, Any] | None = None

    @property
    def is_real(self) -> bool:
        """Do all its tensors hold values?"""
        return all(map(is_real, (*self.module.parameters(), *self.module.buffers())))

    def run(self, example: Example) -> Any:
        """What the model returns; an example that was the last one too is not run again."""
        if self._last is None or self._last[0] is not example:
            with self.backwards.noted(self.module), self.questions.noted(), flex_allowed():
                result = run_model(self.module, example)
            if self.module.training:
                self.backwards.look_through(result)
            # Without what its gradients would need, which is more than all else.
            self._last = example, pytree.tree_map_only(Tensor, Tensor.detach, result)
        return self._last[1]

    def run_in(self, mode: Mode, example: Example) -> Any:
        """What the model returns in a call of that mode."""
        with in_mode(mode), flex_allowed():
            return run_model(self.module, example)

    def fill_caches(self, example: Example) -> None:
        """Let the model's code remember real values, if it remembers what it made before.

        A table that a first call makes and keeps outside of the model (``functools.lru_cache``, a
        dict) would be one of a trace, and the model return such values ever after. What is kept
        for a number of images is filled up to SMALL of them.
        """
        if not self.is_real or not all(map(is_real, example.leaves)):
            return
        given = [] if example.single is None else [example.single]
        given += [example, example.few] if example.batch <= SMALL else [example.few]
        for some in given:  # what is compared first comes last: it is not run again
            with contextlib.suppress(Exception):  # what is wrong with it is said where it matters
                self.run(some)

    def attributes(self) -> dict[str, Any]:
        """What the modules hold beside tensors of the model's own, parts and hooks, by path."""
        return {
            f"{path}.{name}".removeprefix("."): value
            for path, module in self.module.named_modules()
            for name, value in vars(module).items()
            if not name.startswith("_")
        }

    def to_trace(self, model: nn.Module) -> nn.Module:
        """``model``, or one like it that has the buffers which a first call registers.

        A trace would write such a buffer to an input.
        """
        made = _names(self.module) - self._buffers
        return structure_copy(self.module) if made else model


def is_real(value: Any) -> bool:
    """Is it no tensor without values: on the meta device, or of a trace?"""
    return not isinstance(value, Tensor) or not (value.is_meta or isinstance(value, FakeTensor))


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_buffers()}
