"""A tiny Vision Transformer around one op, and the duplicates law as the judge of its lift.

The op under test stands between two attention blocks, so it meets merged tokens, and what it makes
meets a deeper merge. Patches fall into classes of equal pictures and the schedule merges only
equal ones: then the rewritten model must compute what the original does, to rounding.

Letters: ``B`` images, ``N`` tokens, ``C`` width, ``H`` heads, ``D`` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.architectures import randomise
from tests.duplicates import mergeable

B, H, D = 3, 2, 4
N = 13  # a class token and the patches
C = H * D
GRID = (3, 4)
PATCHES = GRID[0] * GRID[1]
# Groups of 3, 2 and 1 members after the first merge, and one more merge in the second block.
LABELS = (0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 5)
# Neighbours pair up, so that a flip or an even roll maps groups onto groups.
PAIRS = (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)

# Right on a model of a dozen tokens.
TINY = pytest.mark.filterwarnings("ignore:Merging costs more than it saves:tome_fx.ToMeWarning")


def schedule_for(labels: tuple[int, ...], front: int, depth: int) -> list[int]:
    """As many merges of duplicates in each layer as the even/odd split offers."""
    tokens, result = list(labels), []
    for _ in range(depth):
        sources, targets = mergeable(tokens, front)
        result.append(min(len(sources), len(tokens) // 2))
        gone = set(sources[: result[-1]])
        order = [i for i in range(len(tokens)) if i not in gone and i not in targets] + targets
        tokens = [tokens[i] for i in order]
    return result


def tied(
    table: Tensor, dims: tuple[int, ...], front: int = 1, labels: tuple[int, ...] = LABELS
) -> Tensor:
    """``table`` with equal rows for equal patches along ``dims``, behind ``front`` class tokens."""
    rows = [*range(front), *(front + labels.index(label) for label in labels)]
    for dim in dims:
        table = table.index_select(dim, torch.tensor(rows[-table.shape[dim] :]))
    return table.contiguous()


def heads(x: Tensor) -> Tensor:
    """``[B, N, H * D] -> [B, H, N, D]``."""
    return x.reshape(x.shape[0], x.shape[1], H, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """``[B, H, N, D] -> [B, N, H * D]``."""
    return x.transpose(1, 2).flatten(2)


class Projected(nn.Module):
    """q, k, v by three linears, an output linear, and a residual: ``mix`` is the op under test."""

    def __init__(self, mix: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(C, C) for _ in range(3))
        self.out = nn.Linear(C, C)
        self.mix_function = mix

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, N, C]`` three times to ``[B, N, C]``."""
        assert self.mix_function is not None
        return self.mix_function(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.mix(self.q(x), self.k(x), self.v(x)))


class Eager(Projected):
    """softmax(logits(q k')) v with an op before and one behind the softmax."""

    def __init__(self, logits: Any = None, weights: Any = None) -> None:
        super().__init__()
        self.on_logits, self.on_weights = logits, weights

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = heads(q) @ heads(k).transpose(-2, -1) * D**-0.5
        scores = scores if self.on_logits is None else self.on_logits(scores)
        weights = scores.softmax(-1)
        weights = weights if self.on_weights is None else self.on_weights(weights)
        return joined(weights @ heads(v))


def plain_mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(F.scaled_dot_product_attention(heads(q), heads(k), heads(v)))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attention = Projected(plain_mix)
        self.mlp = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class Host(nn.Module):
    """Patches, class tokens, a block, the ops, a block; all tokens and each op's result leave it.

    ``how`` the ops stand there: ``series``, each on the result of the one before; ``beside``, all
    on the same tokens, what has their shape is added to them; ``aside``, their results only leave
    the model: for ops that tell the members of a group apart.
    """

    def __init__(self, ops: dict[str, Any], how: str, front: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 2, 2)
        self.cls = nn.Parameter(torch.zeros(1, front, C)) if front else None
        self.first, self.second = Block(), Block()
        self.how, self.names = how, list(ops)
        self.paths = ["op"] if len(ops) == 1 else [f"op{i}" for i in range(len(ops))]
        for path, op in zip(self.paths, ops.values(), strict=True):
            self.add_module(path, op if isinstance(op, nn.Module) else Call(op))

    def forward(self, image: Tensor, *extra: Any) -> tuple[Tensor, dict[str, Any]]:
        x = self.stem(image).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        x = start = self.first(x)
        made: dict[str, Any] = {}
        for name, path in zip(self.names, self.paths, strict=True):
            y = getattr(self, path)(x if self.how == "series" else start, *extra)
            made[name] = y
            if self.how == "series":
                x = y
            elif self.how == "beside" and y.shape == x.shape and y.is_floating_point():
                x = x + y / len(self.names)
        return self.second(x), made


