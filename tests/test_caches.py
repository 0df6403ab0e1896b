"""What a forward keeps for later calls is none of a capture's business."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY
C, PLACES = 16, 16


class Biased(nn.Module):
    """Attention with a table of biases that is looked up once and kept (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 3 * C), nn.Linear(C, 5)
        self.table = nn.Parameter(torch.zeros(PLACES))
        places = torch.arange(PLACES)
        self.register_buffer("index", (places[:, None] - places).abs(), persistent=False)
        self.looked_up: dict[str, Tensor] = {}

    def bias(self, device: torch.device) -> Tensor:
        if str(device) not in self.looked_up:
            self.looked_up[str(device)] = self.table[self.index]
        return self.looked_up[str(device)]

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + (q @ k.transpose(1, 2) + self.bias(image.device)).softmax(-1) @ v
        return self.head(x.mean(1))  # type: ignore[no-any-return]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "cast": lambda fast: fast.double(),
    "pickled": lambda fast: pickle.loads(pickle.dumps(fast)).double(),
    "copied": lambda fast: copy.deepcopy(fast).double(),
    "set anew": lambda fast: setattr(fast, "r", 2) or fast.double(),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_trace_keeps_is_gone_with_it(name: str) -> None:
    model = Biased().eval()
    randomise(model)
    x = torch.randn(2, 3, 8, 8)
    fast = tome_fx.transform(model, 0, example_inputs=(x,), min_ratio=0)
    assert not model.looked_up
    fast = CHANGES[name](fast)
    fast.r = 0
    assert distance(run(fast, x.double()), run(model.double(), x.double())) < 1e-9
