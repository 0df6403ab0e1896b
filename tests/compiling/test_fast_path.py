"""torch's own encoder, which is one op a layer to Dynamo where no gradient is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import tome_fx
from tests.compiling.common import R, backend, listening
from tests.rules.common import TINY
from tests.tiny import images
from tests.versions import lacks
from tome_fx.compiling.fast_path import attention, encoder_layer

pytestmark = TINY
WIDTH = 32


class Encoder(nn.Module):
    """Patches through ``nn.TransformerEncoder``, all parameters random."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, WIDTH, 8, 8)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        for parameter in self.encoder.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x: Tensor, padding: Tensor | None = None, mask: Any = None) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = self.encoder(tokens, mask, padding, is_causal=False)
        return tokens.mean(1)  # type: ignore[no-any-return]


def padding(batch: int = 2) -> Tensor:
    """The last places of each image, some more in the second one."""
    return torch.arange(36) >= torch.tensor([[30], [20]]).repeat(batch // 2, 1)


@torch.no_grad()
@lacks("has no stand-in for the op")
@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("options", "padded"),
    [({}, True), ({"norm_first": True, "activation": "gelu", "layer_norm_eps": 1e-2}, False)],
    ids=str,
)
def test_the_fast_path_merges_as_transform_does(options: dict[str, Any], padded: bool) -> None:
    model, chosen = Encoder(**options).eval(), backend()
    inputs = (images(), padding()) if padded else (images(),)
    fast = tome_fx.transform(model, R, example_inputs=inputs, min_ratio=0)
    for dynamic in (None, True):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=chosen, dynamic=dynamic, fullgraph=True)
        result, told = listening(lambda _, run=compiled: run(*inputs), inputs[0])
        assert not told
        torch.testing.assert_close(result, fast(*inputs), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(result, model(*inputs), rtol=1e-3, atol=1e-3)
    assert {report.schedule for report in chosen.reports} == {(R, R)}


class Masked(Encoder):
    """The same with a mask of pairs that the model holds."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, x: Tensor, padding: Tensor | None = None, mask: Any = None) -> Tensor:
        return super().forward(x, padding, self.mask)


LATER = torch.ones(36, 36, dtype=torch.bool).triu(1)
FAR = torch.arange(36)[:, None].sub(torch.arange(36)).abs() > 20


@torch.no_grad()
@pytest.mark.parametrize(
    "dynamic", [None, pytest.param(True, marks=lacks("has no stand-in for the op"))]
)
def test_a_mask_that_the_model_holds_travels(dynamic: bool | None) -> None:
    model, x, chosen = Masked(FAR).eval(), images(), backend(inner="eager")
    fast = tome_fx.transform(model, R, example_inputs=x, min_ratio=0)
    compiled = torch.compile(model, backend=chosen, dynamic=dynamic, fullgraph=True)
    torch.testing.assert_close(compiled(x), fast(x), rtol=1e-5, atol=1e-5)
    assert {report.schedule for report in chosen.reports} == {(R, R)}


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (lambda: Masked(LATER), (images(),)),
        (lambda: Masked(FAR), (images(), padding())),
        (Encoder, (images(), None, FAR)),
    ],
    ids=["causal", "with padding", "an input"],
)
def test_a_mask_that_is_causal_or_may_be_is_left_as_it_is(
    kind: Callable[[], Encoder], given: tuple[Any, ...]
) -> None:
    """The op has the mask, and no longer the word that it is causal."""
    model, chosen = kind().eval(), backend(inner="eager")
    compiled = torch.compile(model, backend=chosen)
    result, told = listening(lambda _: compiled(*given), given[0])
    assert "set_fastpath_enabled(False)" in told
    assert not chosen.reports
    torch.testing.assert_close(result, model(*given))


@torch.no_grad()
def test_a_nested_tensor_is_left_as_it_is() -> None:
    model, x, chosen = Encoder().eval(), images(), backend(inner="eager")
    model.encoder.use_nested_tensor, model.encoder.mask_check = True, False
    compiled = torch.compile(model, backend=chosen)
    result, told = listening(lambda x: compiled(x, padding()), x)
    assert "compiled without merging" in told
    assert not chosen.reports
    torch.testing.assert_close(result, model(x, padding()))


class Native(nn.Module):
    """The op of ``nn.MultiheadAttention`` by itself, as other releases of torch take it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Encoder()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.stem(x).flatten(2).transpose(1, 2)
        layer: Any = self.body.encoder.layers[0]
        own = layer.self_attn
        weights = own.in_proj_weight, own.in_proj_bias, own.out_proj.weight, own.out_proj.bias
        y, _ = torch._native_multi_head_attention(x, x, x, WIDTH, 2, *weights, need_weights=False)
        return (x + y).mean(1)


@torch.no_grad()
def test_the_op_of_multi_head_attention_merges() -> None:
    model, x, chosen = Native().eval(), images(), backend()
    result = torch.compile(model, backend=chosen, fullgraph=True)(x)
    assert [report.schedule for report in chosen.reports] == [(R,)]
    torch.testing.assert_close(model(x), result, rtol=1.0, atol=1.0)


# -- the ops written out ------------------------------------------------------------------------


def weights(layer: Any) -> tuple[Tensor, ...]:
    own = layer.self_attn
    return own.in_proj_weight, own.in_proj_bias, own.out_proj.weight, own.out_proj.bias


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, 0, 1, 2])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_layer_written_out_is_the_op(gelu: bool, norm_first: bool, kind: int | None) -> None:
    layer: Any = Encoder().double().encoder.layers[0]
    x = torch.randn(2, 36, WIDTH, dtype=torch.float64)
    norms = layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias
    mlp = layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias
    settings = gelu, norm_first, 1e-2
    mask, number = hidden(kind), kind
    args = (x, WIDTH, 2, *weights(layer), *settings, *norms, *mlp, mask, number)
    torch.testing.assert_close(
        encoder_layer(*args), torch._transformer_encoder_layer_fwd(*args), rtol=1e-9, atol=1e-9
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, 0, 1, 2])
@pytest.mark.parametrize("average", [False, True])
def test_an_attention_written_out_is_the_op(average: bool, kind: int | None) -> None:
    layer: Any = Encoder().double().encoder.layers[0]
    x = torch.randn(2, 36, WIDTH, dtype=torch.float64)
    args = (x, x, x, WIDTH, 2, *weights(layer), hidden(kind), True, average, kind)
    for ours, theirs in zip(
        attention(*args), torch._native_multi_head_attention(*args), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def hidden(kind: int | None) -> Tensor | None:
    """A mask of each kind that the op knows; any number but zero hides a key."""
    shape = {0: (36, 36), 1: (2, 36), 2: (2, 2, 36, 36)}.get(-1 if kind is None else kind)
    if shape is None:
        return None
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.4
    return torch.where(mask, 0.5, 0.0).double()