def images(labels: tuple[int, ...] = LABELS, seed: int = 0, batch: int = B) -> Tensor:
    """``[batch, 3, 2 * rows, 2 * columns]`` in float64, patches of one class equal."""
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randn(batch, len(labels), 3, 2, 2, generator=generator, dtype=torch.float64)
    tiles = tiles[:, [labels.index(label) for label in labels]]
    rows = tiles.reshape(batch, *GRID, 3, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(batch, 3, 2 * GRID[0], 2 * GRID[1])


def distance(actual: Any, expected: Any) -> float:
    """Largest difference of any output, relative; infinite for a NaN."""
    left, right = (torch.utils._pytree.tree_leaves(value) for value in (actual, expected))
    assert len(left) == len(right)
    worst = 0.0
    for a, e in zip(left, right, strict=True):
        assert a.shape == e.shape, f"{a.shape} is not {e.shape}"
        assert a.dtype == e.dtype, f"{a.dtype} is not {e.dtype}"
        a, e = a.detach().double(), e.detach().double()
        gap = float((a - e).abs().max() / e.abs().max().clamp_min(1e-30))
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def host(op: Any, how: str = "series", front: int = 1) -> Host:
    """The host of ``op``, or of a dict of ops, in float64, every parameter random.

    ``op.tie()``, if there is one, ties its own tables afterwards.
    """
    ops = op if isinstance(op, dict) else {"op": op}
    model = Host(ops, how, front).double().eval()
    randomise(model, 0)
    for own in ops.values():
        if hasattr(own, "tie"):
            own.tie()
    return model


def random(*shape: int, seed: int = 3) -> Tensor:
    """A fixed random table in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(
    op: Any,
    *,
    how: str = "series",
    front: int = 1,
    labels: tuple[int, ...] = LABELS,
    extra: tuple[Any, ...] = (),
    sites: int = 2,
    rules: Any = (),
    tolerance: float = 1e-9,
    remerge: Any = "mean",
) -> list[tome_fx.report.Unmerge]:
    """Hold the duplicates law around ``op``, or a dict of ops; the unmerges inside are returned.

    ``sites`` counts the attention blocks, the ops' own included; ``extra`` are more inputs.
    One image alone gives the same result, and a random image another than the original's.
    """
    model = host(op, how, front)
    schedule = schedule_for(labels, front, sites)
    x = images(labels)
    fast = tome_fx.transform(
        model, r=schedule, example_inputs=(x, *extra), rules=rules, remerge=remerge
    )
    assert list(fast.schedule) == schedule
    assert schedule[0] > 0
    for seed in (0, 1):
        x = images(labels, seed)
        assert_equal(fast(x, *extra), model(x, *extra), tolerance)
    if not extra:
        assert_equal(fast(x[1:2]), model(x[1:2]), tolerance)
    other = torch.randn_like(x)
    assert distance(fast(other, *extra), model(other, *extra)) > 1e-6
    unmerges = [u for u in fast.report.unmerges if u.op != "output"]
    assert all(u.reason and u.bytes_per_image for u in unmerges)
    return unmerges


def assert_equal(actual: Any, expected: Any, tolerance: float) -> None:
    """Both results of a host agree; if not, the ops that do not are named."""
    gaps = {name: distance(actual[1][name], expected[1][name]) for name in expected[1]}
    wrong = {name: gap for name, gap in gaps.items() if not gap < tolerance}
    assert not wrong, f"not what the original computes: {wrong}"
    assert distance(actual[0], expected[0]) < tolerance


def unmerged(op: Any, **options: Any) -> set[str]:
    """Names of the ops that ran on all tokens while the law held."""
    return {u.op.split(".")[1] for u in check(op, **options) if u.kind == "unmerge"}
