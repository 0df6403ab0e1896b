"""Time the vision towers of vision-language models, compiled, before and after.

    python examples/towers.py                          # some minutes, on a CPU
    python examples/towers.py --device cuda --precision bfloat16 --depth 32 --csv towers-cuda.csv

The towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL by transformers, at their own widths and with random
weights, for one image: rows of patches beside a grid. Both programs are compiled with the same
settings and called in turn; times are medians. Prints a table and writes it as CSV.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import importlib
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tome_fx
from tome_fx.measuring.sheets import write_csv
from tome_fx.measuring.timing import interleaved, paired_speedup, speedup

# The share of the tokens of each row that goes at each layer.
REMOVED = 0.08
WIDE = {"hidden_size": 1280, "num_heads": 16, "out_hidden_size": 2048}
# Module, class, configuration and its options.
TOWERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "Qwen2-VL": ("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", "Qwen2VLVisionConfig",
                 {"embed_dim": 1280, "hidden_size": 1536, "num_heads": 16}),
    "Qwen2.5-VL": ("qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel",
                   "Qwen2_5_VLVisionConfig", WIDE | {"intermediate_size": 3420}),
    "Qwen3-VL": ("qwen3_vl", "Qwen3VLVisionModel", "Qwen3VLVisionConfig",
                 {"hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304,
                  "out_hidden_size": 2048, "deepstack_visual_indexes": []}),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the results."""

    tower: str
    depth: int
    patches: int
    share_removed: float
    rows: int
    transform_s: float
    original_ms: float
    result_ms: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    flop_ratio: float
    share: float
    device: str
    precision: str
    torch: str


def tower_of(name: str, depth: int, side: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A tower, the patches of one image with so many on a side, and its grid."""
    module, cls, config, options = TOWERS[name]
    made = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    told = importlib.import_module(f"transformers.models.{module}.configuration_{module}")
    own = getattr(told, config)(depth=depth, **options)
    if hasattr(own, "fullatt_block_indexes"):  # one of eight, as in the model itself
        own.fullatt_block_indexes = list(range(7, depth, 8))
    width = own.in_channels * own.temporal_patch_size * own.patch_size**2
    patches = torch.randn(side * side, width)
    return getattr(made, cls)(own).eval(), patches, torch.tensor([[1, side, side]])


def measured(name: str, args: argparse.Namespace) -> Row:
    """The row of one tower."""
    model, patches, grid = tower_of(name, args.depth, args.side)
    dtype = getattr(torch, args.precision)
    model, patches = model.to(args.device, dtype), patches.to(args.device, dtype)
    started = time.perf_counter()
    fast = tome_fx.transform(
        model, REMOVED, example_inputs=patches, example_kwargs={"grid_thw": grid}
    )
    transform_s = time.perf_counter() - started
    rows = len(fast.schedule) // args.depth
    with torch.no_grad():
        calls = {
            "original": torch.compile(model),
            "result": torch.compile(fast, fullgraph=True),
        }
        times = interleaved(
            {key: lambda call=call: call(patches, grid_thw=grid) for key, call in calls.items()},
            args.rounds,
            2,
            synchronize=torch.cuda.synchronize if args.device == "cuda" else lambda: None,
        )
    before, after = times["original"], times["result"]
    quartiles, ratio = paired_speedup(before, after).quartiles, fast.report.flop_ratio
    return Row(
        name, args.depth, len(patches), REMOVED, rows, transform_s, before.median * 1e3,
        after.median * 1e3, speedup(before, after), *quartiles, ratio,
        speedup(before, after) / ratio, args.device, args.precision, torch.__version__,
    )  # fmt: skip


def main() -> None:
    """Time the towers and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--depth", type=int, default=8, help="layers")
    parser.add_argument("--side", type=int, default=32, help="patches on a side of the image")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--towers", nargs="*", default=list(TOWERS), choices=list(TOWERS))
    parser.add_argument("--csv", type=Path, default=Path("towers.csv"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found = []
    for name in args.towers:
        torch._dynamo.reset()
        row = measured(name, args)
        found.append(row)
        print(
            f"{row.tower:12} {row.patches} patches in {row.rows} rows, {row.depth} layers: "
            f"{row.original_ms:.0f} -> {row.result_ms:.0f} ms, {row.speedup:.2f} times as fast "
            f"({row.speedup_q1:.2f} to {row.speedup_q3:.2f}), FLOP ratio {row.flop_ratio:.2f}, "
            f"share {row.share:.3f}; transform() in {row.transform_s:.1f} s"
        )
        write_csv(args.csv, [asdict(one) for one in found])


if __name__ == "__main__":
    main()
