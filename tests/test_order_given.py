"""Causal masks that are inputs, read from the example; and those of programs for one image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.test_order import C, Mix, Model, N, X, added, fused, gpt, model_of, scores
from tests.zoo.entry import randomise

pytestmark = TINY

held: list[Tensor] = []


class Given(Model):
    """The mask is an input."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        held.append(mask)
        return super().forward(image)


def hidden_by_input(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    far = torch.where(held[-1], 0.0, float("-inf")).to(q.dtype)
    return (scores(q, k) + far).softmax(-1) @ v


def seen_by_input(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=held[-1])


@pytest.mark.few(1)
@pytest.mark.parametrize("mix", [hidden_by_input, seen_by_input])
def test_a_mask_that_is_an_input_is_read_from_the_example(mix: Mix) -> None:
    model = Given(mix, mix).eval()
    randomise(model)
    model.double()
    order = torch.ones(N, N, dtype=torch.bool).tril()
    for mask in (order, order.expand(2, 1, N, N).clone()):
        with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
            tome_fx.transform(model, 3, example_inputs=(X, mask))
    exported = torch.export.export(model, (X, order), strict=False)
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        tome_fx.transform(exported, 3)
    every = torch.ones(2, 1, N, N, dtype=torch.bool)
    fast = tome_fx.transform(model, 3, example_inputs=(X, every), min_ratio=0)
    assert fast.schedule == (3, 3)


def test_padding_in_the_example_does_not_hide_the_order() -> None:
    model = Given(seen_by_input, seen_by_input).eval()
    randomise(model)
    order = torch.ones(2, 1, N, N, dtype=torch.bool).tril()
    order[1, :, :, 12:] = False
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        tome_fx.transform(model.double(), 3, example_inputs=(X, order))


class Twice(Model):
    """An input has the name of a buffer."""

    def __init__(self, *mixes: Mix) -> None:
        super().__init__(*mixes)
        self.register_buffer("mask", torch.ones(N, N, dtype=torch.bool).tril())

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return super().forward(image * mask.any().to(image.dtype))


def test_an_input_is_not_taken_for_a_buffer_of_its_name() -> None:
    def mix(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=model.mask)

    model, every = Twice(mix, mix).eval(), torch.ones(2, N, N, dtype=torch.bool)
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        tome_fx.transform(model.double(), 3, example_inputs=(X, every))


class Fixed(Given):
    """A program for one image."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        images = int(image.shape[0])
        return super().forward(image.reshape(images, 3, 8, 8), mask.reshape(images, 1, N, N))


def test_a_mask_for_the_one_image_of_a_program() -> None:
    model = Fixed(seen_by_input, seen_by_input).eval()
    randomise(model)
    mask = torch.ones(1, N, N, dtype=torch.bool)
    fast = tome_fx.transform(model.double(), 3, example_inputs=(X[:1], mask), min_ratio=0)
    assert fast.schedule == (3, 3)
    assert fast.float()(X[:1].float(), mask).shape == (1, C)
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        tome_fx.transform(model, 3, example_inputs=(X[:1], mask.tril()))


def test_the_backend_reads_the_mask_too() -> None:
    """Else the first block would merge."""
    model = model_of(added, gpt, fused)
    fast = torch.compile(model, backend="tome_fx", options={"r": 3, "inner_backend": "eager"})
    with pytest.warns(tome_fx.ToMeWarning, match="causal"), torch.no_grad():
        assert distance(fast(X), model(X)) < 1e-12


def test_a_mask_without_values_says_nothing() -> None:
    """On the meta device there is nothing to read."""
    with torch.device("meta"):
        model = Model(fused, fused)
        example = torch.zeros(2, 3, 8, 8)
    assert tome_fx.transform(model, 3, example_inputs=example, min_ratio=0).schedule == (3, 3)
