"""`tome-fx explain`: what would be merged where, and what it saves."""

from __future__ import annotations

from typing import Annotated

import typer

from tome_fx.cli import console, merging, tables
from tome_fx.cli import options as o
from tome_fx.cli.models import ModelSpec


def explain(
    model_argument: o.ModelArgument = None,
    model: o.ModelName = None,
    r: o.R = "16",
    prop_attn: o.Prop = True,
    capture: o.Capture = "auto",
    rounding: o.Rounding = "truncate",
    strict: o.Strict = False,
    every: o.Every = 1,
    align: o.Align = "1",
    matching: o.Matching = None,
    batch: Annotated[
        int | None, typer.Option(help="Estimate for calls on so many images whether merging pays.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Where: h200, h200-graphs, h100, a100, ..., or cpu.")
    ] = None,
    min_speedup: Annotated[
        float, typer.Option(help="Leave out merging that is estimated below this.", min=0)
    ] = 1.0,
    pretrained: o.Pretrained = False,
    checkpoint: o.Checkpoint = None,
    img_size: o.ImgSize = None,
    num_classes: o.NumClasses = None,
    in_chans: o.InChans = None,
    model_kwargs: o.ModelKwargs = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Print what was found in a model: blocks, protected tokens, tokens per layer, GMACs."""
    spec = ModelSpec(
        o.model_name(model_argument, model),
        pretrained,
        checkpoint,
        img_size,
        num_classes,
        in_chans,
        model_kwargs or (),
        device,
    )
    steps = o.parse_r(r)
    options = merging.MergeOptions(
        prop_attn,
        capture,
        rounding,
        strict,
        every=every,
        align=o.parse_align(align),
        matching=merging.matching_of(matching),
    )
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
