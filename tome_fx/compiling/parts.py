"""Is a graph that Dynamo hands over a whole model, as far as its tokens are concerned?

Behind a graph break, in a block that is compiled by itself or in a later bucket of a distributed
model, tokens come from outside: nothing in the graph says which of them are class tokens. What
leaves a graph has all its tokens in any case.
"""

from __future__ import annotations

from torch.fx import Node

from tome_fx.graph.axes import Atom, TensorType
from tome_fx.program import Findings, Program

_MAKERS = ("conv", "reshape", "view", "unflatten", "unfold", "im2col", "pixel_unshuffle")


def from_outside(findings: Findings, program: Program) -> str:
    """The input whose tokens would merge though the graph did not make them; "" if none is.

    Rows of samples count as made outside too: ``protect`` says that no token is special. What the
    graph itself cuts an image or a grid into is its own.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    served = {site.stream for site in findings.sites}
    for stream in findings.streams:
        born = [atom.origin.node for atom in stream.atoms if isinstance(atom, Atom)]
        if stream.id in served and not any(map(_makes_tokens, map(nodes.get, born))):
            return f"{born[0]} {_shape(findings, program, born[0])}"
    return ""


def _makes_tokens(node: Node | None) -> bool:
    """Does an op cut an image, a clip or a grid into places? To sort or pick tokens makes none."""
    return node is not None and any(part in str(node.target) for part in _MAKERS)


def _shape(findings: Findings, program: Program, name: str) -> TensorType | str:
    node = next((n for n in program.graph.nodes if n.name == name), None)
    types = findings.types.get(node, ()) if node is not None else ()
    return types[0] if types else ""
