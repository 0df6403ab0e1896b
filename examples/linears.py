"""Time the linears of a ViT alone, with all its tokens and with those that merging leaves it.

    python examples/linears.py                      # a few minutes on two cores
    python examples/linears.py --models vit_base_224 --batch-sizes 1,4,8

A product of fewer rows runs at a lower rate, for its weights are read all the same. How much that
costs is a matter of the machine and its library, not of merging: were there nothing in a model but
linears, it would be the share of the FLOP ratio that is reached. Each layer has weights of its own,
as in the model. Times are medians of rounds in turn. Prints a table and writes it as CSV.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tome_fx.measuring.sheets import write_csv
from tome_fx.measuring.timing import interleaved, paired_speedup, speedup

# Tokens of the first layer, channels, tokens that a layer removes, layers.
SHAPES = {
    "vit_small_224": (197, 384, 13, 12),
    "vit_base_224": (197, 768, 16, 12),
    "vit_large_224": (197, 1024, 8, 24),
}
Layer = tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]
Product = tuple[nn.Linear, Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the results; times are those of one batch."""

    model: str
    r: int
    batch: int
    original_ms: float
    merged_ms: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    flop_ratio: float
    share: float


def layer_of(channels: int, like: Tensor) -> Layer:
    """The linears around attention (queries, keys and values in one), and those of the MLP."""
    c = channels
    one, two, three, four = (
        nn.Linear(*size).to(like) for size in ((c, 3 * c), (c, c), (c, 4 * c), (4 * c, c))
    )
    return one, two, three, four


def products(
    layers: Sequence[Layer], tokens: int, r: int, batch: int, like: Tensor
) -> list[Product]:
    """Each linear with what it multiplies: those of the MLP have r tokens less already."""
    counts = [
        tokens - r * (index + place // 2) for index in range(len(layers)) for place in range(4)
    ]
    every = [linear for layer in layers for linear in layer]
    return [
        (linear, torch.randn(batch, count, linear.in_features).to(like))
        for linear, count in zip(every, counts, strict=True)
    ]


def run(work: Sequence[Product]) -> None:
    """All products, one after another."""
    for linear, x in work:
        linear(x)


def macs(work: Sequence[Product]) -> int:
    """Multiply-accumulates of all."""
    return sum(x.numel() * linear.out_features for linear, x in work)


def measured(name: str, batch: int, rounds: int, like: Tensor) -> Row:
    """A model's linears with all tokens and with those that are left, in turn."""
    tokens, channels, r, depth = SHAPES[name]
    layers = [layer_of(channels, like) for _ in range(depth)]
    works = {n: products(layers, tokens, n, batch, like) for n in (0, r)}
    waiting = like.device.type != "cpu"
    wait = partial(torch.accelerator.synchronize, like.device) if waiting else lambda: None
    calls = {str(n): partial(run, work) for n, work in works.items()}
    timings = interleaved(calls, rounds, 2, synchronize=wait, min_sample=0.05)
    before, after = timings["0"], timings[str(r)]
    first, third = paired_speedup(before, after).quartiles
    ratio, flops = speedup(before, after), macs(works[0]) / macs(works[r])
    milliseconds = 1e3 * before.median, 1e3 * after.median
    return Row(name, r, batch, *milliseconds, ratio, first, third, flops, ratio / flops)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(SHAPES), help="some of them, with commas")
    parser.add_argument("--batch-sizes", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--csv", type=Path, default=Path("linears.csv"))
    options = parser.parse_args()
    torch.manual_seed(0)
    like = torch.empty(0, device=options.device, dtype=getattr(torch, options.precision))
    rows: list[Row] = []
    print(f"{'model':14} batch  original ms  merged ms  ratio  FLOP ratio  share")
    for name in options.models.split(","):
        for batch in map(int, options.batch_sizes.split(",")):
            with torch.inference_mode():
                row = measured(name, batch, options.rounds, like)
            rows.append(row)
            times = f"{row.original_ms:12.1f} {row.merged_ms:10.1f} {row.ratio:6.2f}"
            print(f"{name:14} {batch:5} {times} {row.flop_ratio:11.2f} {row.share:6.3f}")
    write_csv(options.csv, [asdict(row) for row in rows])
    print(f"saved: {options.csv}")


if __name__ == "__main__":
    main()
