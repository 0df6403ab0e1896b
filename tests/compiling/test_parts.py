"""Parts of a model: no merged shape leaves a graph, and what is no whole model is left alone."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from tests.compiling.common import R, backend, listening
from tests.rules.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


class Broken(nn.Module):
    """A graph break between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny(depth=4)

    def forward(self, x: Tensor) -> Tensor:
        body: Any = self.body
        x = body._pos_embed(body.patch_embed(x))
        x = body.blocks[1](body.blocks[0](x))
        torch._dynamo.graph_break()
        x = body.blocks[3](body.blocks[2](x))
        return body.forward_head(body.norm(x))  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_graph_break_leaks_no_shape() -> None:
    model, x, chosen = Broken(), images(), backend()
    compiled = torch.compile(model, backend=chosen)
    result, told = listening(compiled, x)
    assert "tokens come from outside" in told
    assert [report.schedule for report in chosen.reports] == [(R, R)]
    # The first graph merges and gives all tokens back; the second one runs as it is.
    assert chosen.reports[0].unmerges[-1].op == "output"
    assert result.shape == model(x).shape
    assert not torch.equal(result, model(x))


@torch.no_grad()
def test_a_block_by_itself_is_left_as_it_is() -> None:
    model, x, chosen = tiny(), images(), backend()
    plain = model(x)
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile(backend=chosen)
    result, told = listening(model, x)
    assert torch.equal(result, plain)
    assert told.count("protect=(front, back)") == 1
    assert not chosen.reports


@torch.no_grad()
def test_protect_says_that_the_tokens_are_known() -> None:
    model, x, chosen = tiny(), images(), backend(protect=1)
    plain = model(x)
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile(backend=chosen)
    assert model(x).shape == plain.shape
    assert chosen.reports
    assert all(report.schedule == (R,) for report in chosen.reports)
    assert all(report.protected[0].count == 1 for report in chosen.reports)


@torch.no_grad()
def test_a_graph_without_attention_is_left_as_it_is_and_said_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    compiled = torch.compile(model, backend=backend())
    result, first = listening(compiled, images())
    assert torch.equal(result, model(images()))
    _, second = listening(compiled, images(3))
    assert (first + second).count("No self-attention") == 1
