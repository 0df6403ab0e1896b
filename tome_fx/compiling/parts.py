"""Is a graph that Dynamo hands over a whole model, as far as its tokens are concerned?

Behind a graph break, in a block that is compiled by itself or in a later bucket of a distributed
model, tokens come from outside: nothing in the graph says which of them are class tokens. What
leaves a graph has all its tokens in any case.
"""

from __future__ import annotations

from tome_fx.graph.axes import Atom, TensorType
from tome_fx.program import Findings, Program


def from_outside(findings: Findings, program: Program) -> str:
    """The input whose tokens would merge though the graph did not make them; "" if none is.

    Frames or samples count as made outside too: ``protect`` says that no token is special.
    """
    served = {site.stream for site in findings.sites}
    for stream in findings.streams:
        kinds = [atom.origin for atom in stream.atoms if isinstance(atom, Atom)]
        if stream.id in served and all(origin.kind == "input" for origin in kinds):
            return f"{kinds[0].node} {_shape(findings, program, kinds[0].node)}"
    return ""


def _shape(findings: Findings, program: Program, name: str) -> TensorType | str:
    node = next((n for n in program.graph.nodes if n.name == name), None)
    types = findings.types.get(node, ()) if node is not None else ()
    return types[0] if types else ""
