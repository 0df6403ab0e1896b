"""Flags that several commands share, named as in timm's benchmark.py and validate.py."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tome_fx.cli.failure import CliError

MODEL = "Model"
MERGING = "Merging"
_ALONE = {"--torchcompile": "inductor", "--suite": "all"}

ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A timm model name.", show_default=False)
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A timm model name.", rich_help_panel=MODEL),
]
Pretrained = Annotated[
    bool | None,
    typer.Option("--pretrained/--no-pretrained", help="Pretrained weights.", rich_help_panel=MODEL),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Weights to load: .safetensors, or .pt/.pth (weights only, no code is run).",
        rich_help_panel=MODEL,
    ),
]
ImgSize = Annotated[
    int | None, typer.Option(help="Input image side; the model's own if left out.", min=1,
                             rich_help_panel=MODEL)
]  # fmt: skip
NumClasses = Annotated[
    int | None, typer.Option(help="Number of output classes.", min=0, rich_help_panel=MODEL)
]
InChans = Annotated[
    int | None, typer.Option(help="Number of input channels.", min=1, rich_help_panel=MODEL)
]
ModelKwargs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="For the model's constructor; repeatable.", rich_help_panel=MODEL
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's own if left out.", min=1)]
Precision = Annotated[
    str, typer.Option(help="float32, bfloat16, float16, or amp (see --amp-dtype).")
]
Amp = Annotated[bool, typer.Option("--amp", help="The same as --precision amp.")]
AmpDtype = Annotated[str, typer.Option(help="bfloat16 or float16, for --precision amp.")]
Prop = Annotated[
    bool,
    typer.Option(
        "--prop-attn/--no-prop-attn", help="Proportional attention.", rich_help_panel=MERGING
    ),
]
Capture = Annotated[
    str, typer.Option(help="auto, export or symbolic_trace.", rich_help_panel=MERGING)
]
Rounding = Annotated[str, typer.Option(help="truncate or exact.", rich_help_panel=MERGING)]
Remerge = Annotated[
    str, typer.Option(help="mean or never: what becomes of values that an op told apart.",
                      rich_help_panel=MERGING)
]  # fmt: skip
Attention = Annotated[
    str, typer.Option(help="auto, or a form of attention over merged keys: mask, kernel, ...",
                      rich_help_panel=MERGING)
]  # fmt: skip
Scatter = Annotated[
    bool,
    typer.Option(
        "--scatter/--no-scatter",
        help="--no-scatter for runtimes whose scatter is missing or wrong.",
        rich_help_panel=MERGING,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse an r that a layer cannot take.",
                       rich_help_panel=MERGING)
]  # fmt: skip
Every = Annotated[
    int, typer.Option(help="Merge at one of each so many layers, all their tokens at once.",
                      rich_help_panel=MERGING)
]  # fmt: skip
Align = Annotated[
    str, typer.Option(help="Bring token counts to a multiple: 8, or auto.", rich_help_panel=MERGING)
]
Matching = Annotated[
    str | None,
    typer.Option(metavar="FILE.py:NAME", help="A function of yours that chooses what merges.",
                 rich_help_panel=MERGING),
]  # fmt: skip
R = Annotated[
    str,
    typer.Option(
        "--r",
        help="Tokens merged per layer: 16, a share 0.05, 16:-1 (first to last layer),"
        " or [16,16,8,...].",
        rich_help_panel=MERGING,
    ),
]
File = Annotated[Path | None, typer.Option(help="Where to write the results (.csv, .json).")]
Format = Annotated[str | None, typer.Option(help="csv or json; by the file's suffix.")]
Json = Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and every warning.")]


def model_name(argument: str | None, option: str | None, default: str | None = None) -> str:
    """Return the one model that was named, as an argument or with --model."""
    if argument and option and argument != option:
        raise CliError(f"two models named: {argument} and --model {option}")
    name = argument or option or default
    if not name:
        raise CliError("no model named: --model and a timm name, such as vit_base_patch16_224")
    return name


def with_backend(args: Sequence[str]) -> list[str]:
    """Return the arguments with a value for flags that may stand alone.

    The parser of flags knows none such: timm's --torchcompile, which means inductor, and --suite,
    which means all of them.
    """
    following = [*args, "-"][1:]
    return [
        f"{arg}={_ALONE[arg]}" if arg in _ALONE and after.startswith("-") else arg
        for arg, after in zip(args, following, strict=True)
    ]


def parse_r(text: str) -> Any:
    """Return what `transform` takes as r: an int, a float, a pair (r, inflect) or a list.

    `16`, `0.05`, `16:-1` and `[16,16,8]`. What the numbers may be is for `transform` to say.
    """
    text = text.strip()
    if text.startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError:
            values = None
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise CliError(f"--r {text}: a list holds whole numbers, as in [16,16,8]")
        return values
    first, colon, inflect = text.partition(":")
    if colon:
        start = _number(first, text)
        if not isinstance(start, int):
            raise CliError(f"--r {text}: the number before the colon is whole, as in 16:-1")
        return start, float(_number(inflect, text))
    return _number(first, text)


def parse_rs(text: str) -> list[Any]:
    """Return several values of r, separated by commas outside brackets."""
    parts = re.findall(r"\[[^\]]*\]|[^,\[\]]+", text)
    if not parts or re.sub(r"\[[^\]]*\]|[^,\[\]]+", "", text).strip(","):
        raise CliError(f"--r {text}: not a number or a list of numbers, as in 8,13,16")
    values = [parse_r(part) for part in parts]
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _number(text: str, whole: str) -> int | float:
    try:
        value = float(text)
    except ValueError:
        raise CliError(f"--r {whole}: not a number (16, 0.05, 16:-1 or [16,16,8])") from None
    if math.isfinite(value) and value.is_integer() and "." not in text:
        return int(value)
    return value


def parse_align(text: str) -> int | str:
    """Return what `transform` takes as align; which numbers it may be is for `transform` to say."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise CliError(f"--align {text}: a whole number, or auto") from None


def show_r(r: Any) -> str:
    """Return r as it is written on the command line."""
    if isinstance(r, tuple):
        return f"{r[0]}:{_shown(r[1])}"
    return json.dumps(list(r), separators=(",", ":")) if isinstance(r, list) else _shown(r)


def _shown(number: int | float) -> str:
    """A number without loss: what is written tells rows of results apart."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


def parse_layers(text: str) -> list[int]:
    """Return the layers of a list such as 4,8,12, counted from 1; empty for `auto`."""
    if text == "auto":
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CliError(
            f"--layers {text}: whole numbers separated by commas, as in 4,8,12"
        ) from None


def choose_layers(layers: list[int], depth: int) -> list[int]:
    """Return the layers, or for none of them a third, two thirds and all of the way.

    Raises CliError where the model has no such layer.
    """
    wrong = [layer for layer in layers if not 1 <= layer <= depth]
    if wrong:
        raise CliError(f"--layers {wrong[0]}: the model has layers 1 to {depth}")
    return layers or sorted({max(1, round(depth * share / 3)) for share in (1, 2, 3)})
