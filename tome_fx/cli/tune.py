"""`tome-fx tune`: the schedule that changes a model's answers least for a measured speed."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import tome_fx
from tome_fx.cli import console, datasets, images, merging, results
from tome_fx.cli import options as o
from tome_fx.cli.bench import BatchSize, Compile, Rounds, Warmup
from tome_fx.cli.console import PATIENT
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import NamedModelFlags, ProgramFlags, RunFlags, grouped, told
from tome_fx.cli.measure import passes
from tome_fx.cli.models import Loaded
from tome_fx.cli.preprocess import to_batch

GOAL, OUTPUT = "Goal", "Output"
Root = Annotated[
    Path | None,
    typer.Argument(metavar="DATA_DIR", help="A folder of images; labels are not looked at.",
                   show_default=False),
]  # fmt: skip
Images = Annotated[
    list[Path] | None, typer.Option("--images", metavar="FILE", help="An image; repeatable.")
]
Count = Annotated[
    int, typer.Option("--num-images", help="Images to take of DATA_DIR, evenly.", min=1)
]
Target = Annotated[
    float | None, typer.Option(help="How many times faster, say 2.", rich_help_panel=GOAL)
]
Drift = Annotated[
    float | None,
    typer.Option(help="How far outputs may move, relative to their size.", rich_help_panel=GOAL),
]
Budget = Annotated[int, typer.Option(help="Schedules to look at in the search.", min=8)]
Measurements = Annotated[int, typer.Option(help="Schedules to compile and time.", min=2)]
State = Annotated[Path | None, typer.Option(help="Keep what is measured here, and go on from it.")]
Recipe = Annotated[
    Path | None, typer.Option(help="Write a recipe (.json).", rich_help_panel=OUTPUT)
]
Plot = Annotated[
    Path | None, typer.Option(help="Draw speed and drift (.svg).", rich_help_panel=OUTPUT)
]
Curve = Annotated[
    Path | None, typer.Option(help="Write the curve (.csv, .json).", rich_help_panel=OUTPUT)
]


@grouped(pretrained=None)
def tune(
    *,
    model: NamedModelFlags,
    program: ProgramFlags,
    running: RunFlags,
    data_dir: Root = None,
    image: Images = None,
    num_images: Count = 64,
    target_speedup: Target = None,
    max_drift: Drift = None,
    recipe: Recipe = None,
    plot: Plot = None,
    results_file: Curve = None,
    state: State = None,
    batch_size: BatchSize = 8,
    budget: Budget = 64,
    measurements: Measurements = 6,
    num_bench_iter: Rounds = None,
    num_warm_iter: Warmup = None,
    compiled: Compile = True,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Find how much to merge at each layer: least change of the outputs for a measured speed."""
    name, options = model.name, program.options()
    _check_files({"--recipe": (recipe, (".json",)), "--plot": (plot, (".svg",)),
                  "--results-file": (results_file, (".csv", ".json")),
                  "--state": (state, ())})  # fmt: skip
    if (data_dir is None) == (not image):
        raise CliError("give images: a folder, or --images FILE once or more, and not both")
    if (target_speedup is None) == (max_drift is None):
        raise CliError("give one goal: --target-speedup, say 2, or --max-drift, say 0.1")
    if recipe and options.matching:
        raise CliError("--recipe with --matching: a recipe holds no code")
    running.set_threads()
    amp = running.autocast()
    loaded = merging.load_quietly(model.spec(running.device, running.kind))
    pictures = from_files(image, loaded) if image else from_folder(data_dir, num_images, loaded)
    cast = torch.autocast(loaded.device.type, amp) if amp else contextlib.nullcontext()
    rounds, warmup = passes(loaded.device.type, num_bench_iter, num_warm_iter)
    with console.stage(f"tuning {name}", budget + 40 + measurements, PATIENT) as advance, cast:
        found = tome_fx.tune(
            loaded.model,
            pictures.to(loaded.device, loaded.dtype),
            target_speedup=target_speedup,
            max_drift=max_drift,
            batch_size=batch_size,
            compiled=compiled,
            rounds=rounds,
            warmup=warmup,
            budget=budget,
            measurements=measurements,
            state=state,
            progress=advance,
            **vars(options),
        )
    saved = _saved(found, recipe, plot, results_file)
    environment = results.machine(loaded, amp) | {
        "weights": loaded.weights,
        "images": len(pictures),
        "batch_size": batch_size,
        "compile": compiled,
        "flags": told(model, program),
    }
    tell(found, name, environment, saved, as_json)


def from_files(paths: list[Path], loaded: Loaded) -> Tensor:
    """Return pictures as the model sees them, [N, C, H, W]."""
    return to_batch([images.open_image(path) for path in paths], loaded.config)


def from_folder(root: Path | None, count: int, loaded: Loaded) -> Tensor:
    """Return at most `count` pictures of a folder, evenly from its first to its last."""
    part = datasets.USUAL if root is None or datasets.has_part(root, datasets.USUAL) else ""
    spec = datasets.DataSpec(root, split=part, labels=False)
    data = datasets.open_data(spec, loaded.config.input_size[0], 0, count)
    step = max(1, len(data) // count)
    indices = range(0, min(len(data), step * count), step)
    reading = datasets.Reading(loaded.config, 16, 0, torch.device("cpu"), torch.float32)
    return torch.cat([x for x, _ in datasets.batches(data, indices, False, reading)])


def _check_files(files: dict[str, tuple[Path | None, tuple[str, ...]]]) -> None:
    for flag, (path, suffixes) in files.items():
        if path is None:
            continue
        results.check_writable(path, flag)
        if suffixes and path.suffix not in suffixes:
            raise CliError(f"{flag} {path}: the name must end in {', '.join(suffixes)}")


def _saved(
    found: tome_fx.Tuned, recipe: Path | None, plot: Path | None, curve: Path | None
) -> list[Path]:
    writers = ((recipe, found.save_recipe), (plot, found.plot), (curve, found.save_curve))
    return [write(path) for path, write in writers if path is not None]


def tell(
    found: tome_fx.Tuned, name: str, around: dict[str, Any], saved: list[Path], as_json: bool
) -> None:
    """Print the answer."""
    if as_json:
        answer = {
            "model_name": name,
            "r": found.r,
            "speedup": found.speedup,
            "speedup_q1": found.speedup_q1,
            "speedup_q3": found.speedup_q3,
            "drift": found.drift,
            "agreement": found.agreement,
            "flop_ratio": found.flop_ratio,
        }
        points = [asdict(point) for point in found.curve]
        console.print_json({"environment": around, "tuned": answer, "curve": points})
        return
    agreement = "" if found.agreement is None else f", agreement {found.agreement:.1%}"
    print(f"r          {o.show_r(found.r)}")
    print(
        f"speed-up   {found.speedup:.2f}x (quartiles {found.speedup_q1:.2f} to"
        f" {found.speedup_q3:.2f}), FLOP ratio {found.flop_ratio:.2f}"
    )
    print(f"drift      {found.drift:.4f}{agreement}, on {around['images']} images")
    print(
        f"{name}, weights {around['weights']}; {around['device_name']},"
        f" {around['precision']}, batch {around['batch_size']}"
    )
    for path in saved:
        print(f"saved: {path}")
