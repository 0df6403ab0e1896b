"""Ops on each token alone: elementwise, linear, norms, casts, lookups by integer or boolean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.common import TINY, C, H, N, Projected, heads, joined, random, tied, unmerged
from tests.versions import lacks

pytestmark = TINY
TOKEN_MASK = tied(torch.arange(N)[:, None] % 3 == 0, (0,))
TABLE, ROWS = random(5, C), tied(torch.arange(N) % 5, (0,))
WEIGHT, BIAS, KERNEL = random(C, C) / 3, random(C), random(C, C // 2, 1) / 2
SLOPES, PLACES, MIXER = random(C).abs(), random(N), random(5, N)

BYTES = (40 * random(C, C)).to(torch.int8)


def steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[M, C]`` in whole steps, and the step of each."""
    rows = x.flatten(0, -2)
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-5) / 127
    return (rows / scale).round(), scale


def of_bytes(x: Tensor) -> Tensor:
    rows, scale = steps(x)
    return (torch._int_mm(rows.to(torch.int8), BYTES) * scale).unflatten(0, (-1, x.shape[-2]))


def over_tokens(x: Tensor) -> Tensor:
    return torch._int_mm(steps(x.mT)[0].to(torch.int8), (40 * MIXER).to(torch.int8).t())


def of_floats(x: Tensor) -> Tensor:
    """Eight bits of a float, with a scale for each row that the product itself takes."""
    rows, scale = (part.float() for part in steps(x))
    eight, weight = rows.to(torch.float8_e4m3fn), BYTES.float().to(torch.float8_e4m3fn).t()
    found = torch._scaled_mm(eight, weight, scale, torch.ones(1, C), out_dtype=torch.float32)
    return found.unflatten(0, (-1, x.shape[-2])).double()


