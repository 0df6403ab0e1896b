"""The laws on towers without an axis of images, and on several images in one row."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.packed import PADDING, Packed, towers
from tests.profiles import examples

pytestmark = TINY


@examples(4)
@given(towers(), st.integers(1, 2), st.sampled_from(["mean", "never"]))
def test_one_image(config: Packed, r: int, remerge: str) -> None:
    model, x = config.build(), config.rows()
    fast = tome_fx.transform(model, r, example_inputs=x, remerge=remerge, min_ratio=0)
    assert fast.schedule == (r,) * config.depth
    assert fast.report.blocks[-1].tokens_out == config.patches + config.token - r * config.depth
    assert distance(run(fast, x), run(model, x)) > 1e-6
    equal = config.duplicates()
    assert distance(run(fast, equal), run(model, equal)) < 1e-9
    fast.r = 0
    assert torch.equal(run(fast, x), run(model, x))


def test_sizes_matter() -> None:
    """The control: without the sizes, groups of several would count once."""
    config = Packed(end="mean")
    model, equal = config.build(), config.duplicates()
    plain = tome_fx.transform(model, 2, example_inputs=equal, prop_attn=False, min_ratio=0)
    assert distance(run(plain, equal), run(model, equal)) > 1e-6


SEVERAL = [("sdpa", (24, 24)), ("sliced", (25, 16, 32)), ("each", (32, 1, 16)), ("each", (24, 24))]


def several(
    lengths: tuple[int, ...], r: int = 2, attention: str = "sdpa"
) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    config = Packed(lengths=lengths, attention=attention)
    model, x, row = config.build(), config.rows(), torch.tensor(lengths)
    return model, tome_fx.transform(model, r, example_inputs=(x, row), min_ratio=0), x, row


@pytest.mark.few(1)
@pytest.mark.parametrize(("attention", "lengths"), SEVERAL)
@torch.no_grad()
def test_images_in_one_row_merge_each_by_itself(attention: str, lengths: tuple[int, ...]) -> None:
    model, fast, x, row = several(lengths, attention=attention)
    assert len(fast.schedule) == 3 * sum(length > 1 for length in lengths)
    parts = x.split(lengths)
    for which in range(len(lengths)):
        others = [part + (i != which) for i, part in enumerate(parts)]
        changed = fast(torch.cat(others), row)
        before = fast(x, row).split(lengths)[which]
        assert distance(changed.split(lengths)[which], before) < 1e-12
        alone = torch.tensor(lengths[which : which + 1])
        if min(lengths) > 1:
            own = Packed(lengths=(lengths[which],)).build()
            state = copy.deepcopy(model.state_dict())
            state["table"] = state["table"][: lengths[which]]
            own.load_state_dict(state)
            single = tome_fx.transform(own, 2, example_inputs=(parts[which], alone), min_ratio=0)
            assert distance(single(parts[which], alone), before) < 1e-9
    equal = Packed(lengths=lengths).duplicates()
    assert distance(fast(equal, row), model(equal, row)) < 1e-9
    assert distance(fast(x, row), model(x, row)) > 1e-6
    for once in fast.token_map(x, row):
        assert once.shape[0] == 1


def test_r_is_that_of_each_image() -> None:
    _, fast, x, row = several((16, 24), 2)
    assert fast.schedule == (2,) * 6
    fast.r = [1, 2, 3]
    assert fast.schedule == (1, 1, 2, 2, 3, 3)
    fast.r = list(fast.schedule)
    assert fast.schedule == (1, 1, 2, 2, 3, 3)
    assert fast(x, row).shape == (40, 5)


@pytest.mark.few(1)
@pytest.mark.parametrize("attention", ["heads", "einsum"])
@pytest.mark.parametrize("mask", ["rows", "pairs"])
@torch.no_grad()
def test_padding_is_held_apart(attention: str, mask: str) -> None:
    """L8: real patches are what they are alone, whatever is said to be none."""
    config = Packed(lengths=(40,), attention=attention, mask=mask)
    model, x, equal = config.build(), config.rows(), config.duplicates()
    for rows in (x, equal):
        rows[24:] = rows[:16]  # what is like them is as good as any
        rows[24:, 0] = PADDING
    fast = tome_fx.transform(model, 4, example_inputs=x, min_ratio=0)
    assert fast.schedule == (4, 4, 4)
    for once in fast.token_map(x)[:, 0]:
        assert not set(once[:24].tolist()) & set(once[24:].tolist())
    assert distance(fast(equal)[:24], model(equal)[:24]) < 1e-9
    assert distance(fast(x)[:24], model(x)[:24]) > 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("attention", ["heads", "einsum"])
@torch.no_grad()
def test_a_mask_that_keeps_images_apart(attention: str) -> None:
    config = Packed(lengths=(16, 24), attention=attention, mask="blocks")
    model, x = config.build(), config.rows()
    fast = tome_fx.transform(model, 2, example_inputs=x, min_ratio=0)
    assert fast.schedule == (2, 2, 2)
    for once in fast.token_map(x)[:, 0]:
        assert not set(once[:16].tolist()) & set(once[16:].tolist())
    equal = config.duplicates()
    assert distance(fast(equal), model(equal)) < 1e-9


@pytest.mark.few(1)
@pytest.mark.parametrize("around", [False, True])
@torch.no_grad()
def test_other_ways_in_and_out(around: bool) -> None:
    """The backend, a compiler, and an exported program on both sides."""
    config = Packed(end="merger", position="rotary", around=around)
    model, x, equal = config.build(), config.rows(), config.duplicates()
    fast = tome_fx.transform(model, 2, example_inputs=x, min_ratio=0)
    # Rows that come in as such are said to hold no class token.
    inner = tome_fx.backend(2, inner_backend="aot_eager", min_ratio=0, protect=0)
    compiled = torch.compile(model, backend=inner, fullgraph=True)
    assert distance(compiled(x), fast(x)) < 1e-9
    assert distance(compiled(equal), model(equal)) < 1e-9
    assert inner.reports[0].schedule == (2, 2, 2)
    plain = torch.compile(fast, backend="aot_eager", fullgraph=True)
    assert distance(plain(x), fast(x)) < 1e-9
    exported = torch.export.export(model, (x,))
    assert distance(tome_fx.transform(exported, 2, min_ratio=0)(x), fast(x)) < 1e-9
    assert distance(torch.export.export(fast, (x,)).module()(x), fast(x)) < 1e-9
    with pytest.raises(tome_fx.ShapeError, match="batch of 2" if around else "that shape alone"):
        fast(torch.cat([x, x]))


def test_training() -> None:
    config = Packed(lengths=(16, 24))
    model, x, row = config.build(), config.duplicates(), torch.tensor([16, 24])
    fast = tome_fx.transform(model, 2, example_inputs=(x, row), min_ratio=0).train()
    given = [x.clone().requires_grad_() for _ in range(2)]
    for module, rows in zip((fast, model), given, strict=True):
        module(rows, row)[:, 0].square().sum().backward()
    # Equal patches have equal gradients in sum, whichever of them a group stands for.
    sums = [rows.grad.sum(0) for rows in given if rows.grad is not None]
    assert distance(sums[0], sums[1]) < 1e-9


class Written(nn.Module):
    """A class token in front of each image, put into one row by numbers, and left out likewise."""

    def __init__(self, config: Packed) -> None:
        super().__init__()
        self.tower, self.lengths = config.build(), config.lengths
        self.first = nn.Parameter(torch.randn(1, 24).double())

    def forward(self, x: Tensor) -> Tensor:
        row, start = self.tower.embed(x), 0
        places = []
        for image, length in enumerate(self.lengths):
            places.append(torch.arange(length) + start + image + 1)
            start += length
        numbers = torch.cat(places)
        tokens = self.first.repeat(len(x) + len(self.lengths), 1).index_put((numbers,), row)
        turn = torch.ones_like(tokens)
        for block in self.tower.blocks:
            tokens = block(tokens, turn, [length + 1 for length in self.lengths], None)
        return tokens[numbers]


@pytest.mark.few(1)
@pytest.mark.parametrize("lengths", [(24,), (16, 24)])
@torch.no_grad()
def test_class_tokens_that_are_written_into_a_row(lengths: tuple[int, ...]) -> None:
    config = Packed(lengths=lengths)
    model, x, equal = Written(config), config.rows(), config.duplicates()
    fast = tome_fx.transform(model, 2, example_inputs=x, min_ratio=0)
    assert [entry.count for entry in fast.report.protected] == [1] * len(lengths)
    assert fast.schedule == (2,) * 3 * len(lengths)
    assert distance(fast(equal), model(equal)) < 1e-9
    assert distance(fast(x), model(x)) > 1e-6


class Experts(nn.Module):
    """Its code goes over the experts that are hit, so that it stays a call."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(24, 3)
        self.experts = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.choose(x).argmax(-1), torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            out[chosen == expert] = self.experts[expert](x[chosen == expert])
        return out


