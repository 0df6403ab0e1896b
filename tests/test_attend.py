"""Attention with sizes: fused where it was written out, and in the form that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.architectures import randomise
from tests.rules.common import TINY
from tests.tiny import images, tiny
from tome_fx import kernels, ops
from tome_fx.errors import ConfigError
from tome_fx.passes.attend import Shapes, _legal

pytestmark = TINY
aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
H, D, C, R = 2, 8, 16, 2
Score = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Attention as ``score`` writes it, on q, k ``[B, H, N, D]`` and a bias ``[1, H, N, N]``."""

    def __init__(self, score: Score, folded: bool = False) -> None:
        super().__init__()
        self.score, self.folded = score, folded
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.bias = nn.Parameter(torch.randn(1, H, 16, 16))
        self.norm, self.mlp = nn.LayerNorm(C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        if self.folded:
            q, k, v = (t.reshape(b * H, n, D) for t in (q, k, v))
            y = torch.bmm(self.score(q, k, self.bias), v).reshape(b, H, n, D)
        else:
            y = self.score(q, k, self.bias) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, C))
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """Three blocks on 16 patches."""

    def __init__(self, score: Score, folded: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, C, 4, 4)
        self.blocks = nn.Sequential(*(Block(score, folded) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1)


def scaled_query(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    return ((q * D**-0.5) @ k.transpose(-2, -1)).softmax(-1)


def scaled_logits(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    return (torch.matmul(q, k.transpose(-1, -2)) / D**0.5).softmax(dim=-1, dtype=torch.float64)


def biased(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(bias + q @ k.mT * 0.3, -1)


def folded(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    return (torch.bmm(q, k.transpose(1, 2)) * 0.3).softmax(-1)


def temperature(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.mT * bias.mean()).softmax(-1)


def scaled_after(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    return ((q @ k.mT + bias) * 0.3).softmax(-1)


def dropped(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    return nn.functional.dropout((q @ k.mT * 0.3).softmax(-1), 0.5, training=True)


def sharpened(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    weight = (q @ k.mT * 0.3).softmax(-1)
    return weight * (weight > 0.01)


def made(score: Score, is_folded: bool = False) -> nn.Module:
    model = Model(score, is_folded)
    randomise(model, 0)
    return model.double().eval()


def count(module: tome_fx.ToMeModule, target: object) -> int:
    return sum(node.target is target for node in module.graph.nodes)


def run(model: nn.Module, attention: str) -> tuple[tome_fx.ToMeModule, Tensor]:
    x = images(3, 16).double()
    fast = tome_fx.transform(model, R, example_inputs=x, attention=attention)
    with torch.no_grad():
        return fast, fast(x)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("score", "is_folded"),
    [(scaled_query, False), (scaled_logits, False), (biased, False), (folded, True)],
)
def test_written_attention_is_fused_where_sizes_join(score: Score, is_folded: bool) -> None:
    model = made(score, is_folded)
    written, expected = run(model, "written")
    fast, found = run(model, "auto")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert count(written, ops.attention) == 0
    assert count(fast, ops.attention) == 2
    assert count(fast, ops.add_log_size) == 0
    assert "written attention that a compiler fuses, sizes included: 2" in str(fast.report)
    # What does not merge is what was captured.
    plain = tome_fx.transform(model, 0, example_inputs=images(3, 16).double())
    assert count(plain, ops.attention) == 0


@pytest.mark.compiler
@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize(("score", "is_folded"), [(biased, False), (folded, True)])
def test_a_compiler_gets_fused_attention(score: Score, is_folded: bool) -> None:
    fast, found = run(made(score, is_folded), "auto")
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x = images(3, 16).double()
    torch.testing.assert_close(torch.compile(fast, backend=keep)(x), found)
    called = [node.target for node in graphs[0].graph.nodes]
    assert called.count(torch._C._nn.scaled_dot_product_attention) == 2
    exported = torch.export.export(fast, (x,)).run_decompositions({})
    names = [node.target for node in exported.graph.nodes]
    assert names.count(aten.scaled_dot_product_attention.default) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_written_attention_keeps_all_its_derivatives() -> None:
    fast, _ = run(made(biased), "auto")
    x = images(1, 16).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: fast(x).sum(), x, atol=1e-5, fast_mode=True)
    tangent = images(1, 16, seed=1).double()
    _, found = torch.func.jvp(fast, (x.detach(),), (tangent,))
    step = 1e-6
    with torch.no_grad():
        numeric = (fast(x + step * tangent) - fast(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(found, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("score", [temperature, scaled_after, sharpened])
def test_what_no_kernel_computes_stays_written(score: Score) -> None:
    model = made(score)
    _, expected = run(model, "written")
    fast, found = run(model, "auto")
    assert count(fast, ops.attention) == 0
    assert count(fast, ops.add_log_size) == 2
    assert torch.equal(found, expected)


def test_dropout_on_the_weights_stays_written() -> None:
    fast, _ = run(made(dropped), "auto")
    assert count(fast, ops.attention) == 0


def test_maps_of_attention_that_are_read_stay() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = made(scaled_query)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body.patch(x).flatten(2).transpose(1, 2)
            x = self.body.blocks[0](x)
            block = self.body.blocks[1]
            q, k, v = block.qkv(x).reshape(-1, 16, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
            weight = scaled_query(q, k, block.bias)
            x = x + block.proj((weight @ v).transpose(1, 2).reshape(-1, 16, C))
            return x.mean(1), weight

    x = images(3, 16).double()
    fast = tome_fx.transform(Read().double(), R, example_inputs=x)
    assert count(fast, ops.attention) == 0
    assert tuple(fast(x)[1].shape) == (3, H, 16, 16)


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("form", [form for form in ops.FORMS if form != "kernel"])
def test_each_form_by_name(form: str) -> None:
    model, x = tiny(depth=3).double(), images(3).double()
    expected = tome_fx.transform(model, R, attention="mask")(x)
    fast = tome_fx.transform(model, R, attention=form)
    torch.testing.assert_close(fast(x), expected, rtol=1e-10, atol=1e-12)
    assert count(fast, ops.FORMS[form]) == (2 if form != "mask" else 0)
    assert (f"2 by {form}" in str(fast.report)) == (form != "mask")
    fast.r = 1
    assert count(fast, ops.FORMS[form]) == (2 if form != "mask" else 0)


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize("form", ["mask", "channel", "values", "plain"])
def test_a_scale_of_zero_is_one(form: str) -> None:
    class Mean(Block):
        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.0)
            x = x + self.proj(y.transpose(1, 2).reshape(b, n, C))
            return x + self.mlp(self.norm(x))

    model = made(scaled_query)
    model.blocks = nn.Sequential(*(Mean(scaled_query) for _ in range(3))).double()
    fast, _ = run(model, form)
    scaled = [n for n in fast.graph.nodes if n.target in (SDPA, *ops.FORMS.values())]
    assert len(scaled) == 3
    assert all(node.kwargs["scale"] == 0.0 for node in scaled)


@torch.no_grad()
def test_one_query_head_over_many_key_heads_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_attention", lambda device, dtype, width: True)
    shapes = Shapes(torch.device("cpu"), torch.float16, 1, 4, 5, 5, 8, 8)
    graph = torch.fx.Graph()
    call = graph.call_function(SDPA, tuple(graph.placeholder(name) for name in "qkv"))
    assert "kernel" not in _legal(call, shapes)
    assert "kernel" in _legal(call, dataclasses.replace(shapes, heads=4))


@torch.no_grad()
def test_the_kernel_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device has one; elsewhere, and where it is gone when the program runs, the mask."""
    model, x = tiny(depth=3).double(), images(3).double()
    plain = tome_fx.transform(model, R, attention="kernel")
    assert count(plain, ops.kernel_attention) == 0
    monkeypatch.setattr(kernels, "has_attention", lambda device, dtype, width: width <= 256)
    fast = tome_fx.transform(model, R, attention="kernel")
    assert count(fast, ops.kernel_attention) == 2
    assert "2 by kernel" in str(fast.report)
    assert torch.equal(fast(x), plain(x))
    dropped = tome_fx.transform(tiny(depth=3, attn_drop_rate=0.1).train(), R, attention="kernel")
    assert count(dropped, ops.kernel_attention) == 0


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("form", ["channel", "values", "plain"])
def test_a_form_that_drops_weights_differently_is_not_taken(form: str) -> None:
    model = tiny(depth=3, attn_drop_rate=0.1).train()
    fast = tome_fx.transform(model, R, attention=form)
    kept = form == "channel"
    assert count(fast, ops.FORMS[form]) == (2 if kept else 0)


@pytest.mark.compiler
@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("form", ["channel", "values", "flex"])
def test_forms_compile_in_one_graph(form: str) -> None:
    fast, x = tome_fx.transform(tiny(), R, attention=form), images(3)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fast(x), rtol=1e-5, atol=1e-5)


def test_a_form_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"attention='fast' is not one of auto, measure, written"):
        tome_fx.transform(tiny(), R, attention="fast")


def test_an_export_in_another_thread_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says process-wide that an export runs: what is called meanwhile stays as it is."""
    q, k, v = (torch.randn(2, 3, 33, 16, dtype=torch.float64) for _ in range(3))
    size = torch.randint(1, 5, (2, 1, 1, 33)).double()
    alone = ops.attention(q, k.mT, v, size)
    fused = torch.compile(ops.attention, backend="eager")(q, k.mT, v, size)
    assert not torch.equal(fused, alone)  # else nothing is seen here
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.equal(ops.attention(q, k.mT, v, size), alone)
