"""Compare ways to match: accuracy of a small Vision Transformer that none of them has trained.

The model of digits.py is trained without merging; then each function below chooses what merges in
it, for each r. They are the alternatives that the paper compares in its table 1 (features, heads,
partition), random pairs, and one that looks at places alone. Run it with

    pip install -e ".[examples]"
    python examples/matchings.py

It downloads nothing and writes docs/benchmarks/matchings.json and the table of docs/matching.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from digits import MODEL, ROOT, accuracy, digits, percent, train, write
from torch import Tensor

import tome_fx

MARKS = ("<!-- matchings: made by examples/matchings.py -->", "<!-- end of matchings -->")
SIDE = MODEL["img_size"] // MODEL["patch_size"]
Pairs = tuple[Tensor, Tensor]


def nearest(tokens: Tensor, a: Tensor, b: Tensor, r: int) -> Pairs:
    """The ``r`` tokens of ``a`` that are most like their nearest one of ``b``, by cosines.

    Args:
        tokens: ``[B, n, C]``.
        a, b: positions, no token in both.
    """
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    best, partner = (unit[:, a] @ unit[:, b].mT).max(-1)
    order = best.topk(r, dim=-1).indices
    return a[order], b[partner.gather(1, order)]


def halves(tokens: Tensor) -> Pairs:
    """Even and odd positions."""
    index = torch.arange(tokens.shape[1], device=tokens.device)
    return index[::2], index[1::2]


def by_keys(metric: Tensor, r: int) -> Pairs:
    """The paper's choice: the mean of the keys over the heads, alternating."""
    return nearest(metric, *halves(metric), r)


def by_heads(keys: Tensor, r: int) -> Pairs:
    """The keys of all heads side by side."""
    tokens = keys.transpose(1, 2).flatten(2)
    return nearest(tokens, *halves(tokens), r)


def by_features(x: Tensor, r: int) -> Pairs:
    """The tokens themselves."""
    return nearest(x, *halves(x), r)


def in_two_parts(metric: Tensor, r: int) -> Pairs:
    """The first half of the row with the second one."""
    index = torch.arange(metric.shape[1], device=metric.device)
    half = (len(index) + 1) // 2
    return nearest(metric, index[:half], index[half:], r)


def in_random_parts(metric: Tensor, r: int) -> Pairs:
    """One half drawn at each call with the rest."""
    order = torch.randperm(metric.shape[1], device=metric.device)
    half = (len(order) + 1) // 2
    return nearest(metric, order[:half], order[half:], r)


def by_place(position: Tensor, r: int) -> Pairs:
    """The nearest in the image, whatever they show."""
    place = torch.stack([position // SIDE, position % SIDE], -1).float()
    a, b = halves(place)
    least, partner = torch.cdist(place[:, a], place[:, b]).min(-1)
    order = least.topk(r, dim=-1, largest=False).indices
    return a[order], b[partner.gather(1, order)]


def at_random(metric: Tensor, r: int) -> Pairs:
    """Any tokens into any of the others."""
    order = torch.rand(metric.shape[:2], device=metric.device).argsort(-1)
    left = metric.shape[1] - r
    drawn = torch.rand(metric.shape[0], r, device=metric.device) * left
    return order[:, :r], order[:, r:].gather(1, drawn.long())


MATCHINGS: tuple[tuple[str, Callable[..., Pairs] | None], ...] = (
    ("bipartite soft matching (built in)", None),
    ("keys, mean over heads", by_keys),
    ("keys of all heads", by_heads),
    ("features X", by_features),
    ("keys, first half with second", in_two_parts),
    ("keys, random halves", in_random_parts),
    ("nearest in the image", by_place),
    ("random pairs", at_random),
)


def measure(rs: list[int], epochs: int, seeds: int) -> dict[str, Any]:
    """Accuracies by method and r, of each seed."""
    data = digits()
    found: dict[str, dict[int, list[float]]] = {name: {r: [] for r in rs} for name, _ in MATCHINGS}
    plain = []
    for seed in range(seeds):
        model, _ = train(0, data, epochs, seed)
        plain.append(accuracy(model, data))
        for name, function in MATCHINGS:
            for r in rs:
                torch.manual_seed(seed)
                fast = tome_fx.transform(model, r, matching=function)
                found[name][r].append(accuracy(fast, data))
            print(seed, name, {r: f"{v[-1]:.1f}" for r, v in found[name].items()}, flush=True)  # noqa: T201
    return {
        "model": MODEL,
        "test_images": len(data.test[1]),
        "epochs": epochs,
        "seeds": seeds,
        "torch": torch.__version__,
        "without_merging": plain,
        "rows": found,
    }


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    rs = list(next(iter(results["rows"].values())))
    lines = [
        "| matched by | " + " | ".join(f"r = {r}" for r in rs) + " |",
        "|---" * (len(rs) + 1) + "|",
    ]
    for name, row in results["rows"].items():
        lines.append(f"| {name} | " + " | ".join(percent(row[r]) for r in rs) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, write the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--r", default="8,16,24", help="tokens to merge in each layer")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks/matchings.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/matching.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results = measure([int(r) for r in options.r.split(",")], options.epochs, options.seeds)
    rows = table(results)
    write(results, options.out, rows, options.page, MARKS)
    print(rows)  # noqa: T201


if __name__ == "__main__":
    main()