@pytest.mark.few(0)
@torch.no_grad()
def test_experts_that_stay_calls() -> None:
    """What they make of rows and channels is no grid of tokens."""
    config = Packed(lengths=(16, 24))
    model, x, row = config.build(), config.rows(), torch.tensor([16, 24])
    for block in list(model.blocks)[1:]:
        block.mlp = Experts().double()
    fast = tome_fx.transform(model, 2, example_inputs=(x, row), min_ratio=0)
    assert fast.schedule == (2,) * 6
    equal = config.duplicates()
    assert distance(fast(equal, row), model(equal, row)) < 1e-9
    assert distance(fast(x, row), model(x, row)) > 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("attention", "lengths", "kinds"),
    [
        ("sdpa", (16,) * 6, 1),
        ("sdpa", (16, 1, 16, 9, 16), 3),
        ("sliced", (16, 24, 16, 24, 24), 2),
        ("each", (16, 1, 16, 9, 16), 3),
    ],
)
@torch.no_grad()
def test_images_of_a_length_are_matched_at_once(
    attention: str, lengths: tuple[int, ...], kinds: int
) -> None:
    """But for the one behind a lone token, whose A tokens are the others."""
    fast = several(lengths, attention=attention)[1]
    calls = Counter(node.target for node in fast.graph.nodes)
    assert calls[tome_fx.ops.match] == kinds * 3
    assert calls[tome_fx.ops.merged_size] == calls[tome_fx.ops.merge] == 3
    assert calls[tome_fx.ops.unmerge] == calls[tome_fx.ops.assignment] / 3 == 1


