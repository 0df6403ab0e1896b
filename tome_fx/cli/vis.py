"""`tome-fx vis`: which patches became one token, as the paper draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tome_fx.cli import console, merging, tiles
from tome_fx.cli import options as o
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import MergeFlags, ModelFlags, grouped
from tome_fx.cli.images import MAX_PIXELS, open_image
from tome_fx.cli.results import check_writable

DEFAULT_MODEL = "vit_base_patch16_224"

Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photographs.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The sheet to write.")]
Layers = Annotated[str, typer.Option(help="Layers to show, counted from 1: 4,8,12.")]
Tile = Annotated[int, typer.Option(help="Side of a tile in pixels.", min=32, max=4096)]
Line = Annotated[int, typer.Option(help="Width of the lines between groups.", min=0, max=32)]
MaxPixels = Annotated[int, typer.Option(help="Refuse larger photographs.", min=1)]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="Images a batch.", min=1)]


@grouped(model=DEFAULT_MODEL, pretrained=None)
def vis(
    *,
    images: Images,
    model: ModelFlags,
    r: o.R = "16",
    merge: MergeFlags,
    output: Output = Path("sheet.png"),
    layers: Layers = "auto",
    tile: Tile = 448,
    line: Line = 2,
    batch_size: BatchSize = 8,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: o.Device = "cpu",
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Draw token groups in their mean colour, with lines between them, as one sheet."""
    tiles.check_suffix(output, "--output")
    check_writable(output, "--output")
    if any(path.resolve() == output.resolve() for path in images):
        raise CliError(f"--output {output}: is one of the images, and would replace it")
    steps, wanted = o.parse_r(r), o.parse_layers(layers)
    photographs = [open_image(path, max_pixels) for path in images]
    spec, options = model.spec(device), merge.options()
    loaded = merging.load_quietly(spec)
    fast = merging.transform(loaded, steps, options)
    shown = o.choose_layers(wanted, len(fast.schedule))
    maps = tiles.token_maps(fast, loaded, photographs, batch_size)
    names = [path.name for path in images]
    look = tiles.Look(tile, line)
    tiles.save(tiles.draw(loaded, photographs, names, maps, shown, look), output)
    counts = tiles.tokens(maps, shown)
    if as_json:
        console.print_json(
            {
                "output": str(output),
                "model": spec.name,
                "weights": loaded.weights,
                "images": [str(path) for path in images],
                "layers": shown,
                "tokens": counts,
                "schedule": list(fast.schedule),
            }
        )
        return
    what = ", ".join(f"layer {at}: {count}" for at, count in zip(shown, counts, strict=True))
    print(f"{spec.name}, weights {loaded.weights}; tokens at {what}")
    print(f"saved: {output}")
