"""The pass as the commands call it: options from flags, one example input, a step on stderr."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import tome_fx
from tome_fx.cli.console import PATIENT, stage
from tome_fx.cli.models import Loaded, ModelSpec, load
from tome_fx.cli.options import show_r
from tome_fx.report import Report


@dataclass(frozen=True)
class MergeOptions:
    """Options of `tome_fx.transform` that have a flag; it is `transform` that checks them."""

    prop_attn: bool = True
    capture: str = "auto"
    rounding: str = "truncate"
    strict: bool = False
    scatter: bool = True
    every: int = 1
    align: int | str = 1
    remerge: str = "mean"
    attention: str = "auto"
    matching: Any = None


def load_quietly(spec: ModelSpec) -> Loaded:
    """Load a model as a step of its own."""
    with stage(f"loading {spec.name}", after=PATIENT):
        return load(spec)


def transform(loaded: Loaded, r: Any, options: MergeOptions) -> Any:
    """Return the transformed model; its example input has the size that the flags ask for."""
    with stage(f"transforming {loaded.name}, r={show_r(r)}", after=PATIENT):
        example = (loaded.example(2),)
        return tome_fx.transform(
            loaded.model, r, example_inputs=example, min_ratio=0, **vars(options)
        )


def explain(loaded: Loaded, r: Any, options: MergeOptions, **planning: Any) -> Report:
    """Return what `transform` would do; ``planning`` are options that explain alone has."""
    with stage(f"reading {loaded.name}, r={show_r(r)}", after=PATIENT):
        example = (loaded.example(2),)
        with warnings.catch_warnings():
            # The report says so as well.
            warnings.filterwarnings(
                "ignore", "(Merging .* is not applied|Nothing merges)", tome_fx.ToMeWarning
            )
            return tome_fx.explain(
                loaded.model, r, example_inputs=example, **vars(options), **planning
            )
