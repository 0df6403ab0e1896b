"""Ways in which blocks are wired, each a small model by its name, held to the laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.test_joint import HEADS, C, Mixed
from tests.zoo.entry import randomise

pytestmark = TINY


class Wired(nn.Module):
    """A stem, four blocks that a function wires, and a head on the mean of what it answers."""

    def __init__(self, wire: Callable[..., Tensor]) -> None:
        super().__init__()
        self.wire, self.stem, self.head = wire, nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.blocks = nn.ModuleList(Mixed() for _ in range(4))
        self.token, self.query = (nn.Parameter(torch.zeros(1, 1, C)) for _ in range(2))
        self.memory = nn.ParameterList(torch.zeros(1, 3, C) for _ in range(4))
        self.narrow = nn.ModuleList(nn.Linear(2 * C, C) for _ in range(2))
        self.share = nn.Parameter(torch.zeros(4))

    def tokens(self, image: Tensor) -> Tensor:
        return self.stem(image).flatten(2).mT  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.wire(self, self.tokens(image)).mean(1))  # type: ignore[no-any-return]


def value_residual(model: Wired, x: Tensor) -> Tensor:
    """Every attention mixes in the values of the first."""
    first = None
    for block, share in zip(model.blocks, model.share, strict=True):
        q, k, v = block.heads(x)
        first = v if first is None else first
        x = x + block.out(block.mix(q, k, v + share * first))
        x = x + block.mlp(x)
    return x


def u_shaped(model: Wired, x: Tensor) -> Tensor:
    """Skips that are concatenated on the channels, with a linear behind each."""
    skips = []
    for block in model.blocks[:2]:
        x = block(x)
        skips.append(x)
    for block, narrow in zip(model.blocks[2:], model.narrow, strict=True):
        x = block(narrow(torch.cat([x, skips.pop()], dim=-1)))
    return x


def memory_tokens(model: Wired, x: Tensor) -> Tensor:
    """Learned tokens beside the others in one block each, and dropped behind it."""
    for block, memory in zip(model.blocks, model.memory, strict=True):
        x = block(torch.cat([x, memory.expand(x.shape[0], -1, -1)], dim=1))[:, : x.shape[1]]
    return x


def token_at_the_end(model: Wired, x: Tensor) -> Tensor:
    x = torch.cat([x, model.token.expand(x.shape[0], -1, -1)], dim=1)
    for block in model.blocks:
        x = block(x)
    return x[:, -1:]


def pooled_by_attention(model: Wired, x: Tensor) -> Tensor:
    """A learned query reads all tokens."""
    for block in model.blocks[:3]:
        x = block(x)
    q, k, v = (part(t) for part, t in zip(model.parts, (model.query, x, x), strict=True))
    return F.scaled_dot_product_attention(q.expand(x.shape[0], -1, -1), k, v)


def patches_alone(model: Wired, x: Tensor) -> Tensor:
    """The mean of the patches, without the class token that went along."""
    x = torch.cat([model.token.expand(x.shape[0], -1, -1), x], dim=1)
    for block in model.blocks:
        x = block(x)
    return x[:, 1:].mean(1, keepdim=True)


def parallel_streams(model: Wired, x: Tensor) -> Tensor:
    """Two rows of one image, each with keys and values of the other."""
    a, b = x, x.sin()
    for left, right in (model.blocks[:2], model.blocks[2:]):
        (qa, ka, va), (qb, kb, vb) = left.heads(a), right.heads(b)
        a = a + left.out(left.mix(qa, ka, va))
        b = b + right.out(right.mix(qb, kb, vb))
        (qa, ka, va), (qb, kb, vb) = left.heads(a), right.heads(b)
        a = a + left.out(left.mix(qa, kb, vb))
        b = b + right.out(right.mix(qb, ka, va))
    return torch.cat([a, b], dim=1)


def every_other(model: Wired, x: Tensor) -> Tensor:
    for block in model.blocks[:2]:
        x = block(x)
    x = x[:, ::2]
    for block in model.blocks[2:]:
        x = block(x)
    return x


def all_but_the_first(model: Wired, x: Tensor) -> Tensor:
    for block in model.blocks[:2]:
        x = block(x)
    x = x[:, 1:]
    for block in model.blocks[2:]:
        x = block(x)
    return x


class OfList(Wired):
    """Images in a list, which the model stacks."""

    def forward(self, images: list[Tensor]) -> Tensor:  # type: ignore[override]
        x = self.tokens(torch.stack(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


WIRINGS: Mapping[str, Callable[..., Tensor]] = {
    wire.__name__: wire
    for wire in (
        value_residual,
        u_shaped,
        memory_tokens,
        token_at_the_end,
        pooled_by_attention,
        patches_alone,
        parallel_streams,
        every_other,
        all_but_the_first,
    )
}


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("name", WIRINGS)
def test_laws_of_a_wiring(name: str) -> None:
    model: Any = Wired(WIRINGS[name])
    model.parts = nn.ModuleList(nn.Linear(C, C * HEADS) for _ in range(3))
    model.head = nn.Linear(C * HEADS if name == "pooled_by_attention" else C, 5)
    randomise(model)
    model.double().eval()
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, 2, example_inputs=image)
    assert sum(fast.schedule) >= 6
    colour = image[..., :1, :1].expand_as(image).contiguous()
    assert distance(fast(colour), model(colour)) < 1e-9
    whole = fast(image)
    assert distance(whole, model(image)) > 1e-6
    for i in range(3):
        assert distance(fast(image[i : i + 1]), whole[i : i + 1]) < 1e-9
    assert distance(fast(image[[0, 1, 2, 1, 0]]), whole[[0, 1, 2, 1, 0]]) < 1e-9
    fast.r = 0
    assert torch.equal(fast(image), model(image))


def test_images_in_a_list_are_refused_with_a_reason() -> None:
    """How many there are is part of the program, and no axis of what it is given counts them."""
    images = list(torch.randn(3, 3, 8, 8))
    with pytest.raises(tome_fx.NoAttentionFoundError, match="its keys have no batch axis"):
        tome_fx.transform(OfList(every_other), 2, example_inputs=(images,))
