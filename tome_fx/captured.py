"""What a result has captured, for a copy of it: the copy runs the same programs.

A capture takes several times as long as all else of a transform, and those who keep averages of
weights, or one result for each of several schedules, copy results.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tome_fx.capturing.calling import Calling
from tome_fx.capturing.skeleton import structure_copy
from tome_fx.graph.attributes import set_attribute
from tome_fx.graph.extras import constants_of
from tome_fx.graph.leaves import leaves_of
from tome_fx.locating import Located


@dataclass(frozen=True)
class Captured:
    """Programs by mode (training or not), and by name what they read beside the model."""

    programs: Mapping[bool, Located]
    constants: Mapping[str, Tensor | nn.Module]

    def put_on(self, target: nn.Module) -> dict[bool, Located]:
        """Register the constants on ``target``; the programs, for it to keep."""
        for name, value in self.constants.items():
            if isinstance(value, nn.Module):
                target.add_module(name, structure_copy(value))  # casts replace what it holds
            else:
                set_attribute(target, name, value, False)
        return dict(self.programs)

    def copied(self, memo: dict[int, Any]) -> Captured:
        """The same with constants of its own."""
        return replace(self, constants=copy.deepcopy(dict(self.constants), memo))


def captured_by(module: nn.Module, programs: Mapping[bool, Located]) -> Captured:
    """What a result may hand to a copy; no program with calls of modules, which are its own."""
    shared = {
        mode: _anew(located)
        for mode, located in programs.items()
        if not leaves_of(located.program.graph)
    }
    names, made = tuple(map(constants_of, shared)), module._non_persistent_buffers_set
    held = {**{name: module._buffers[name] for name in made}, **module._modules}
    constants = {name: v for name, v in held.items() if v is not None and name.startswith(names)}
    return Captured(shared, constants)


def _anew(located: Located) -> Located:
    """The same nodes, which nothing edits, in a graph that is called as its own module says."""
    graph = copy.copy(located.program.graph)
    if isinstance(graph._codegen, Calling):
        graph.set_codegen(graph._codegen.anew())
    return replace(located, program=replace(located.program, graph=graph))
