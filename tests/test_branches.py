"""Tokens that part: each branch merges by itself, from where it leaves the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY


def block() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)


class Frames(nn.Module):
    """A block on all frames of a clip at once, then one on each frame after the other.

    What was read of a frame goes with the tokens of the next one, as in tracking.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 4, 4), block(), block()
        self.query = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, clip: Tensor) -> Tensor:
        images, frames = clip.shape[:2]
        x = self.first(self.stem(clip.flatten(0, 1)).flatten(2).transpose(1, 2))
        x = x.view(images, frames, *x.shape[1:])
        query, seen = self.query.expand(images, -1, -1), []
        for frame in range(frames):
            tokens = self.second(torch.cat([query, x[:, frame]], 1))
            query = tokens[:, :1]
            seen.append(tokens)
        return torch.stack(seen, 1)


class Heads(nn.Module):
    """Two decoders on the tokens of one trunk, joined in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.trunk = nn.Conv2d(3, 8, 4, 4), block()
        self.left, self.right = nn.Sequential(block(), block()), block()
        self.last = block()

    def forward(self, image: Tensor) -> Tensor:
        x = self.trunk(self.stem(image).flatten(2).transpose(1, 2))
        return self.last(self.left(x) + self.right(x))


def model(kind: type[nn.Module]) -> nn.Module:
    made = kind()
    randomise(made)
    return made.double().eval()


def clip() -> Tensor:
    """Two colours a frame: side by side in the first frame, one above the other in the second."""
    colours = torch.randn(2, 2, 2, 3, 1, 1, dtype=torch.float64)
    x = torch.empty(2, 2, 3, 16, 16, dtype=torch.float64)
    x[:, 0, :, :, :8], x[:, 0, :, :, 8:] = colours[:, 0, 0], colours[:, 0, 1]
    x[:, 1, :, :8], x[:, 1, :, 8:] = colours[:, 1, 0], colours[:, 1, 1]
    return x


def test_each_frame_merges_by_its_own_keys() -> None:
    frames, x = model(Frames), clip()
    fast = tome_fx.transform(frames, [0, 4, 4], example_inputs=x)
    assert fast.schedule == (0, 4, 4)
    assert distance(run(fast, x), run(frames, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(frames, other)) > 1e-6


@pytest.mark.parametrize("every", [1, 2])
def test_a_branch_goes_on_from_where_it_left_the_others(every: int) -> None:
    frames, x = model(Frames), clip()
    fast = tome_fx.transform(frames, 2, example_inputs=x, every=every)
    tokens = [(b.tokens_in, b.tokens_out) for b in fast.report.blocks]
    assert tokens[1][0] == tokens[2][0] == tokens[0][1] + 1
    assert sum(fast.schedule) == 6


def test_branches_meet_again() -> None:
    heads = model(Heads)
    x = clip()[:, 0]
    fast = tome_fx.transform(heads, 2, example_inputs=x)
    assert [(b.tokens_in, b.tokens_out) for b in fast.report.blocks] == [
        (16, 14), (14, 12), (12, 10), (14, 12), (14, 12)
    ]  # fmt: skip
    reasons = [u.reason for u in fast.report.unmerges if u.op != "output"]
    assert reasons == ["it joins branches that merged each by itself"] * 2
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    assert distance(run(compiled, x), run(fast, x)) < 1e-12
    assert fast.token_map(x).amax((1, 2)).tolist() == [13, 11, 9, 11, 11]
    fast.r = [0, 2, 0, 2, 0]
    assert fast.schedule == (0, 2, 0, 2, 0)
    assert distance(run(fast, x), run(heads, x)) < 1e-9
