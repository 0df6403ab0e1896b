"""Parts of a model: no merged shape leaves a graph, and what is no whole model is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.compiling.common import R, backend, expected, listening
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


@pytest.fixture
def _alone() -> Iterator[None]:
    """A process group of this process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("whole", [True, False])
def test_buckets_of_a_distributed_model_leak_no_shape(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo cuts the graph where a bucket of gradients is full, unless it is told not to."""
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 50_000)
    model, x, chosen = tiny(depth=4).train(), images(), backend(inner="eager")
    distributed = DistributedDataParallel(model, bucket_cap_mb=0.05)
    with torch._dynamo.config.patch(optimize_ddp=not whole):
        result, told = listening(torch.compile(distributed, backend=chosen), x)
    result.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(chosen.reports) == 1
    if whole:
        assert not told
        assert torch.equal(result, expected(model)(x))
        return
    assert told.count("optimize_ddp=False") == 1
    assert chosen.reports[0].unmerges[-1].op == "output"
    assert result.shape == model(x).shape
    assert not torch.equal(result, model(x))
