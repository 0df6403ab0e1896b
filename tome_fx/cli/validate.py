"""`tome-fx validate`: what merging does to a model's answers, over a data set of timm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tome_fx.cli import console, datasets, evaluate, partial, results, tables
from tome_fx.cli import options as o
from tome_fx.cli.bench import Rs
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import FileFlags, MergeFlags, ModelFlags, RunFlags, grouped, told
from tome_fx.cli.measure import by_r
from tome_fx.cli.processes import joined
from tome_fx.cli.scores import Score
from tome_fx.cli.validation import Ready, prepare, run, scores_of, settings_of

DATA = "Data"
Root = Annotated[
    Path | None,
    typer.Argument(metavar="DATA_DIR", help="A folder of class folders, or what --dataset takes.",
                   show_default=False),
]  # fmt: skip
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="The same as DATA_DIR.", rich_help_panel=DATA)
]
Name = Annotated[
    str, typer.Option("--dataset", help="timm's TYPE/NAME; a folder if left out.",
                      show_default=False, rich_help_panel=DATA)
]  # fmt: skip
Split = Annotated[
    str, typer.Option(help="Split; of a folder, the one below it.", rich_help_panel=DATA)
]
ClassMap = Annotated[
    str, typer.Option(metavar="FILE", help="timm's map from class to index.", show_default=False,
                      rich_help_panel=DATA)
]  # fmt: skip
Labels = Annotated[
    str, typer.Option(help="data, or none: agreement and distance alone.", rich_help_panel=DATA)
]
CropPct = Annotated[
    float | None, typer.Option(help="Share of the image to crop to.", rich_help_panel=DATA)
]
Interpolation = Annotated[
    str, typer.Option(help="How images are resized.", show_default=False, rich_help_panel=DATA)
]
Workers = Annotated[
    int, typer.Option("--workers", "-j", help="Processes that load data.", min=0,
                      rich_help_panel=DATA)
]  # fmt: skip
BatchSize = Annotated[
    int, typer.Option("--batch-size", "-b", help="Images a batch, of each process.", min=1)
]
LogFreq = Annotated[
    int, typer.Option(help="Batches until partial sums are shown and kept again.", min=1)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        " /--fresh",
        help="Go on from partial sums next to the results file.",
    ),
]
TorchCompile = Annotated[
    str | None,
    typer.Option(metavar="[BACKEND]", help="Run under torch.compile; inductor if not named."),
]


@grouped(pretrained=True)
def validate(
    *,
    model: ModelFlags,
    r: Rs = "16",
    merge: MergeFlags,
    running: RunFlags,
    file: FileFlags,
    data_argument: Root = None,
    data_dir: DataDir = None,
    dataset: Name = "",
    split: Split = "validation",
    class_map: ClassMap = "",
    labels: Labels = "data",
    batch_size: BatchSize = 64,
    workers: Workers = 4,
    crop_pct: CropPct = None,
    interpolation: Interpolation = "",
    torchcompile: TorchCompile = None,
    log_freq: LogFreq = 10,
    resume: Resume = True,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Accuracy with and without merging, and how often and how far the answers differ.

    Under torchrun the images are shared out over its processes.
    """
    if labels not in datasets.LABELS:
        raise CliError(f"--labels {labels}: not one of {', '.join(datasets.LABELS)}")
    if data_argument and data_dir and data_argument != data_dir:
        raise CliError(f"two folders named: {data_argument} and --data-dir {data_dir}")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise CliError(f"--crop-pct {crop_pct:g}: not above 0 and up to 1")
    if interpolation and interpolation not in datasets.INTERPOLATIONS:
        allowed = ", ".join(datasets.INTERPOLATIONS)
        raise CliError(f"--interpolation {interpolation}: not one of {allowed}")
    evaluate.check_backend(torchcompile)
    # r=0 is the original, which is measured in any case.
    rs = {text: value for text, value in by_r(o.parse_rs(r)).items() if value != 0}
    kind, dtype = file.kind(), running.autocast()
    spec = model.spec(running.device, running.kind)
    data = datasets.DataSpec(
        data_argument or data_dir, dataset, split, class_map, labels=labels == "data"
    )
    options = merge.options()
    running.set_threads()
    with joined() as processes, evaluate.many_programs(torchcompile):
        spec = replace(spec, device=processes.device(running.device))
        with processes.first_goes_first():
            ready = prepare(spec, data, rs, options, crop_pct, interpolation, batch_size, workers)
        course = replace(
            ready.course,
            amp=dtype,
            every=log_freq,
            world=processes.world,
            fill=torchcompile is not None,
        )
        if course.total is None and processes.world > 1:
            raise CliError(f"{data.name}: a stream cannot be shared out; run one process")
        found = evaluate.compiled(ready.found, torchcompile)
        ready = Ready(ready.loaded, found, course)
        settings = settings_of(ready, data, options, torchcompile)
        path = file.results_file
        kept = partial.path_of(path) if path else None
        sums = run(ready, settings, kept, resume, processes)
    if not processes.first:
        return
    environment = results.machine(ready.loaded, dtype) | {
        "processes": processes.world,
        "compile": torchcompile or "",
        "weights": ready.loaded.weights,
        "flags": told(model, merge),
    }
    tell(scores_of(ready, data, sums), environment, data.name, path, kind, as_json)


def tell(
    scores: list[Score],
    environment: dict[str, Any],
    data: str,
    file: Path | None,
    kind: str,
    as_json: bool,
) -> None:
    """Write the results to the file and print them."""
    records = [row.record() for row in scores]
    if file:
        results.write_records(file, kind, records, environment)
    if as_json:
        console.print_json({"environment": environment, "results": records})
        return
    tables.print_scores(scores, console.out())
    base = scores[0]
    print(
        f"{base.model}, weights {environment['weights']}; {base.images} images of {data},"
        f" batch {base.batch_size}; {environment['device_name']}, {environment['precision']}"
    )
    if file:
        print(f"saved: {file}")
