"""Repeats of what is the same for all images, and of what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from tome_fx.passes.normalize import normalize

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
C = 4


def joined(cls: Tensor, x: Tensor) -> Tensor:
    return torch.cat([cls.expand(x.shape[0], -1, -1), x], 1)


ALIKE: dict[str, Form] = {
    "a class token": lambda c, p, x: c.expand(x.shape[0], -1, -1).repeat(4, 1, 1),
    "with its position": lambda c, p, x: (joined(c, x) + p)[:, :1].repeat(4, 1, 1),
    "scaled": lambda c, p, x: (joined(c, x) * p - p)[:, :1].repeat(4, 1, 1) / 2,
    "behind another": lambda c, p, x: (joined(p[:, :1], joined(c, x[:, 1:])) + p)[:, 1:2].repeat(
        4, 1, 1
    ),
    "by a negative place": lambda c, p, x: torch.cat([x, c.expand(x.shape[0], -1, -1)], 1)[
        :, -1:
    ].repeat(2, 1, 1),
    "scaled by channels": lambda c, p, x: (joined(c, x) * p[0, 0])[:, :1].repeat(4, 1, 1),
    "several": lambda c, p, x: (joined(p[:, 1:3], joined(c, x)[:, :5]) + p[:, :1])[:, :3].repeat(
        4, 1, 1
    ),
    "in another dtype": lambda c, p, x: (joined(c.bfloat16(), x) * p[:, :1].bfloat16())[
        :, :1
    ].repeat(4, 1, 1),
    "repeated before": lambda c, p, x: (c.repeat(x.shape[0], 1, 1) + p[:, :1]).repeat(4, 1, 1),
}
OTHER: dict[str, Form] = {
    "of the image": lambda c, p, x: (joined(c, x) + p)[:, 1:2].repeat(4, 1, 1),
    "with some of the image": lambda c, p, x: (joined(c, x) + p)[:, :2].repeat(4, 1, 1),
    "scaled by the image": lambda c, p, x: (joined(c, x) * x[:, :1])[:, :1].repeat(4, 1, 1),
    "behind the image": lambda c, p, x: torch.cat([x[:, :1], joined(c, x)], 1)[:, :1].repeat(
        4, 1, 1
    ),
    "in another order": lambda c, p, x: joined(c, x).flip(1)[:, :1].repeat(4, 1, 1),
    "mixed": lambda c, p, x: joined(c, x).cumsum(1)[:, 1:2].repeat(4, 1, 1),
    "with dropout": lambda c, p, x: F.dropout(joined(c, x), 0.5)[:, :1].repeat(4, 1, 1),
    "behind nothing": lambda c, p, x: torch.cat(
        [torch.empty(0), c.expand(x.shape[0], -1, -1), x], 1
    )[:, 0:1].repeat(4, 1, 1),
    "tokens too": lambda c, p, x: c.expand(x.shape[0], -1, -1).repeat(4, 2, 1),
}


class Model(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.cls = nn.Parameter(torch.randn(1, 1, C))
        self.place = nn.Parameter(torch.randn(1, 6, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.cls, self.place, x)


def normalized(form: Form, batch: Any) -> tuple[Model, GraphModule]:
    torch.manual_seed(0)
    model = Model(form)
    exported = torch.export.export(model, (torch.randn(2, 5, C),), dynamic_shapes={"x": {0: batch}})
    module = exported.module()
    assert isinstance(module, GraphModule)
    normalize(module.graph)
    module.recompile()
    return model, module


@pytest.mark.parametrize("batch", [torch.export.Dim("b"), None])
@pytest.mark.parametrize("name", [*ALIKE, *OTHER])
def test_repeats(name: str, batch: Any) -> None:
    model, module = normalized((ALIKE | OTHER)[name], batch)
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(torch.ops.aten.repeat.default) == (name in OTHER)
    for images in (2,) if batch is None else (1, 2, 3):
        x = torch.randn(images, 5, C)
        torch.manual_seed(1)
        wanted = model(x)
        torch.manual_seed(1)
        found = module(x)
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()
