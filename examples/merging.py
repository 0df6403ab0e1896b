"""Time the forms that a merge can have, each compiled: which one wins on this device?

    python examples/merging.py                      # a few minutes, most of it compiling
    python examples/merging.py --device cuda --precision bfloat16 --csv merging-cuda.csv

- added rows: one gather of the tokens that stay, and r weighted rows added to it by index (the form
  that programs have);
- one-hot rows: the same gather, and the r rows placed by a product with a one-hot matrix;
- one-hot: all in one product, ``[N - r, N]`` weights by ``[N, C]`` tokens.

Times are medians of rounds in turn. Prints a table and writes it as CSV.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tome_fx import kernels, ops
from tome_fx.measuring.sheets import write_csv
from tome_fx.measuring.timing import interleaved

# Patches of the first layer, channels, tokens that a layer removes, layers.
SHAPES = {
    "vit_small_224": (196, 384, 13, 12),
    "vit_base_224": (196, 768, 16, 12),
    "vit_large_224": (196, 1024, 8, 24),
    "vit_large_384": (576, 1024, 23, 24),
}
Inputs = tuple[Tensor, ops.MergePlan, Tensor, Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the results; times in microseconds."""

    model: str
    layer: int
    tokens: int
    batch: int
    added_rows_us: float
    onehot_rows_us: float
    onehot_us: float


def inputs_of(patches: int, channels: int, r: int, batch: int, like: Tensor) -> Inputs:
    """A stream with a class token, a plan, and the sizes before and after."""
    tokens = patches + 1
    x = torch.randn(batch, tokens, channels).to(like)
    with kernels.using("portable"):
        plan = ops.match_keys(x[:, None, :, :64], r, 1, 1, 0)
    size = torch.randint(1, 4, (batch, patches)).to(like.device, torch.float32)
    return x, plan, size, ops.merged_size(plan, size, x)


def added_rows(x: Tensor, plan: ops.MergePlan, size: Tensor, new: Tensor) -> Tensor:
    """The form of the programs."""
    return ops.merge(x, plan, size, new, front=1)


def onehot_rows(x: Tensor, plan: ops.MergePlan, size: Tensor, new: Tensor) -> Tensor:
    """Without scatter."""
    return ops.merge(x, plan, size, new, front=1, onehot=True)


def onehot(x: Tensor, plan: ops.MergePlan, size: Tensor, new: Tensor) -> Tensor:
    """One product for the whole merge."""
    assignment = ops.assignment(plan)
    slots = torch.arange(new.shape[1], device=x.device)
    weights = (assignment[:, None] == slots[:, None]) * (size[:, None] / new[..., None])
    return torch.cat([x[:, :1], weights.to(x.dtype) @ x[:, 1:]], dim=1)


FORMS: tuple[Callable[..., Tensor], ...] = (added_rows, onehot_rows, onehot)


def measured(inputs: Inputs, rounds: int) -> list[float]:
    """Microseconds of each form."""
    torch._dynamo.reset()
    compiled = [torch.compile(form, fullgraph=True, dynamic=False) for form in FORMS]
    expected = FORMS[0](*inputs)
    for form in compiled:
        torch.testing.assert_close(form(*inputs), expected, atol=0.05, rtol=0.05)
    calls = {
        form.__name__: partial(run, *inputs) for form, run in zip(FORMS, compiled, strict=True)
    }
    device = inputs[0].device
    waiting = device.type != "cpu"
    wait = partial(torch.accelerator.synchronize, device) if waiting else lambda: None
    timings = interleaved(calls, rounds, 1, synchronize=wait, min_sample=2e-3)
    return [1e6 * timings[form.__name__].median for form in FORMS]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(SHAPES), help="some of them, with commas")
    parser.add_argument("--batch-sizes", default="1,8,64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--csv", type=Path, default=Path("merging.csv"))
    options = parser.parse_args()
    torch.manual_seed(0)
    like = torch.empty(0, device=options.device, dtype=getattr(torch, options.precision))
    rows: list[Row] = []
    print(f"{'model':14} layer tokens batch  added rows us  one-hot rows us  one-hot us")
    for name in options.models.split(","):
        patches, channels, r, layers = SHAPES[name]
        for layer in (0, layers // 2):
            for batch in map(int, options.batch_sizes.split(",")):
                inputs = inputs_of(patches - layer * r, channels, r, batch, like)
                with kernels.using("portable"), torch.inference_mode():
                    row = Row(name, layer, inputs[0].shape[1], batch,
                              *measured(inputs, options.rounds))  # fmt: skip
                rows.append(row)
                print(f"{name:14} {layer:5} {row.tokens:6} {batch:5} {row.added_rows_us:14.0f} "
                      f"{row.onehot_rows_us:16.0f} {row.onehot_us:11.0f}", flush=True)  # fmt: skip
    write_csv(options.csv, [asdict(row) for row in rows])
    print(f"saved: {options.csv}")


if __name__ == "__main__":
    main()
