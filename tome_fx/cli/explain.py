"""`tome-fx explain`: what would be merged where, and what it saves."""

from __future__ import annotations

from typing import Annotated

import typer

from tome_fx.cli import console, merging, tables
from tome_fx.cli import options as o
from tome_fx.cli.flags import MergeFlags, NamedModelFlags, grouped


@grouped()
def explain(
    *,
    model: NamedModelFlags,
    r: o.R = "16",
    merge: MergeFlags,
    batch: Annotated[
        int | None, typer.Option(help="Estimate for calls on so many images whether merging pays.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Where: h200, h200-graphs, h100, a100, ..., or cpu.")
    ] = None,
    min_speedup: Annotated[
        float, typer.Option(help="Leave out merging that is estimated below this.", min=0)
    ] = 1.0,
    device: o.Device = "cpu",
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Print what was found in a model: blocks, protected tokens, tokens per layer, GMACs."""
    spec = model.spec(device)
    steps = o.parse_r(r)
    options = merge.options()
    report = merging.explain(
        merging.load_quietly(spec),
        steps,
        options,
        batch=batch,
        hardware=hardware,
        min_speedup=min_speedup,
    )
    if as_json:
        console.print_json(report.to_dict() | {"model_name": spec.name})
    else:
        tables.print_report(report, console.out())
