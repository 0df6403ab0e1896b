"""One small timm Vision Transformer, as `timm.create_model` makes it, for tests of the interface.

`tests.architectures` draws models for the laws; here the model is always the same, so that a test
can be about something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

from tests.architectures import randomise

SIZE = 48  # 3 x 3 patches


def tiny(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    """A model of two blocks and 9 patches, in eval mode, every parameter random."""
    shape = {"depth": 2, "img_size": SIZE, "embed_dim": 32, "num_heads": 2, "num_classes": 10}
    model = timm.create_model(name, **{**shape, **options})
    randomise(model, 0)
    return model.eval()


def images(batch: int = 2, size: int = SIZE, channels: int = 3, seed: int = 0) -> Tensor:
    """Random images ``[batch, channels, size, size]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=generator)


class Around(nn.Module):
    """A model whose forward is `function(body, *inputs)`: any code around a tiny model."""

    def __init__(self, function: Callable[..., Any], body: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.body = tiny() if body is None else body

    def forward(self, x: Tensor) -> Any:
        return self.function(self.body, x)


class Cast(nn.Module):
    """A model inside a region of autocast, or in one that switches it off."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.body, self.enabled = tiny(), enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            return self.body(x) * 2  # type: ignore[no-any-return]


class Stateful(nn.Module):
    """Every kind of state around a tiny model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.body.blocks[1].mlp.fc1.weight = self.body.blocks[0].mlp.fc1.weight
        self.again = self.body.head  # the same module under two names
        self.register_buffer("kept", torch.randn(10))
        self.register_buffer("lost", torch.randn(10), persistent=False)
        self.register_parameter("none", None)
        self.unused = nn.Linear(2, 2)
        for parameter in self.body.blocks[0].parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.body.forward_features(x)[:, 0]) + self.kept + self.lost


def parametrized() -> nn.Module:
    """A model with weights that are computed from others."""
    model = tiny()
    parametrizations.weight_norm(model.blocks[0].mlp.fc1)
    parametrizations.orthogonal(model.blocks[1].attn.proj)
    return model


def seeded(model: nn.Module, *inputs: Any, seed: int = 7) -> Any:
    """The output of a call that starts from this random state."""
    torch.manual_seed(seed)
    return model(*inputs)


def same(ours: Any, theirs: Any) -> bool:
    """Equal structure, classes and numbers, up to rounding."""
    left, left_spec = pytree.tree_flatten(ours)
    right, right_spec = pytree.tree_flatten(theirs)
    assert left_spec == right_spec
    assert type(ours) is type(theirs)
    for a, b in zip(left, right, strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        else:
            assert a == b
    return True
