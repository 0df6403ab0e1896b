"""Where tokens come from: what a graph makes itself merges, what enters as rows does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.compiling.common import R, backend, listening
from tests.rules.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY
WIDTH = 32


class Source(nn.Module):
    """Two blocks on whatever ``code`` makes their tokens of."""

    def __init__(self, code: Callable[..., Tensor]) -> None:
        super().__init__()
        body: Any = tiny()
        self.blocks, self.code = body.blocks, code
        self.stem = nn.Conv2d(3, WIDTH, 8, 8)
        self.table = nn.Embedding(20, WIDTH)
        self.near = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.mask = nn.Parameter(torch.randn(1, 1, WIDTH))

    def patches(self, x: Tensor) -> Tensor:
        return self.stem(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.blocks(self.code(self, *inputs)).mean(1)  # type: ignore[no-any-return]


def strided(source: Source, x: Tensor) -> Tensor:
    return source.stem(x)[:, :, ::2, ::2].flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def shown(source: Source, x: Tensor, noise: Tensor) -> Tensor:
    order = noise.argsort(1)[:, :12, None].expand(-1, -1, WIDTH)
    return source.patches(x).gather(1, order)


def restored(source: Source, x: Tensor, noise: Tensor) -> Tensor:
    order = noise.argsort(1)
    seen = source.patches(x).gather(1, order[:, :12, None].expand(-1, -1, WIDTH))
    hidden = source.mask.expand(x.shape[0], noise.shape[1] - 12, -1)
    back = order.argsort(1)[..., None].expand(-1, -1, WIDTH)
    return torch.cat([seen, hidden], 1).gather(1, back)


def looked_up(source: Source, ids: Tensor) -> Tensor:
    return source.table(ids)  # type: ignore[no-any-return]


def cut(source: Source, x: Tensor) -> Tensor:
    """Patches without a convolution: the image's rows and columns are split."""
    grid = x.reshape(x.shape[0], 3, 6, 8, 6, 8).permute(0, 2, 4, 3, 5, 1)
    return nn.functional.linear(grid.flatten(3).flatten(1, 2), source.stem.weight.flatten(1))


def weighted(source: Source, x: Tensor, weights: Tensor) -> Tensor:
    return source.patches(x) * weights[..., None]


IDS = torch.arange(24).reshape(2, 12) % 20
NOISE = torch.randn(2, 36, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("code", "inputs"),
    [
        (strided, (images(),)),
        (shown, (images(), NOISE)),
        (restored, (images(), NOISE)),
        (looked_up, (IDS,)),
        (cut, (images(),)),
        (weighted, (images(), NOISE)),
    ],
)
def test_tokens_made_in_the_graph_merge(
    code: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> None:
    model, chosen = Source(code).eval(), backend(inner="eager")
    fast = tome_fx.transform(model, R, example_inputs=inputs, min_ratio=0)
    compiled = torch.compile(model, backend=chosen, fullgraph=True)
    result, told = listening(lambda _: compiled(*inputs), inputs[0])
    assert not told
    assert [report.schedule for report in chosen.reports] == [(R, R)]
    assert torch.equal(result, fast(*inputs))
    assert not torch.equal(result, model(*inputs))


def convolved(source: Source, x: Tensor) -> Tensor:
    return source.near(x.transpose(1, 2)).transpose(1, 2) + x  # type: ignore[no-any-return]


def added(source: Source, x: Tensor, ids: Tensor) -> Tensor:
    return source.table(ids) + x  # type: ignore[no-any-return]


def chosen_rows(source: Source, x: Tensor, noise: Tensor) -> Tensor:
    order = noise.argsort(1)[:, :8, None].expand(-1, -1, WIDTH)
    return x.gather(1, order)


def halves(source: Source, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return first + second


def spun(source: Source, x: Tensor) -> Tensor:
    return torch.view_as_real(x).flatten(2)


def thinned(source: Source, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 6, 6, WIDTH)[:, ::2, ::2].flatten(1, 2)


def windows(source: Source, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 3, 12, WIDTH).transpose(1, 2)[:, :, 0]


def rest(source: Source, x: Tensor) -> Tensor:
    return x[:, 1:]


def piece(source: Source, x: Tensor) -> Tensor:
    return x.split([2, 10], 1)[1]


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("code", "inputs"),
    [
        (lambda source, x: x, (torch.randn(2, 12, WIDTH),)),
        (lambda source, x: x, (torch.randn(2, WIDTH, WIDTH),)),
        (convolved, (torch.randn(2, 12, WIDTH),)),
        (added, (torch.randn(2, 12, WIDTH), IDS)),
        (chosen_rows, (torch.randn(2, 36, WIDTH), NOISE)),
        (halves, (torch.randn(2, 12, WIDTH),)),
        (thinned, (torch.randn(2, 36, WIDTH),)),
        (windows, (torch.randn(2, 36, WIDTH),)),
        (rest, (torch.randn(2, 12, WIDTH),)),
        (spun, (torch.randn(2, 12, WIDTH // 2, dtype=torch.complex64),)),
        (piece, (torch.randn(2, 12, WIDTH),)),
    ],
    ids=[
        "rows",
        "as many as channels",
        "convolved",
        "added",
        "chosen",
        "halves",
        "thinned",
        "windows",
        "rest",
        "spun",
        "piece",
    ],
)
def test_rows_of_an_input_are_left_as_they_are(
    code: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> None:
    model, chosen = Source(code).eval(), backend(inner="eager")
    compiled = torch.compile(model, backend=chosen, fullgraph=True)
    result, told = listening(lambda _: compiled(*inputs), inputs[0])
    assert "tokens come from outside: l_" in told
    assert not chosen.reports
    torch.testing.assert_close(result, model(*inputs))


@torch.no_grad()
def test_a_word_of_the_user_lets_rows_of_an_input_merge() -> None:
    """A whole model whose input is rows cannot be told from a part of one."""
    model, x, chosen = Source(lambda source, x: x).eval(), torch.randn(2, 12, WIDTH), backend()
    known = backend(protect=0)
    fast = tome_fx.transform(model, R, example_inputs=x, min_ratio=0)
    _, told = listening(torch.compile(model, backend=chosen), x)
    assert "protect=0" in told
    assert torch.equal(torch.compile(model, backend=known, fullgraph=True)(x), fast(x))
    assert [report.schedule for report in known.reports] == [(R, R)]
