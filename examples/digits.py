"""Train a small Vision Transformer on scikit-learn's digits, with and without token merging.

For each r it measures two things on held-out images: the plain model with merging switched on after
its training (off the shelf), and a model that was trained with merging from the start. Run it with

    pip install -e ".[examples]"
    python examples/digits.py

It downloads nothing and writes docs/benchmarks/digits.json and the table of docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tome_fx

ROOT = Path(__file__).resolve().parents[1]
MODEL = {"img_size": 16, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 64,
         "depth": 4, "num_heads": 2, "global_pool": "avg", "class_token": False}  # fmt: skip
MARKS = ("<!-- digits: made by examples/digits.py -->", "<!-- end of digits -->")


@dataclass
class Digits:
    """Images ``[n, 1, 16, 16]`` of mean 0 and their labels, in two parts that share no image."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits() -> Digits:
    """The 1797 images of 8 x 8, twice as large so that patches of 2 make 64 tokens."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=16, mode="bilinear")
    labels = torch.tensor(data.target)
    # The same split for every seed: seeds say how much of a difference is the training's luck.
    first, second = train_test_split(
        range(len(labels)), test_size=0.25, random_state=0, stratify=labels
    )
    return Digits((images[first], labels[first]), (images[second], labels[second]))


def train(r: int, data: Digits, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """A model trained with ``r`` tokens merged in each layer, and the seconds that it took.

    The merged program shares its parameters with the model: training one trains both.
    """
    torch.manual_seed(seed)
    model = VisionTransformer(**MODEL).train()
    # Patches of a few grey values say little; so few images teach where they are too slowly.
    nn.init.normal_(model.pos_embed, std=0.5)
    program = tome_fx.transform(model, r) if r else model
    images, labels = data.train
    batch = 32
    steps = epochs * (len(labels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    start = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels))[: steps // epochs * batch].split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(program(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval(), time.perf_counter() - start


@torch.inference_mode()
def accuracy(program: nn.Module, data: Digits) -> float:
    """Percent of the held-out images that are classified right."""
    images, labels = data.test
    return 100 * float((program(images).argmax(1) == labels).float().mean())


@torch.inference_mode()
def seconds(programs: dict[int, nn.Module], images: Tensor, rounds: int) -> dict[int, float]:
    """Median time of a forward pass; all are called in turn, so that a busy spell meets each."""
    taken: dict[int, list[float]] = {r: [] for r in programs}
    for i in range(rounds + 2):
        for r, program in programs.items():
            start = time.perf_counter()
            program(images)
            if i >= 2:
                taken[r].append(time.perf_counter() - start)
    return {r: statistics.median(times) for r, times in taken.items()}


def merged(model: nn.Module, r: int) -> nn.Module:
    """The evaluation program with ``r`` tokens merged in each layer."""
    return tome_fx.transform(model, r) if r else model


def measure(rs: list[int], epochs: int, seeds: int, rounds: int) -> dict[str, Any]:
    """All figures of the table."""
    data = digits()
    runs: dict[int, dict[str, list[float]]] = {
        r: {"off_the_shelf": [], "trained": [], "train_seconds": []} for r in (0, *rs)
    }
    reports = {}
    for seed in range(seeds):
        plain, spent = train(0, data, epochs, seed)
        base = accuracy(plain, data)
        runs[0]["off_the_shelf"].append(base)
        runs[0]["trained"].append(base)
        runs[0]["train_seconds"].append(spent)
        for r in rs:
            shelf = merged(plain, r)
            reports[r] = shelf.report
            runs[r]["off_the_shelf"].append(accuracy(shelf, data))
            model, spent = train(r, data, epochs, seed)
            runs[r]["trained"].append(accuracy(merged(model, r), data))
            runs[r]["train_seconds"].append(spent)
            print(f"seed {seed}, r = {r}: {base:.1f} % without merging, "  # noqa: T201
                  f"{runs[r]['off_the_shelf'][-1]:.1f} off the shelf, "
                  f"{runs[r]['trained'][-1]:.1f} trained with it", flush=True)  # fmt: skip
    forward = seconds({r: merged(plain, r) for r in (0, *rs)}, data.test[0], rounds)
    rows = []
    for r, run in runs.items():
        report = reports.get(r)
        tokens = [b.tokens_out for b in report.blocks] if report else [64] * MODEL["depth"]
        ratio = report.flop_ratio if report else 1.0
        rows.append({"r": r, "tokens": tokens, "flop_ratio": ratio, "forward_seconds": forward[r],
                     **run})  # fmt: skip
    return {
        "model": MODEL,
        "train_images": len(data.train[1]),
        "test_images": len(data.test[1]),
        "epochs": epochs,
        "seeds": seeds,
        "rounds": rounds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "rows": rows,
    }


def percent(values: list[float]) -> str:
    """The mean over seeds, lowest and highest."""
    mean = statistics.mean(values)
    return f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def write(
    results: dict[str, Any], out: Path, rows: str, page: Path, marks: tuple[str, str]
) -> None:
    """Write the results, and their table between the marks of a page if there is one."""
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if page.exists():
        before, _, rest = page.read_text(encoding="utf-8").partition(marks[0])
        after = rest.partition(marks[1])[2]
        page.write_text(f"{before}{marks[0]}\n{rows}\n{marks[1]}{after}", encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    base = results["rows"][0]
    lines = [
        "| r | tokens after each layer | FLOP ratio | forward | training "
        "| off the shelf, % | trained with merging, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        speed = base["forward_seconds"] / row["forward_seconds"]
        spent = statistics.median(row["train_seconds"])
        faster = statistics.median(base["train_seconds"]) / spent
        shelf = percent(row["off_the_shelf"])
        lines.append(
            f"| {row['r']} | {', '.join(map(str, row['tokens']))} | {row['flop_ratio']:.2f} "
            f"| {1000 * row['forward_seconds']:.0f} ms ({speed:.2f}x) "
            f"| {spent:.0f} s ({faster:.2f}x) "
            f"| {shelf} | {percent(row['trained']) if row['r'] else 'the same'} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, write the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--r", default="8,16,32", help="tokens to merge in each layer")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="timed forward passes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks/digits.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/training.md")
    options = parser.parse_args(argv)
    # Layers this small gain nothing from a second thread, and suffer where cores are shared.
    torch.set_num_threads(options.threads)
    rs = [int(r) for r in options.r.split(",")]
    start = time.perf_counter()
    results = measure(rs, options.epochs, options.seeds, options.rounds)
    results["seconds"] = time.perf_counter() - start
    rows = table(results)
    write(results, options.out, rows, options.page, MARKS)
    print(rows)  # noqa: T201


if __name__ == "__main__":
    main()
