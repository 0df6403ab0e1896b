"""Time matching and merging on a CUDA device: plain PyTorch, compiled, against the Triton kernels.

    python examples/kernels.py                      # a few minutes, most of it compiling
    python examples/kernels.py --models vit_large_384 --batch-sizes 1,64 --csv large.csv

Both forms run under torch.compile and are recorded as a CUDA graph, so that what is timed is the
device. They are timed in turn. Prints a table and writes it as CSV; without a CUDA device it says
so and exits with 2. For whole models: `TOME_FX_KERNELS=portable tome-fx bench MODEL --device cuda`,
and the same with `triton`.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tome_fx import kernels, ops
from tome_fx.measuring.sheets import write_csv


@dataclass(frozen=True)
class Shape:
    """One model: patches at its first layer, its heads and channels, and what a layer removes."""

    patches: int
    heads: int
    channels: int
    layers: int
    r: int


@dataclass(frozen=True)
class Row:
    """One line of the results; times are medians in microseconds."""

    model: str
    layer: int
    tokens: int
    batch: int
    step: str
    portable_us: float
    triton_us: float
    speedup: float


SHAPES = {
    "vit_base_224": Shape(patches=196, heads=12, channels=768, layers=12, r=16),
    "vit_large_384": Shape(patches=576, heads=16, channels=1024, layers=24, r=23),
}
Inputs = tuple[Tensor, Tensor, ops.MergePlan, Tensor, Tensor, Tensor]
Step = Callable[[Inputs, int], object]


def inputs_of(shape: Shape, layer: int, batch: int, device: str, dtype: torch.dtype) -> Inputs:
    """Keys as a view of a fused q/k/v, a stream with a class token, a plan, sizes, a norm."""
    tokens, width = 1 + shape.patches - layer * shape.r, shape.channels // shape.heads
    fused = torch.randn(batch, tokens, 3, shape.heads, width, device=device, dtype=dtype)
    keys = fused[:, :, 1].transpose(1, 2)
    x = torch.randn(batch, tokens, shape.channels, device=device, dtype=dtype)
    with kernels.using("portable"):
        plan = ops.match_keys(keys, shape.r, 1, 1, 0)
    size = torch.randint(1, 4, (batch, tokens - 1), device=device).float()
    scale, shift = torch.randn(2, shape.channels, device=device, dtype=dtype)
    return keys, x, plan, size, scale, shift


def match(inputs: Inputs, r: int) -> object:
    """Keys to a plan."""
    return ops.match_keys(inputs[0], r, 1, 1, 0)


def merge_norm(inputs: Inputs, r: int, plan: ops.MergePlan | None = None) -> object:
    """A plan and the stream to the merged stream, its norm and the sizes."""
    keys, x, given, size, scale, shift = inputs
    shape = [x.shape[-1]]
    return ops.merge_norm(x, plan or given, size, keys, shape, scale, shift, 1e-6, 1, 0)[:3]


def both(inputs: Inputs, r: int) -> object:
    """All that merging adds to a layer."""
    return merge_norm(inputs, r, ops.match_keys(inputs[0], r, 1, 1, 0))


STEPS: dict[str, Step] = {"match": match, "merge + norm": merge_norm, "both": both}


def recorded(step: Step, inputs: Inputs, r: int, mode: str) -> torch.cuda.CUDAGraph:
    """``step`` compiled with or without kernels, as a CUDA graph."""
    torch._dynamo.reset()
    with kernels.using(mode), torch.inference_mode():
        compiled = torch.compile(step, fullgraph=True, dynamic=False)
        for _ in range(3):
            compiled(inputs, r)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compiled(inputs, r)
    return graph


def microseconds(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    """Device time of one replay, from events around ``calls`` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(end) / calls


def measured(name: str, layer: int, batch: int, rounds: int) -> Iterator[Row]:
    """A row for each step of one layer."""
    shape = SHAPES[name]
    inputs = inputs_of(shape, layer, batch, "cuda", torch.bfloat16)
    for title, step in STEPS.items():
        graphs = {mode: recorded(step, inputs, shape.r, mode) for mode in ("portable", "triton")}
        times: dict[str, list[float]] = {mode: [] for mode in graphs}
        for graph in graphs.values():
            microseconds(graph, 20)
        for _ in range(rounds):
            for mode, graph in graphs.items():
                times[mode].append(microseconds(graph, 20))
        plain, fused = (statistics.median(times[mode]) for mode in ("portable", "triton"))
        tokens = inputs[1].shape[1]
        yield Row(name, layer, tokens, batch, title, plain, fused, plain / fused)


def agreement(name: str) -> str:
    """How far the two forms are apart on this device, in words."""
    shape = SHAPES[name]
    inputs = inputs_of(shape, 0, 8, "cuda", torch.bfloat16)
    found = {}
    for mode in ("portable", "triton"):
        with kernels.using(mode), torch.inference_mode():
            found[mode] = (match(inputs, shape.r), merge_norm(inputs, shape.r))
    plans, norms = zip(found["portable"], found["triton"], strict=True)
    pairs = (plans[0].src == plans[1].src) & (plans[0].dst == plans[1].dst)
    apart = max(float((a - b).abs().max()) for a, b in zip(*norms, strict=True))
    share = 100 * float(pairs.float().mean())
    return f"{name}: {share:.2f} % of the pairs alike, merged values at most {apart:.2g} apart"


def line(row: Row) -> str:
    """A row as text."""
    return (
        f"{row.model:14} {row.layer:5} {row.tokens:6} {row.batch:5}  {row.step:12} "
        f"{row.portable_us:11.1f} {row.triton_us:9.1f} {row.speedup:7.2f}x"
    )


HEADER = "model          layer tokens batch  step         portable us triton us speed-up"


def written(path: Path, rows: list[Row]) -> None:
    """Write all rows as CSV."""
    write_csv(path, [asdict(row) for row in rows])


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(SHAPES), help="some of them, with commas")
    parser.add_argument("--batch-sizes", default="1,8,64,256")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--csv", type=Path, default=Path("kernels.csv"))
    options = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.chosen("cuda", 0):
        print("This measures Triton kernels and needs an NVIDIA device; none is there.",
              file=sys.stderr)  # fmt: skip
        return 2
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16")
    rows: list[Row] = []
    for name in options.models.split(","):
        print(agreement(name))
    print(HEADER)
    for name in options.models.split(","):
        for layer in (0, SHAPES[name].layers // 2):
            for batch in map(int, options.batch_sizes.split(",")):
                for row in measured(name, layer, batch, options.rounds):
                    rows.append(row)
                    print(line(row), flush=True)
                written(options.csv, rows)
    print(f"saved: {options.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
