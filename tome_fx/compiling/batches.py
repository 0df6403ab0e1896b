"""Which inputs have the images' batch: that two have the same size now does not make it one.

Dynamo gives equal sizes one number, or one symbol. A model that compares images with texts takes
any number of each, and its texts are no images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.fx import Node

from tome_fx.capturing.describing import images_of
from tome_fx.finding.infer import infer
from tome_fx.graph.axes import has_batch
from tome_fx.program import Program
from tome_fx.rules.base import Rule


def with_one_batch(program: Program, rules: Mapping[str, Rule]) -> Program:
    """``program`` with no input taken for images that never meets the images.

    Inputs meet where a value depends on both, unless it holds each with each (``[B, B]``).
    """
    if len(program.batched) < 2:
        return program
    types = infer(program, (), {}, rules)
    groups = {name: {name} for name in program.batched}
    reached: dict[Node, set[str]] = {}
    for node in program.graph.nodes:
        inputs = {name for source in node.all_input_nodes for name in reached[source]}
        compared = any(sum(map(has_batch, type_.axes)) > 1 for type_ in types[node])
        ends = compared or node.op == "output" or node not in program.of_images
        reached[node] = {node.name} if node.name in groups else set() if ends else inputs
        joined = set().union(*(groups[name] for name in reached[node]))
        groups.update(dict.fromkeys(joined, joined))
    images = images_of(program.graph)
    assert images is not None, "a program has images"
    return replace(program, batched=frozenset(groups[images.name]))
