"""L8: with a padding mask, an image's result is its result alone, without the padding."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

import tome_fx
from tests.drawing import brief, randomise, seeded
from tests.laws.common import TINY, distance
from tests.profiles import examples

pytestmark = TINY
KERNELS = ("encoder", "sdpa", "expanded", "filled", "chosen", "replaced", "biased", "added",
           "additive", "subtracted", "by alpha", "in turn", "weights", "opened", "folded",
           "in bulk", "pairs", "pairs filled",
           "pairs added", "pairs and itself", "pairs beside keys", "pairs guarded",
           "pairs repeated", "pairs by einsum", "pairs by product")  # fmt: skip


@dataclass(frozen=True, repr=False)
class Padded:
    """Sequences of several lengths, padded to the longest, and how attention hides the rest."""

    kernel: str = "sdpa"
    heads: int = 2
    head_dim: int = 4
    token: bool = True
    lengths: tuple[int, ...] = (20, 14)
    schedule: tuple[int, ...] = (2, 2)
    seed: int = 0

    __repr__ = brief


def draw(rng: random.Random) -> Padded:
    schedule = tuple(rng.randint(0, 3) for _ in range(rng.randint(1, 3)))
    schedule = (schedule[0] or 1, *schedule[1:])
    least = 2 * sum(schedule) + 2  # tokens enough for all merges, in the shortest image as well
    lengths = tuple(rng.randint(least, least + 12) for _ in range(rng.randint(1, 3)))
    lengths = (*lengths, max(lengths) + rng.randint(1, 5))
    return Padded(rng.choice(KERNELS), rng.randint(1, 3), rng.choice([4, 5]), rng.random() < 0.5,
                  lengths, schedule, rng.randrange(100))  # fmt: skip


class Sequences(nn.Module):
    """A Transformer over ``x [B, N, 6]`` whose tokens count where ``valid [B, N]``."""

    def __init__(self, config: Padded) -> None:
        super().__init__()
        self.config = config
        width = config.heads * config.head_dim
        self.stem = nn.Linear(6, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if config.token else None
        self.table = nn.Parameter(torch.zeros(1, max(config.lengths) + 1, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.heads, 2 * width, 0.0, batch_first=True)
            for _ in config.schedule
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = self.stem(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
            valid = torch.cat([valid.new_ones(valid.shape[0], 1), valid], dim=1)
        x = x + self.table[:, : x.shape[1]]
        for layer in self.layers:
            x = self.block(layer, x, valid)
        if self.token is not None:
            return x[:, 0]
        count = valid.to(x.dtype)[..., None]
        return (x * count).sum(1) / count.sum(1)

    def block(self, layer: nn.TransformerEncoderLayer, x: Tensor, valid: Tensor) -> Tensor:
        if self.config.kernel == "encoder":
            return layer(x, src_key_padding_mask=~valid)
        if self.config.kernel == "weights":
            hidden = {"key_padding_mask": ~valid, "need_weights": True}
            x = layer.norm1(x + layer.self_attn(x, x, x, **hidden)[0])
            return layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))
        x = layer.norm1(x + self.attend(layer.self_attn, x, valid[:, None, None, :]))
        return layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))

    def attend(self, own: nn.MultiheadAttention, x: Tensor, valid: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = F.linear(x, own.in_proj_weight, own.in_proj_bias)
        q, k, v = qkv.reshape(b, n, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        kernel, scores = self.config.kernel, q @ k.mT * 0.4
        hidden = torch.zeros_like(valid, dtype=x.dtype).masked_fill(~valid, -1e9)
        if kernel in ("sdpa", "expanded", "additive"):
            mask = hidden if kernel == "additive" else valid
            mask = mask.expand(b, 1, n, n) if kernel == "expanded" else mask
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif kernel.startswith("pairs"):
            y = self.in_pairs(q, k, v, valid)
        elif kernel in ("folded", "in bulk"):  # heads beside the images
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
            mask = hidden.expand(b, self.config.heads, n, n).flatten(0, 1)
            if kernel == "folded":
                scores = (q @ k.mT).masked_fill(mask < 0, float("-inf"))
            else:
                scores = torch.baddbmm(mask, q, k.mT, alpha=0.4)
            y = (scores.softmax(-1) @ v).unflatten(0, (b, -1))
        elif kernel == "filled":
            y = scores.masked_fill(~valid, float("-inf")).softmax(-1) @ v
        elif kernel == "opened":  # without a softmax
            y = scores.masked_fill(~valid, float("-inf")).sigmoid() @ v
        elif kernel == "chosen":
            y = torch.where(valid, scores, torch.full_like(scores, -1e9)).softmax(-1) @ v
        elif kernel == "replaced":
            y = torch.where(~valid, float("-inf"), scores).softmax(-1) @ v
        elif kernel == "biased":  # an even bias stands between the mask and the softmax
            slope = torch.linspace(0, 1, self.config.heads, dtype=x.dtype)[:, None, None]
            y = (scores.masked_fill(~valid, float("-inf")) + slope).softmax(-1) @ v
        elif kernel in ("subtracted", "by alpha", "in turn"):
            y = less(kernel, scores, valid.to(x.dtype)).softmax(-1) @ v
        else:
            y = (scores + hidden).softmax(-1) @ v
        return own.out_proj(y.transpose(1, 2).reshape(b, n, c))

    def in_pairs(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        """Real queries see real keys, what padding sees differs."""
        pairs, scores, itself = valid & valid.mT, q @ k.mT * 0.4, torch.eye(q.shape[2]) > 0
        how = self.config.kernel.removeprefix("pairs").strip()
        if how == "":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs | itself)
        if how == "guarded":  # padding sees all, so that no row is empty
            return scores.masked_fill(~(pairs | ~valid.mT), -1e9).softmax(-1) @ v
        if how == "repeated":  # for each head of an image, as MultiheadAttention has it
            hidden = torch.zeros_like(pairs[:, 0], dtype=q.dtype).masked_fill(~pairs[:, 0], -1e9)
            both = scores.flatten(0, 1) + hidden.repeat_interleave(q.shape[1], 0)
            return both.unflatten(0, (q.shape[0], -1)).softmax(-1) @ v
        if how.startswith("by"):
            row = valid[:, 0, 0].to(q.dtype)
            both = row[:, :, None] @ row[:, None]
            both = torch.einsum("bi,bj->bij", row, row) if how == "by einsum" else both
            return (scores + (1 - both)[:, None] * -1e9).softmax(-1) @ v
        if how == "filled":
            return scores.masked_fill(~pairs, -1e9).softmax(-1) @ v
        if how == "added":
            least = torch.zeros_like(pairs, dtype=q.dtype)
            return (scores + least.masked_fill(~pairs, torch.finfo(q.dtype).min)).softmax(-1) @ v
        if how == "and itself":
            shown = pairs[:, 0].to(q.dtype) + itself.to(q.dtype)
            return torch.where(shown[:, None] > 0, scores, -1e9).softmax(-1) @ v
        hidden = torch.zeros_like(valid, dtype=q.dtype).masked_fill(~valid, -1e9)
        return (scores.masked_fill(~pairs, -1e9) + hidden).softmax(-1) @ v


def less(how: str, scores: Tensor, shown: Tensor) -> Tensor:
    """Scores less a large number where nothing is shown."""
    if how == "by alpha":
        return torch.sub(scores, (shown == 0).to(scores.dtype), alpha=1e9)
    return (scores * shown if how == "in turn" else scores) - 1e9 * (1 - shown)


@pytest.mark.few(1)
@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_changes_nothing_however_it_is_spelled(kernel: str) -> None:
    check(Padded(kernel), with_longest=kernel.startswith("pairs"))


@examples(4)
@given(seeded(draw))
def test_padding_changes_nothing(config: Padded) -> None:
    check(config)


def check(config: Padded, with_longest: bool = True) -> None:
    model = Sequences(config).double().eval()
    randomise(model, config.seed)
    longest = max(config.lengths)
    x = torch.randn(len(config.lengths), longest, 6, dtype=torch.float64)
    valid = torch.arange(longest) < torch.tensor(config.lengths)[:, None]
    schedule = list(config.schedule)
    fast = tome_fx.transform(model, schedule, example_inputs=(x, valid))
    assert fast.schedule == config.schedule
    with torch.no_grad():
        together, maps = fast(x, valid), fast.token_map(x, valid)
        if not config.token or sum(schedule[:-1]):  # else no merge is seen by what is read
            assert (together - model(x, valid)).abs().max() > 1e-6
        for i, length in enumerate(config.lengths):
            if length == longest and not with_longest:
                continue  # it has no padding
            alone = (x[i : i + 1, :length], valid[i : i + 1, :length])
            single = tome_fx.transform(model, schedule, example_inputs=alone)
            assert distance(together[i : i + 1], single(*alone)) < 1e-9
            for slots in maps[:, i]:
                shared = set(slots[:length].tolist()) & set(slots[length:].tolist())
                assert not shared, "a group holds padding and real tokens"


class Packed(nn.Module):
    """Tokens of several images in one row; each sees those of its own image."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem = how, nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.stem(x)
        same = image[:, :, None] == image[:, None]
        for layer in self.layers:
            q, k, v = layer(x).chunk(3, -1)
            if self.how == "sdpa":
                q, k, v = (part[:, None] for part in (q, k, v))
                x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=same[:, None])[:, 0]
            else:
                hidden = (1.0 - same.to(x.dtype)) * -1e9
                logits = q @ k.mT
                if self.how == "beside a bias":
                    logits = logits - (image > 5).to(x.dtype)[:, None]
                x = x + (logits + hidden).softmax(-1) @ v
        return x


