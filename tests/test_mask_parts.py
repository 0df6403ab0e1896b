"""Masks that are put together: from padding, tables of the model, an order of the tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY

pytestmark = TINY

C, HEADS, N = 16, 2, 20
LOW = -1e30


class Block(nn.Module):
    """Attention by a mask and an MLP, around which both are added."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.fc, self.fused = nn.Linear(C, 3 * C), nn.Linear(C, C), fused

    def forward(self, x: Tensor, mask: Tensor, read: Tensor) -> Tensor:
        heads = self.qkv(read).unflatten(2, (3, HEADS, C // HEADS)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        if self.fused:
            z = F.scaled_dot_product_attention(q, k, v, mask)
        else:
            logits = q @ k.mT / (C // HEADS) ** 0.5
            filled = logits.masked_fill(~mask, LOW) if mask.dtype == torch.bool else logits + mask
            z = filled.softmax(-1) @ v
        x = x + z.transpose(1, 2).flatten(2)
        return x + self.fc(x).relu()


class Masked(nn.Module):
    """Tokens, some of them padding, in blocks whose mask ``make`` puts together."""

    def __init__(
        self, make: Callable[..., Tensor], fused: bool = True, shift: bool = False
    ) -> None:
        super().__init__()
        self.stem, self.make, self.shift = nn.Linear(8, C), make, shift
        self.blocks = nn.ModuleList(Block(fused) for _ in range(2))
        self.bias = nn.Parameter(torch.randn(1, HEADS, N, N))
        self.register_buffer("order", torch.full((N, N), float("-inf")).triu(1))
        self.register_buffer("near", (torch.arange(N) - torch.arange(N)[:, None]).abs() <= 4)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = self.stem(x)
        n = x.shape[1]
        mask = self.make(
            real[:, None, None],
            self.bias[..., :n, :n],
            self.order[:n, :n].to(x.dtype),
            self.near[:n, :n],
        )
        for block in self.blocks:
            x = block(x, mask, F.pad(x, (0, 0, 1, 0))[:, :n] if self.shift else x)
        return x


def made(*args: object) -> nn.Module:
    torch.manual_seed(0)
    return Masked(*args).double().eval()  # type: ignore[arg-type]


X = torch.randn(2, N, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
REAL = torch.arange(N) < torch.tensor([[12], [16]])


def low(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, LOW)


# Each of what is padding, a bias for each head, an order, and which tokens are near each other.
PADDED: dict[str, Callable[..., Tensor]] = {
    "added to a bias": lambda real, bias, *_: bias + (1.0 - real.to(bias.dtype)) * LOW,
    "filled into a bias": lambda real, bias, *_: bias.masked_fill(~real, float("-inf")),
    "a bias where it is none": lambda real, bias, *_: torch.where(real, bias, LOW),
    "low where it is, by where": lambda real, bias, *_: torch.where(~real, LOW, bias),
    "and near": lambda real, bias, order, near: real & near,
    "not hidden nor far": lambda real, bias, order, near: ~(~real | ~near),
    "and near, in a bias": lambda real, bias, order, near: bias.masked_fill(~(real & near), LOW),
    "added to near": lambda real, bias, order, near: low(~real, bias) + low(~near, bias),
    "numbers of a truth": lambda real, bias, *_: bias + (~real).to(bias.dtype) * LOW,
    "either, by a sum": lambda real, bias, order, near: (~real + ~near).to(bias.dtype) * LOW,
    "before what hides nothing": lambda real, bias, order, near: (
        bias + low(~real, bias) + (real & near[:1]).to(bias.dtype)
    ),
    "behind what hides nothing": lambda real, bias, order, near: (
        bias + (real & near[:1]).to(bias.dtype) + low(~real, bias)
    ),
    "before another row": lambda real, bias, order, near: (
        bias + low(~real, bias) + low(~(real & ~near[:1]), bias)
    ),
    "behind another row": lambda real, bias, order, near: (
        bias + low(~(real & ~near[:1]) & real, bias) + low(~real, bias)
    ),
    "clamped": lambda real, bias, *_: (bias + low(~real, bias)).clamp(min=LOW),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", PADDED)
def test_padding_is_seen_in_what_it_is_put_together_with(name: str, fused: bool) -> None:
    model = made(PADDED[name], fused)
    fast = tome_fx.transform(model, 3, example_inputs=(X, REAL), min_ratio=0)
    assert fast.schedule == (3, 3)
    given = torch.where(REAL[..., None], X, torch.randn_like(X))
    found, expected = fast(given, REAL), fast(X, REAL)
    assert not torch.allclose(expected[REAL], model(X, REAL)[REAL])  # it did merge
    torch.testing.assert_close(found[REAL], expected[REAL], rtol=1e-12, atol=1e-12)
    cut = X[:, :12], REAL[:, :12]  # the first image without its padding
    alone = tome_fx.transform(model, 3, example_inputs=cut, min_ratio=0)(cut[0][:1], cut[1][:1])
    torch.testing.assert_close(alone, expected[:1, :12], rtol=1e-12, atol=1e-12)
    assert not any("may hold tokens that this one tells apart" in n for n in fast.report.notes)


# An order in a mask that no example says all of: what is padding follows from the images.
ORDERED: dict[str, Callable[..., Tensor]] = {
    "added": lambda real, bias, order, near: order + low(~real, bias),
    "of a bias": lambda real, bias, order, near: bias + order + low(~real, bias),
    "and": lambda real, bias, order, near: (order == 0) & real,
    "neither": lambda real, bias, order, near: ~((order < 0) | ~real),
    "for each head": lambda real, bias, order, near: (order + low(~real, bias)).expand(
        -1, HEADS, -1, -1
    ),
    "repeated": lambda real, bias, order, near: (
        (order + low(~real, bias)[:, 0]).repeat_interleave(HEADS, 0).unflatten(0, (-1, HEADS))
    ),
}


class OfWords(Masked):
    """What is padding is said by the tokens themselves."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.stem = nn.Embedding(50, C)  # type: ignore[assignment]

    def forward(self, words: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(words, words != 0)


@pytest.mark.few(3)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("name", ORDERED)
def test_an_order_is_seen_in_what_it_is_put_together_with(name: str, shift: bool) -> None:
    words = torch.randint(1, 50, (2, N)) * REAL
    model = OfWords(ORDERED[name], True, shift).double().eval()
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        tome_fx.transform(model, 2, example_inputs=words, min_ratio=0)


class Shifted(nn.Module):
    """Attention whose queries and keys are those of the tokens before them."""

    def __init__(self, *masks: Tensor | None) -> None:
        super().__init__()
        self.stem, self.masks = nn.Linear(8, C), masks
        self.blocks = nn.ModuleList(Block(True) for _ in masks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, mask in zip(self.blocks, self.masks, strict=True):
            x = block(x, mask, F.pad(x, (0, 0, 1, 0))[:, : x.shape[1]])
        return x


ORDER = torch.ones(N, N, dtype=torch.bool).tril()


def test_an_order_inside_a_residual_value_is_seen() -> None:
    """By its mask, and by the one of an attention behind a merge."""
    free = tome_fx.transform(Shifted(None, None).double().eval(), 2, example_inputs=X, min_ratio=0)
    assert [block.kind for block in free.report.blocks] == ["inner", "inner"]
    for masks in ((ORDER, ORDER), (None, ORDER)):
        with pytest.raises(tome_fx.NoAttentionFoundError, match="causal"):
            tome_fx.transform(Shifted(*masks).double().eval(), 2, example_inputs=X, min_ratio=0)


@pytest.mark.parametrize("fused", [True, False])
def test_padding_inside_a_residual_value_is_held_apart(fused: bool) -> None:
    model = made(lambda real, *_: real, fused, True)
    fast = tome_fx.transform(model, 3, example_inputs=(X, REAL), min_ratio=0)
    assert [block.kind for block in fast.report.blocks] == ["inner", "inner"]
    given = torch.where(REAL[..., None], X, torch.randn_like(X))
    torch.testing.assert_close(model(given, REAL)[REAL], model(X, REAL)[REAL])
    torch.testing.assert_close(fast(given, REAL)[REAL], fast(X, REAL)[REAL])


FRAMES = torch.ones(5, 5, dtype=torch.bool).tril()
# A table of frames, written out for the tokens of each, which see each other.
OF_FRAMES: dict[str, Callable[..., Tensor]] = {
    "interleaved": lambda real, *_: FRAMES.repeat_interleave(4, 0).repeat_interleave(4, 1) & real,
    "expanded": lambda real, *_: FRAMES[:, None, :, None].expand(5, 4, 5, 4).reshape(N, N) & real,
    "repeated": lambda real, *_: (
        FRAMES[:, None, :, None].repeat(1, 4, 1, 4).flatten(0, 1).flatten(1, 2) & real
    ),
    "clamped to nothing": lambda real, bias, order, near: order.clamp(min=-1.0) + low(~real, bias),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", OF_FRAMES)
def test_what_is_made_of_an_order_may_be_none(name: str, fused: bool) -> None:
    fast = tome_fx.transform(made(OF_FRAMES[name], fused), 3, example_inputs=(X, REAL), min_ratio=0)
    assert fast.schedule == (3, 3)
    given = torch.where(REAL[..., None], X, torch.randn_like(X))
    torch.testing.assert_close(fast(given, REAL)[REAL], fast(X, REAL)[REAL])


@pytest.mark.parametrize("shift", [False, True])
def test_as_many_images_as_tokens_are_no_order(shift: bool) -> None:
    """Images sorted by length: what is padding is a triangle, of images and tokens."""
    x, real = torch.randn(N, N, 8).double(), torch.ones(N, N, dtype=torch.bool).tril()
    model = made(lambda real, *_: real, True, shift)
    fast = tome_fx.transform(model, 3, example_inputs=(x, real), min_ratio=0)
    assert fast.schedule == (3, 3)


def test_as_many_heads_as_tokens_are_no_tokens() -> None:
    """A mask of whole heads, for each image: alike tokens are alike under it."""

    class OfHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(2))

        def forward(self, x: Tensor, heads: Tensor) -> Tensor:
            mask = torch.zeros(1, 8, 8, 8, dtype=x.dtype) + low(~heads[:, :, None, None], x)
            for linear in self.qkv:
                q, k, v = linear(x).unflatten(2, (3, 8, 2)).permute(2, 0, 3, 1, 4).unbind(0)
                z = F.scaled_dot_product_attention(q, k, v, mask)
                x = x + z.transpose(1, 2).flatten(2)
            return x

    torch.manual_seed(0)
    model = OfHeads().double().eval()
    x = torch.randn(2, 4, C, dtype=torch.float64).repeat_interleave(2, 1)
    heads = torch.tensor([[True] * 5 + [False] * 3, [True, False] * 4])
    fast = tome_fx.transform(model, [4, 0], example_inputs=(x, heads), min_ratio=0)
    assert fast.schedule == (4, 0)
    torch.testing.assert_close(fast(x, heads), model(x, heads), rtol=1e-12, atol=1e-12)
