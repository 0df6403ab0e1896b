"""`tome-fx demo`: one photograph through a ViT, merged, checked, timed and drawn."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from torch import Tensor

from tome_fx.cli import console, merging, results, tables, tiles
from tome_fx.cli import options as o
from tome_fx.cli.bench import BatchSize
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import ModelFlags, grouped
from tome_fx.cli.images import open_image
from tome_fx.cli.measure import Row, Settings, by_r, measure, subjects
from tome_fx.cli.models import Loaded
from tome_fx.cli.preprocess import to_batch

Folder = Annotated[Path, typer.Option(help="Where picture, report and figures are written.")]
Photo = Annotated[
    Path | None, typer.Option("--image", help="Another photograph than scikit-image's cat.")
]
Rounds = Annotated[int, typer.Option("--num-bench-iter", help="Rounds of the timing.", min=1)]
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Measure the speed-up.")]
Compile = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Time compiled, else eager models.")
]


@grouped(model="vit_base_patch16_224", pretrained=None)
def demo(
    *,
    model: ModelFlags,
    r: o.R = "16",
    output_dir: Folder = Path("tome-fx-demo"),
    image: Photo = None,
    batch_size: BatchSize = 8,
    num_bench_iter: Rounds = 15,
    speed: Speed = True,
    compiled: Compile = True,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Show all of it on one photograph: check, table, speed, and which patches merged."""
    steps = o.parse_r(r)
    path = image or shipped_photograph()
    photograph = open_image(path)
    name, spec = model.name, model.spec(device)
    if threads:
        torch.set_num_threads(threads)
    loaded = merging.load_quietly(spec)
    results.make_folder(output_dir, "--output-dir")
    say = Talk(silent=as_json)
    say(f"model    {name}, weights {loaded.weights}, on {loaded.device}")
    say(f"image    {path.name}")

    x = to_batch([photograph, photograph], loaded.config).to(loaded.device)
    check_identity(loaded, x)
    say("check    r=0: logits bit-identical to the model's own")

    fast = merging.transform(loaded, steps, merging.MergeOptions())
    (output_dir / "report.txt").write_text(str(fast.report) + "\n", encoding="utf-8")
    say.report(fast.report)

    layers = o.choose_layers([], len(fast.schedule))
    picture = output_dir / "merged.png"
    draw(fast, loaded, photograph, path, layers, picture)

    rows: list[Row] = []
    if speed:
        modes = ("compiled",) if compiled else ("eager",)
        settings = Settings(batch_size, modes, num_bench_iter, warmup=1, memory=False)
        rows = measure(loaded, subjects(loaded, by_r_of(steps, fast)), settings)
        around = results.environment(loaded, settings)
        results.write(output_dir / "speed.json", "json", rows, around)
        say.rows(rows)
    if as_json:
        console.print_json(summary(name, loaded, path, fast.report, rows, picture))
    else:
        for line in closing(fast.report.flop_ratio, rows, picture):
            print(line)


class Talk:
    """What the demo says as it goes; nothing where stdout is for JSON alone."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent

    def __call__(self, line: str) -> None:
        if not self.silent:
            print(line, flush=True)

    def report(self, report: Any) -> None:
        """Print the table of `explain`."""
        if not self.silent:
            print()
            tables.print_report(report, console.out())
            print(flush=True)

    def rows(self, rows: list[Row]) -> None:
        """Print the table of `bench`."""
        if not self.silent:
            tables.print_results(rows, console.out())
            print(flush=True)


def shipped_photograph() -> Path:
    """Return the path of scikit-image's cat, which is in its package: nothing is fetched."""
    import skimage.data

    return Path(skimage.data.__file__).with_name("chelsea.png")


def check_identity(loaded: Loaded, x: Tensor) -> None:
    """Raise CliError unless the logits at r=0 are the model's own, bit for bit."""
    same = merging.transform(loaded, 0, merging.MergeOptions())
    with console.stage("checking r=0"), torch.inference_mode():
        wanted, found = loaded.model(x), same(x)
    if not torch.equal(wanted, found):
        gap = float((wanted - found).abs().max())
        raise CliError(f"r=0 is not the identity: logits differ by up to {gap:.3g}")


def draw(
    fast: Any, loaded: Loaded, photograph: Image.Image, path: Path, layers: list[int], to: Path
) -> None:
    """Write the picture of which patches merged."""
    maps = tiles.token_maps(fast, loaded, [photograph])
    sheet = tiles.draw(loaded, [photograph], [path.name], maps, layers, tiles.Look())
    tiles.save(sheet, to)


def by_r_of(r: Any, fast: Any) -> dict[str, Any]:
    """Return the transformed model by the text of its r."""
    return dict.fromkeys(by_r([r]), fast)


def closing(flop_ratio: float, rows: list[Row], picture: Path) -> list[str]:
    """Return the last lines: speed-up, FLOP ratio, and where the picture is."""
    lines = [f"FLOP ratio {flop_ratio:.2f}", f"picture    {picture}"]
    if rows:
        best = rows[-1]
        lines.insert(
            0,
            f"speed-up   {best.speedup:.2f}x ({best.mode} against {best.mode}, batch"
            f" {best.batch_size}), {best.flop_ratio_share:.0%} of the FLOP ratio",
        )
    return lines


def summary(
    name: str, loaded: Loaded, path: Path, report: Any, rows: list[Row], picture: Path
) -> dict[str, Any]:
    """Return all that the demo found as one JSON-able value."""
    return {
        "model": name,
        "weights": loaded.weights,
        "image": str(path),
        "identity_at_r0": True,
        "flop_ratio": report.flop_ratio,
        "speedup": rows[-1].speedup if rows else None,
        "picture": str(picture),
        "report": report.to_dict(),
        "results": [asdict(row) for row in rows],
    }
