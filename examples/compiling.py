"""Time the first call of a compiled model, as it is and merged, with an empty and a full cache.

    python examples/compiling.py                    # a quarter of an hour on two cores
    python examples/compiling.py --device cuda --precision bfloat16 --csv compiling-cuda.csv

The layers of a ViT have the same shapes, so the compiler makes kernels for one of them and uses
them for all. A merge leaves each layer with a number of tokens of its own, and with kernels of its
own; ``every`` makes fewer of them. What is compiled is kept on disk, and a process that comes later
only loads it. Each case is two new processes, one after the other, around a cache that is empty at
first. Prints a table and writes it as CSV.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm import create_model

import tome_fx
from tome_fx.measuring.sheets import write_csv

R = {"deit_tiny_patch16_224": 13, "vit_small_patch16_224": 13, "vit_base_patch16_224": 16}


@dataclass(frozen=True)
class Case:
    """What one process compiles. Without merging, `r` is 0 and `every` has no meaning."""

    model: str
    r: int
    every: int
    batch: int
    device: str
    precision: str


@dataclass(frozen=True)
class Row:
    """One line of the results; `times` is the first call beside that of the original."""

    model: str
    r: int
    every: int
    batch: int
    transform_s: float
    first_call_s: float
    times: float
    later_process_s: float


def child(case: Case) -> None:
    """Load, transform, compile and call a model; print what the last two took, in seconds."""
    dtype = getattr(torch, case.precision)
    model = create_model(case.model).eval().to(case.device, dtype)
    images = torch.randn(case.batch, 3, 224, 224).to(case.device, dtype)
    start = time.perf_counter()
    run = tome_fx.transform(model, r=case.r, every=case.every) if case.r else model
    transformed = time.perf_counter()
    with torch.inference_mode():
        torch.compile(run)(images).cpu()
    taken = transformed - start if case.r else 0.0
    seconds = taken, time.perf_counter() - transformed
    print(json.dumps(seconds))


def process(case: Case, cache: str) -> tuple[float, float]:
    """Run `child` in a process of its own, whose compiler keeps what it makes in a folder."""
    command = [sys.executable, __file__, "--child", json.dumps(asdict(case))]
    around = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, env=around, stdout=subprocess.PIPE, text=True, check=True)
    transformed, called = json.loads(done.stdout.splitlines()[-1])
    return transformed, called


def measured(case: Case, original_s: float | None) -> Row:
    """One case, with an empty cache and with the one that it left."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        transform_s, first = process(case, cache)
        _, later = process(case, cache)
    times = first / (original_s or first)
    return Row(case.model, case.r, case.every, case.batch, transform_s, first, times, later)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="deit_tiny_patch16_224,vit_base_patch16_224")
    parser.add_argument("--every", default="1,2,3,4", help="some of these, with commas")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--csv", type=Path, default=Path("compiling.csv"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Case(**json.loads(options.child)))
        return
    models = options.models.split(",")
    unknown = [name for name in models if name not in R]
    if unknown:
        parser.error(f"--models {unknown[0]}: one of {', '.join(R)}")
    rows: list[Row] = []
    print(f"{'model':24} r  every  transform() s  first call s  times  in a later process s")
    for name in models:
        original: float | None = None
        for r, every in [(0, 1), *((R[name], int(every)) for every in options.every.split(","))]:
            case = Case(name, r, every, options.batch_size, options.device, options.precision)
            row = measured(case, original)
            original = original or row.first_call_s
            rows.append(row)
            seconds = f"{row.transform_s:13.1f} {row.first_call_s:13.1f} {row.times:6.2f}"
            print(f"{name:22} {r:3} {every:6} {seconds} {row.later_process_s:21.1f}", flush=True)
    write_csv(options.csv, [asdict(row) for row in rows])
    print(f"saved: {options.csv}")


if __name__ == "__main__":
    main()
