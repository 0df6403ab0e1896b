"""Kernels of attention that a model calls by their own names are attention like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import tome_fx
from tests.laws.common import TINY, distance
from tests.others_kernels import attended, define, flash, flash_3, made, xformers, xformers_3

pytestmark = TINY
aten = torch.ops.aten
Attend = Callable[..., Tensor]
X = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(autouse=True, scope="module")
def _defined() -> None:
    define()


def turned(attend: Attend) -> Attend:
    """A kernel that takes heads in front of tokens."""
    return lambda *qkv: attend(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)


def by_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def bias(tokens: int) -> Tensor:
    return torch.linspace(0, 1, tokens, dtype=torch.float64).expand(1, 1, tokens, tokens)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kernel = aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, attn_mask=bias(q.shape[2]), scale=0.2)[0]


def of_the_formula(**more: Any) -> Attend:
    return lambda q, k, v: attended(q, k, v, **more)


def transformed(model: nn.Module, r: int = 3, **options: Any) -> Any:
    return tome_fx.transform(model, r, example_inputs=X, min_ratio=0, **options)


KERNELS = {
    "flash-attn": (flash, of_the_formula()),
    "flash-attn for Hopper": (flash_3, of_the_formula()),
    "xformers": (xformers, of_the_formula()),
    "xformers for Hopper": (xformers_3, of_the_formula()),
    "of the CPU": (turned(by_cpu), of_the_formula()),
    "with a mask": (turned(masked), lambda *qkv: attended(*qkv, 0.2, attn_mask=bias(16))),
}


@pytest.mark.parametrize("name", KERNELS)
@torch.no_grad()
def test_it_merges_as_attention_by_name(name: str) -> None:
    attend, plain = KERNELS[name]
    model = made(attend)
    fast, same = transformed(model), transformed(made(plain))
    assert fast.schedule == same.schedule == (3, 3)
    reasons = [[entry.reason for entry in each.report.unmerges] for each in (fast, same)]
    assert reasons[0] == reasons[1]
    assert fast.report.macs_after == same.report.macs_after
    assert distance(fast(X), same(X)) < 1e-12
    assert distance(fast(X), model(X)) > 1e-6
    assert distance(fast(X[:2]), fast(X)[:2]) < 1e-12
    fast.r = 0
    assert distance(fast(X), model(X)) < 1e-12
    called = {str(node.target) for node in fast.graph.nodes}
    assert not [one for one in called if "_forward" in one or "_fwd" in one or "_for_cpu" in one]


@torch.no_grad()
def test_fewer_heads_of_keys() -> None:
    fast, same = transformed(made(flash, 1)), transformed(made(of_the_formula(), 1))
    assert fast.schedule == (3, 3)
    assert distance(fast(X), same(X)) < 1e-12


@torch.no_grad()
def test_the_backend_reads_them() -> None:
    backend = tome_fx.backend(3, inner_backend="aot_eager", min_ratio=0, protect=0)
    model = made(flash)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert distance(compiled(X), transformed(model, protect=0)(X)) < 1e-12
    assert backend.reports[0].schedule == (3, 3)


MORE = {
    "a window": (flash, {"window_size_left": 4}),
    "nothing behind": (flash, {"window_size_right": 0}),
    "nothing in front": (flash_3, {"window_size_left": 0}),
    "nothing behind, by xformers": (xformers, {"right": 0}),
    "nothing in front, by xformers": (xformers_3, {"left": 0}),
    "a cap": (flash, {"softcap": 2.0}),
    "slopes": (flash, {"alibi_slopes": torch.ones(2)}),
    "lengths": (flash_3, {"cu_seqlens_q": torch.tensor([0, 16])}),
}


@pytest.mark.parametrize("name", MORE)
def test_what_attention_has_not_is_left_alone(name: str) -> None:
    kernel, more = MORE[name]
    with pytest.raises(tome_fx.NoAttentionFoundError, match=r"Not read as attention.*flash"):
        transformed(made(lambda *qkv: kernel(*qkv, **more)))


def test_causal_kernels_are_refused() -> None:
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        transformed(made(lambda *qkv: flash(*qkv, causal=True)))


def test_what_is_read_beside_the_result_stays() -> None:
    def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out * sums[..., None].to(out.dtype).sigmoid()

    with pytest.raises(tome_fx.NoAttentionFoundError, match="Not read as attention"):
        transformed(made(turned(both)))


class Normed(nn.Module):
    """Norms by the ops that a decomposition leaves of them."""

    def __init__(self, kernels: bool) -> None:
        super().__init__()
        self.kernels, self.mix = kernels, nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        q = self.mix(x).unflatten(2, (2, -1)).transpose(1, 2)
        x = x + scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        rows = x.transpose(1, 2)
        if self.kernels:
            batch, channels, tokens = rows.shape
            x = x + aten.native_layer_norm(x, [24], None, None, 1e-5)[0]
            rows = x.transpose(1, 2).contiguous()  # as torch 2.11 wants it
            group = aten.native_group_norm(rows, None, None, batch, channels, tokens, 4, 1e-5)[0]
            return x + group.transpose(1, 2) + aten._fused_rms_norm(x, [24], None, 1e-5)[0]
        x = x + nn.functional.layer_norm(x, [24])
        rows = x.transpose(1, 2).contiguous()
        group = nn.functional.group_norm(rows, 4)
        return x + group.transpose(1, 2) + nn.functional.rms_norm(x, [24], eps=1e-5)


@torch.no_grad()
def test_norms_by_their_kernels() -> None:
    models = [nn.Sequential(Normed(kernels), Normed(kernels)).double() for kernels in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    fast, same = (transformed(model.eval()) for model in models)
    reasons = [[entry.reason for entry in each.report.unmerges] for each in (fast, same)]
    assert reasons[0] == reasons[1]
    assert torch.equal(fast(X), same(X))
    fast.r = 0
    assert torch.equal(fast(X), models[0](X))
