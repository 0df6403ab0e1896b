"""`tome-fx export`: a merged model as a file to serve, checked after it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from tome_fx.cli import console, formats, merging
from tome_fx.cli import options as o
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import MergeFlags, NamedModelFlags, grouped
from tome_fx.cli.models import Loaded

# Kernels of another runtime, relative to the largest logit.
PARITY = 1e-3
Format = Annotated[str, typer.Option("--format", help="pt2, aoti or onnx.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write; MODEL_rR.pt2 if left out.")
]
BatchSize = Annotated[
    int | None, typer.Option(help="Fix the batch; any batch of 2 or more if left out.", min=1)
]


@grouped()
def export(
    *,
    model: NamedModelFlags,
    r: o.R = "16",
    merge: MergeFlags,
    kind: Format = "pt2",
    output: Output = None,
    batch_size: BatchSize = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write a merged model as an ExportedProgram, an AOTInductor package or ONNX, and check it."""
    if kind not in formats.SUFFIX:
        raise CliError(f"--format {kind}: not one of {', '.join(formats.SUFFIX)}")
    name, spec = model.name, model.spec(device)
    steps = o.parse_r(r)
    path = output or Path(f"{name.replace('/', '_')}_r{o.show_r(steps)}{formats.SUFFIX[kind]}")
    if not path.parent.is_dir():
        raise CliError(f"--output {path}: no such folder")
    if path.suffix != formats.SUFFIX[kind]:
        raise CliError(f"--output {path}: the name of {kind} ends in {formats.SUFFIX[kind]}")
    _check_place(path)
    if kind == "onnx" and not device.startswith("cpu"):
        raise CliError(f"--device {device}: ONNX is exported on the CPU, and runs anywhere")
    options = merge.options()
    loaded = merging.load_quietly(spec)
    fast = merging.transform(loaded, steps, options)
    run = formats.write(fast, loaded.example(batch_size or 2), path, kind, batch_size is None)
    gaps = parity(fast, run, loaded, [batch_size] if batch_size else [2, 3, 8])
    worst = max(gaps.values())
    if not all(gap <= PARITY for gap in gaps.values()):  # NaN is no parity either
        raise CliError(
            f"{path} does not compute what the model does: off by {worst:.1e} of the largest "
            f"logit. Try --no-scatter, or another --format"
        )
    size = path.stat().st_size
    if as_json:
        console.print_json(
            {"model_name": name, "format": kind, "output": str(path), "bytes": size, "r": r,
             "schedule": list(fast.schedule), "flop_ratio": fast.report.flop_ratio,
             "parity": {str(batch): gap for batch, gap in gaps.items()}}
        )  # fmt: skip
        return
    batches = ", ".join(map(str, gaps))
    print(f"saved: {path} ({size / 1e6:.1f} MB, {fast.report.flop_ratio:.2f}x fewer MACs)")
    print(f"checked on batches of {batches}: off by at most {worst:.1e} of the largest logit")


def _check_place(path: Path) -> None:
    """Find out before minutes of work whether the file can be written."""
    new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise CliError(f"--output {path}: cannot be written: {error.strerror}") from None
    if new:
        path.unlink()


@torch.no_grad()
def parity(
    module: nn.Module, run: formats.Runner, loaded: Loaded, batches: list[int]
) -> dict[int, float]:
    """The largest difference for each batch size, relative to the largest logit."""
    return {batch: _gap(module, run, loaded.example(batch)) for batch in batches}


def _gap(module: nn.Module, run: formats.Runner, x: Tensor) -> float:
    expected, found = module(x).cpu(), run(x).cpu()
    if expected.shape != found.shape:
        raise CliError(f"the file gives {tuple(found.shape)}, the model {tuple(expected.shape)}")
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30))
