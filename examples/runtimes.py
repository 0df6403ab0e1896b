"""Time a model and its merged result where they are served without PyTorch.

    pip install openvino                            # onnxruntime comes with tome_fx[onnx]
    python examples/runtimes.py                     # some minutes on two cores
    python examples/runtimes.py --models vit_base_patch16_224:16 --batch-sizes 1,8

Both go through ``torch.onnx`` with a batch of any size, and run in turn in one process, in float32,
with as many threads as torch has. torch.compile stands beside them. Runtimes that are not installed
are left out. Times are medians of rounds in turn. Prints a table and writes it as CSV.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import tome_fx
from tome_fx.measuring.sheets import write_csv
from tome_fx.measuring.timing import interleaved, paired_speedup, speedup

Call = Callable[[], Any]
MODELS = "deit_tiny_patch16_224:13,vit_small_patch16_224:13,vit_base_patch16_224:16"


@dataclass(frozen=True)
class Row:
    """One line of the results; times are those of one batch."""

    model: str
    r: int
    batch: int
    runtime: str
    version: str
    original_ms: float
    merged_ms: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    flop_ratio: float
    share: float


def compiled(model: nn.Module, path: Path, images: Tensor) -> Call:
    """``model`` under torch.compile."""
    program = torch.compile(model)

    def call() -> Tensor:
        with torch.inference_mode():
            result: Tensor = program(images)
        return result

    return call


def in_onnxruntime(model: nn.Module, path: Path, images: Tensor) -> Call:
    """The file at ``path`` in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait by running would take the cores from the other program.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def in_openvino(model: nn.Module, path: Path, images: Tensor) -> Call:
    """The file at ``path`` in OpenVINO, in float32: on some CPUs it would take bfloat16."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    program = openvino.Core().compile_model(path, "CPU", settings)
    given = {0: images.numpy()}
    return lambda: torch.from_numpy(program(given)[0])


RUNTIMES: dict[str, tuple[str, Callable[[nn.Module, Path, Tensor], Call]]] = {
    "torch.compile": ("torch", compiled),
    "ONNX Runtime": ("onnxruntime", in_onnxruntime),
    "OpenVINO": ("openvino", in_openvino),
}


def written(model: nn.Module, path: Path, images: Tensor) -> Path:
    """``model`` as an ONNX file for any batch."""
    batch = torch.export.Dim("batch", min=2, max=1024)
    export: Any = torch.onnx.export(
        model, (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    export.save(path)
    return path


def checked(call: Call, expected: Tensor, what: str) -> Call:
    """``call``, if it gives what PyTorch gives."""
    apart = (call() - expected).abs().max() / expected.abs().max()
    if not apart < 1e-3:
        raise SystemExit(f"{what} gives something else than PyTorch: {apart:.1e} apart.")
    return call


def measured(
    name: str, r: int, batches: list[int], rounds: int, folder: Path, runtimes: list[str]
) -> list[Row]:
    """One model in those of ``runtimes`` that are here."""
    torch.manual_seed(0)
    original = timm.create_model(name).eval()
    fast = tome_fx.transform(original, r)
    size = original.default_cfg["input_size"]
    sides = {
        side: (model, written(model, folder / f"{name}-{side}.onnx", torch.randn(2, *size)))
        for side, model in (("original", original), ("merged", fast))
    }
    here = [name for name in runtimes if importlib.util.find_spec(RUNTIMES[name][0]) is not None]
    images = {batch: torch.randn(batch, *size) for batch in batches}
    with torch.inference_mode():
        expected = {
            (batch, side): model(x)
            for batch, x in images.items()
            for side, (model, _) in sides.items()
        }
    flops, rows = fast.report.flop_ratio, []
    for batch, runtime in itertools.product(batches, here):
        package, place = RUNTIMES[runtime]
        calls = {
            side: checked(place(model, path, images[batch]), expected[batch, side],
                          f"{runtime}, {name}, {side}")
            for side, (model, path) in sides.items()
        }  # fmt: skip
        timings = interleaved(calls, rounds, 2, min_sample=0.05)
        before, after = timings["original"], timings["merged"]
        ratio, quartiles = speedup(before, after), paired_speedup(before, after).quartiles
        times = 1e3 * before.median, 1e3 * after.median
        row = Row(
            name, r, batch, runtime, version(package), *times, ratio, *quartiles, flops,
            ratio / flops,
        )  # fmt: skip
        told = f"{row.original_ms:12.1f} {row.merged_ms:10.1f} {ratio:6.2f}"
        print(f"{name:24} {batch:5} {runtime:14} {told} {flops:11.2f} {row.share:6.3f}")
        rows.append(row)
    return rows


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=MODELS, help="name:r, with commas")
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="some of them, with commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", type=Path, default=Path("runtimes.csv"))
    options = parser.parse_args()
    print(f"{'model':24} batch {'runtime':14}  original ms  merged ms  ratio  FLOP ratio  share")
    batches, runtimes = [*map(int, options.batch_sizes.split(","))], options.runtimes.split(",")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for entry in options.models.split(","):
            name, _, r = entry.partition(":")
            rows += measured(name, int(r), batches, options.rounds, Path(folder), runtimes)
    write_csv(options.csv, [asdict(row) for row in rows])
    print(f"saved: {options.csv}")


if __name__ == "__main__":
    main()