ELEMENTWISE = {
    "activations": lambda x: F.gelu(x) + F.silu(x) * F.relu6(x) - F.leaky_relu(x) + F.mish(x),
    "hardswish": lambda x: F.hardswish(x) + F.hardtanh(x) + F.logsigmoid(x) + F.celu(x),
    "prelu of one slope": lambda x: F.prelu(x, SLOPES[:1]),
    "prelu of channels": lambda x: F.prelu(x.transpose(1, 2), SLOPES).transpose(1, 2),
    "arithmetic": lambda x: 1 - 2 / (3 + x.exp()) + x.abs() ** 1.5 + x.square().add(1).rsqrt(),
    "divide, multiply, subtract": lambda x: torch.subtract(
        torch.divide(x.multiply(3), 2), x, alpha=2
    ),
    "lerp, addcmul": lambda x: torch.lerp(x, x.sin(), 0.3) + torch.addcmul(x, x, x, value=0.1),
    "maximum, clamp": lambda x: torch.maximum(x, x.mean(1, keepdim=True)).clamp(max=x[:, :1]),
    "where": lambda x: torch.where(x > 0, x, 0.1) + torch.where(TOKEN_MASK, x, x.sin()),
    "masked_fill": lambda x: x.masked_fill(TOKEN_MASK, 0.3).masked_fill(x > 1, 2.0),
    "rounding": lambda x: x.floor() + x.round() + x.sign() * x.frac(),
    "layer scale": lambda x: x + SLOPES * x,
    "dropout": lambda x: F.dropout(x, 0.5, training=False) * 2,
    "in place": lambda x: x.clone().mul_(2).add_(x).clamp_(min=-1),
    "casts": lambda x: x.to(torch.float64).type_as(x) + x.detach().clone() + x.bool(),
    "cast like another shape": lambda x: x.type_as(TABLE) + x.to(x[:1, :2, :3]),
    "like": lambda x: x + torch.zeros_like(x) + torch.full_like(x, 0.5) + x.new_ones(x.shape),
    "complex": lambda x: torch.polar(x.abs(), x).real + torch.complex(x, x.sin()).imag,
    "pairs as complex": lambda x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * (0.6 + 0.8j)
    ).flatten(2),
}
CHANNELS = {
    "linear": lambda x: F.linear(x, WEIGHT, BIAS) + F.linear(x, WEIGHT),
    "linear of folded tokens": lambda x: F.linear(x.flatten(0, 1), WEIGHT).unflatten(0, (-1, N)),
    "products of bytes": of_bytes,
    "layer norm": lambda x: F.layer_norm(x, (C,), SLOPES, BIAS),
    "rms norm": lambda x: F.rms_norm(x, (C,), SLOPES),
    "norm of heads": lambda x: joined(F.layer_norm(heads(x), (C // H,))),
    "batch norm": lambda x: F.batch_norm(x.transpose(1, 2), BIAS, SLOPES).transpose(1, 2),
    "batch norm of folded tokens": lambda x: F.batch_norm(x.flatten(0, 1), BIAS, SLOPES).view_as(x),
    "written normalize": lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=-1) + x / x.norm(dim=-1, keepdim=True),
    "statistics": lambda x: (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True).sqrt(),
    "gated": lambda x: torch.cat([F.glu(x), F.glu(-x)], -1),
    "swiglu": lambda x: (F.silu(x[..., :4]) * x[..., 4:]).repeat(1, 1, 2),
    "softmax": lambda x: x.softmax(-1) + x.log_softmax(-1),
    "pointwise convolution": lambda x: F.conv1d(x.mT, KERNEL, BIAS, groups=2).mT,
    "topk": lambda x: x * x.topk(3, dim=-1)[0].sum(-1, keepdim=True),
    "sort": lambda x: x.sort(dim=-1)[0],
    "flip and roll": lambda x: x.flip(-1) + x.roll(1, -1),
    "cumulative": lambda x: x.cumsum(-1) + x.cummax(-1)[0],
    "padded": lambda x: F.pad(x, (1, 2)).sin()[..., 1 : 1 + C],
    "outer": lambda x: (x[..., :, None] * x[..., None, :]).mean(-1),
}
LOOKUPS = {
    "embedding of places": lambda x: x + F.embedding(ROWS, TABLE),
    "row by number": lambda x: x + TABLE[ROWS],
    "index_select": lambda x: x + TABLE.index_select(0, ROWS),
    "embedding of data": lambda x: F.embedding((x.sum(-1) > 0).long(), TABLE),
    "largest channel": lambda x: F.embedding(x[..., :5].argmax(-1), TABLE),
    "one hot": lambda x: x * F.one_hot(x.argmax(-1), C),
    "buckets": lambda x: x + torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)),
    "integers": lambda x: x + (4 * x).round().int() + (x > 0).long(),
    "booleans": lambda x: x * ((x > 0) & TOKEN_MASK | (x < -1)),
    "gather of channels": lambda x: x.gather(-1, x.argsort(-1)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("group", [ELEMENTWISE, CHANNELS, LOOKUPS], ids=["each", "channel", "row"])
def test_stays_merged(group: dict[str, object]) -> None:
    assert unmerged(group, how="beside") == set()


@lacks("has one scale for all rows on a CPU")
def test_a_product_that_takes_the_scales_of_its_rows_stays_merged() -> None:
    assert unmerged({"products of eight bits": of_floats}, how="beside") == set()


class Tables(nn.Module):
    """A gain, a shift and a scale for each token and channel, as parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1, N, C))
        self.shift = nn.Parameter(torch.zeros(N, C))
        self.register_buffer("scale", torch.zeros(N, 1))

    def tie(self) -> None:
        with torch.no_grad():
            for value in (self.gain, self.shift, self.scale):
                value.copy_(tied(value, (value.dim() - 2,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.gain + self.shift.expand(x.shape[0], -1, -1)) * self.scale


def test_data_indexed_by_token_travels_with_it() -> None:
    assert unmerged(Tables()) == set()


def test_statistics_over_tokens_need_all_of_them() -> None:
    group = {
        "group norm": lambda x: F.group_norm(x.transpose(1, 2), 2),
        "instance norm": lambda x: F.instance_norm(x.transpose(1, 2)),
        "layer norm": lambda x: F.layer_norm(x, (N, C)),
        "batch norm of tokens": lambda x: F.batch_norm(x, PLACES, PLACES.abs()),
        "linear over tokens": lambda x: F.linear(x.transpose(1, 2), MIXER),
        "bytes over tokens": over_tokens,
    }
    expected = {"group_norm", "instance_norm", "layer_norm", "batch_norm", "linear", "_int_mm"}
    assert unmerged(group, how="aside") == expected


WHOLE = {
    "to int": lambda a: (255 * a).to(torch.int32).double() / 255,
    "long": lambda a: (255 * a).long().double() / 255,
    "like whole numbers": lambda a: (
        (255 * a).type_as(torch.ones(1, dtype=torch.int64)).double() / 9
    ),
    "divided and rounded": lambda a: torch.div(a, 0.004, rounding_mode="floor") * 0.004,
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", WHOLE)
def test_what_rounds_gets_the_share_of_a_member(name: str) -> None:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return WHOLE[name]((q @ k.mT).softmax(-1)) @ v

    assert unmerged(Projected(mix), sites=3) == set()