@torch.no_grad()
@pytest.mark.parametrize("how", ["sdpa", "added", "beside a bias"])
def test_packed_images_do_not_merge(how: str) -> None:
    """Those that a mask shows other tokens stay apart, though all of them are equal."""
    model = Packed(how).double().eval()
    randomise(model, 0)
    x = torch.randn(2, 1, 6, dtype=torch.float64).expand(2, 24, 6).contiguous()
    image = torch.tensor([[0] * 9 + [1] * 15, [0] * 11 + [1] * 7 + [2] * 6])
    other = torch.where(image[..., None] == 1, 2 * x, x)
    fast = tome_fx.transform(model, [3, 3], example_inputs=(x, image), min_ratio=0)
    assert fast.schedule == (3, 3)
    assert any("which tokens see which" in note for note in fast.report.notes)
    for row, images in zip(fast.token_map(x, image)[-1], image, strict=True):
        for one in range(3):
            assert not set(row[images == one].tolist()) & set(row[images != one].tolist())
    assert distance(fast(x, image), model(x, image)) < 1e-9
    assert distance(fast(other, image), model(other, image)) < 1e-9


@torch.no_grad()
def test_packed_images_of_one_token_by_now_do_not_merge() -> None:
    """What is left of a small image sees itself alone, as padding does."""
    model = Packed("sdpa").double().eval()
    randomise(model, 0)
    x = torch.randn(1, 1, 6, dtype=torch.float64).expand(1, 8, 6).contiguous()
    image = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]])
    fast = tome_fx.transform(model, [4, 1], example_inputs=(x, image), min_ratio=0)
    first, second = fast.token_map(x, image)[:, 0]
    assert len(set(first.tolist())) == 4
    assert all(len(set(first[image[0] == i].tolist())) == 1 for i in range(4))
    # Only what must: one pair of images, since one more merge was asked for.
    assert len(set(second.tolist())) == 3
    assert distance(fast(x, image), model(x, image)) < 1e-9