class Cut(nn.Module):
    """A block whose attention is of slices."""

    def __init__(self, how: str, heads: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        self.how, self.heads, self.step = how, heads, -1 if how == "swapped" else 1
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.mlp = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    def forward(self, x: Tensor) -> Tensor:
        y, n = self.norm(x), len(x) // 2
        if self.how == "overlapping":
            y = torch.cat([self.attend(y[: n + 2])[:n], self.attend(y[n - 2 :])[2:]])
        else:
            y = torch.cat([self.attend(y[:n], 0), self.attend(y[n:], 1)][:: self.step])
        x = x + y
        return x + self.mlp(x)

    def attend(self, x: Tensor, which: int = 0) -> Tensor:
        heads = self.heads[which]
        q, k, v = self.qkv[which](x).reshape(1, len(x), 3, heads, -1).permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(len(x), -1)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("blocks", "merges"),
    [
        ([("halves", (2, 2)), ("halves", (2, 2))], 4),
        ([("halves", (2, 3)), ("halves", (3, 2))], 4),  # heads of other widths: one by one
        ([("overlapping", (2, 2)), ("halves", (2, 2))], 2),
    ],
)
@torch.no_grad()
def test_other_slices(blocks: list[tuple[str, tuple[int, int]]], merges: int) -> None:
    """Where a block's slices are no stretches it has no site, and others keep theirs."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Cut(*block) for block in blocks)).double().eval()
    kinds = torch.randn(3, 24).double()
    x, equal = torch.randn(32, 24).double(), kinds[torch.randint(0, 3, (32,))]
    fast = tome_fx.transform(model, 2, example_inputs=x, min_ratio=0)
    assert fast.schedule == (2,) * merges
    if blocks[0][0] == "halves":
        assert distance(fast(equal), model(equal)) < 1e-9
    assert distance(fast(x), model(x)) > 1e-6


def test_stretches_that_change_places() -> None:
    """A sum of a token and another one is not merged by the keys of either."""
    model = nn.Sequential(Cut("swapped"), Cut("swapped")).double().eval()
    with pytest.raises(tome_fx.NoAttentionFoundError):
        tome_fx.transform(model, 2, example_inputs=torch.randn(32, 24).double(), min_ratio=0)
