"""A model whose own code acts differently while it is traced is never captured without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance
from tests.laws.world import world

pytestmark = TINY
C, HEADS, N = 8, 2, 16


def exporting(x: Tensor) -> bool:
    return torch.compiler.is_exporting()


def symbolic(x: Any) -> bool:
    return isinstance(x, torch.fx.Proxy)


def traced(x: Any) -> bool:
    return isinstance(x, (FakeTensor, torch.fx.Proxy)) or torch.compiler.is_compiling()


def never(x: Tensor) -> bool:
    return False


class Scaled(nn.Module):
    """Twice its input, and three times while it is traced."""

    def __init__(self, asks: Callable[[Any], bool], traced: float = 3.0) -> None:
        super().__init__()
        self.asks, self.traced = asks, traced

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.traced if self.asks(x) else 2.0)


class Attention(nn.Module):
    """Causal when it is run, and not while it is traced, where ``asks`` says so."""

    def __init__(self, asks: Callable[[Any], bool]) -> None:
        super().__init__()
        self.qkv, self.out, self.asks = nn.Linear(C, 3 * C), nn.Linear(C, C), asks

    def forward(self, x: Tensor) -> Tensor:
        heads = (3, HEADS, C // HEADS)
        q, k, v = self.qkv(x).unflatten(2, heads).permute(2, 0, 3, 1, 4).unbind(0)
        causal = self.asks is not never and not self.asks(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, asks: Callable[[Any], bool]) -> None:
        super().__init__()
        self.attn, self.norm = Attention(asks), nn.LayerNorm(C)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Model(nn.Module):
    def __init__(
        self,
        stem: Callable[[Any], bool] = never,
        attention: Callable[[Any], bool] = never,
        traced: float = 3.0,
    ) -> None:
        super().__init__()
        self.stem, self.scaled = nn.Linear(6, C), Scaled(stem, traced)
        self.blocks, self.head = nn.Sequential(Block(attention), Block(never)), nn.Linear(C, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.blocks(self.scaled(self.stem(x))).mean(1))}


def made(**asks: Any) -> tuple[Model, Tensor]:
    model = Model(**asks).double().eval()
    randomise(model, 3)
    return model, torch.randn(2, N, 6, dtype=torch.float64)


def test_symbolic_tracing_where_only_export_is_asked_for() -> None:
    model, x = made(stem=exporting)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.report.capture == "symbolic_trace"
    fast.r = 0
    assert torch.equal(fast(x)["logits"], model(x)["logits"])


def test_export_where_only_symbolic_tracing_is_asked_for() -> None:
    model, x = made(stem=symbolic)
    assert tome_fx.transform(model, 2, example_inputs=x).report.capture == "export"
    with pytest.raises(tome_fx.CaptureError, match="first in scaled"):
        tome_fx.transform(model, 2, example_inputs=x, capture="symbolic_trace")


def test_what_asks_stays_a_call_where_it_can() -> None:
    model, x = made(stem=traced)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.schedule == (2, 2)
    assert any("scaled stays a call" in note for note in fast.report.notes)
    fast.r = 0
    assert torch.equal(fast(x)["logits"], model(x)["logits"])


def test_attention_that_asks_stays_a_call_too() -> None:
    model, x = made(attention=traced)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.schedule == (2,)
    assert any("blocks.0.attn stays a call" in note for note in fast.report.notes)
    fast.r = 0
    assert torch.equal(fast(x)["logits"], model(x)["logits"])


def test_what_cannot_stay_a_call_is_refused_by_name() -> None:
    """The choice is made outside of the module that it changes."""

    class Outside(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.scaled(self.stem(x))
            x = self.blocks[1](self.blocks[0](x, None if traced(x) else x[:, :1]))
            return {"logits": self.head(x.mean(1))}

    class Masked(Block):
        def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
            return super().forward(x if more is None else x + more)

    model, x = made()
    model.__class__, model.blocks[0].__class__ = Outside, Masked
    before = world(model)
    with pytest.raises(tome_fx.CaptureError) as caught:
        tome_fx.transform(model, 2, example_inputs=x)
    text = str(caught.value)
    for part in ("result['logits']", "while it is captured", "first in blocks.0.", "check=False"):
        assert part in text
    assert world(model) == before


def test_it_can_be_left_out() -> None:
    model, x = made(attention=traced)
    fast = tome_fx.transform(model, 0, example_inputs=x, check=False)
    with torch.no_grad():
        assert distance(fast(x)["logits"], model(x)["logits"]) > 1e-3


def test_rounding_is_no_difference() -> None:
    model, x = made(stem=traced, traced=2.0 * (1 + 1e-12))
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.report.capture == "export"
    assert fast.report.notes == ()


def test_a_difference_of_a_narrow_model() -> None:
    """What is rounding in bfloat16 would be none in float64."""
    model, x = made(stem=traced, traced=2.0 * (1 + 1e-3))
    assert tome_fx.transform(model, 2, example_inputs=x).report.notes != ()
    narrow = tome_fx.transform(model.bfloat16(), 2, example_inputs=x.bfloat16())
    assert narrow.report.notes == ()


def test_another_mode_is_looked_at_when_it_is_captured() -> None:
    class Moody(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else x

    model, x = made()
    model.scaled = Moody(traced).eval()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert fast.report.notes == ()
    fast.train()
    assert any("scaled stays a call" in note for note in fast.report.notes)
    assert torch.equal(fast(x)["logits"], model.train()(x)["logits"])


def test_what_draws_in_training_cannot_be_compared() -> None:
    class Drawing(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            if not self.asks(x):
                torch.rand(1)  # so that what follows draws other numbers
            return F.dropout(x, 0.5, self.training)

    model, x = made()
    model.scaled = Drawing(traced)
    assert tome_fx.transform(model.train(), 2, example_inputs=x).report.notes == ()


class Averaged(nn.Module):
    """A batch norm in a module that stays a call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.mT).mT
        return x * 2.0 if float(x.detach().sum()) > 1e9 else x


class Counted(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mT).mT  # type: ignore[no-any-return]


NORMS = [
    lambda: Counted(nn.BatchNorm1d(C)),
    lambda: Counted(nn.InstanceNorm1d(C, track_running_stats=True)),
    Averaged,
]


@pytest.mark.parametrize("norm", NORMS)
def test_running_statistics_are_left_as_they_are(norm: Callable[[], nn.Module]) -> None:
    model, x = made()
    model.scaled = norm().double()  # type: ignore[assignment]
    before = world(model.train())
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)
    assert world(model) == before


def test_examples_that_the_model_writes_to() -> None:
    class Writing(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x.mul_(2.0))

    model, x = made()
    model.__class__, before = Writing, x.clone()
    assert tome_fx.transform(model, 2, example_inputs=x).report.notes == ()
    assert torch.equal(x, before)


class Told(Model):
    """Its result is made of the logits by ``tell``."""

    tell: Any

    def forward(self, x: Tensor) -> Any:
        return self.tell(super().forward(x)["logits"], traced(x))


def fourier(y: Tensor, traced: bool) -> Any:
    z = torch.fft.fft(y)
    return y + z.real, z * (3.0 if traced else 2.0)


def infinite(y: Tensor, traced: bool) -> Tensor:
    return y if traced else y.masked_fill(torch.arange(5) > 2, float("-inf"))


def turned(y: Tensor, traced: bool) -> Tensor:
    return F.normalize(-y if traced else y, dim=-1)


TOLD = {
    "turned": turned,
    "complex": fourier,
    "infinite": infinite,
    "dtype": lambda y, traced: y.float() if traced else y,
    "classes": lambda y, traced: (-y if traced else y).argmax(-1),
    "shape": lambda y, traced: y[:, :3] if traced else y,
    "number": lambda y, traced: (y, y) if traced else y,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tell", TOLD)
def test_what_can_be_different_in_a_result(tell: str, dtype: torch.dtype) -> None:
    if tell == "complex" and dtype is torch.bfloat16:
        return  # there is no such number
    model, x = made()
    model.__class__, model.tell = Told, TOLD[tell]
    if tell == "infinite" and dtype is torch.bfloat16:
        model.head.weight.data.mul_(1e-2)
    with pytest.raises(
        tome_fx.CaptureError, match=r"captured than when it is run: (result|it ret)"
    ):
        tome_fx.transform(model.to(dtype), 2, example_inputs=x.to(dtype), capture="export")


RIGHT = {
    "gradients": lambda y, traced: (y, y) if torch.is_grad_enabled() else y,
    "few turned": lambda y, traced: (y.repeat(20, 1) + 1e-16 * traced).argmax(-1),
}


@pytest.mark.parametrize("tell", RIGHT)
def test_what_is_no_difference(tell: str) -> None:
    model, x = made()
    model.__class__, model.tell = Told, RIGHT[tell]
    assert tome_fx.transform(model, 2, example_inputs=x).report.notes == ()


def test_a_model_that_does_not_run_is_told_of() -> None:
    class Unable(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            if not self.asks(x):
                raise RuntimeError("no kernel for this device")
            return x

    model, x = made()
    model.scaled = Unable(traced)
    with pytest.warns(tome_fx.ToMeWarning, match="no kernel for this device"):
        tome_fx.transform(model, 2, example_inputs=x)


def test_a_module_that_is_compiled_is_not_compiled_for_it() -> None:
    compiled = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        compiled.append(module)
        return module

    model, x = made()
    model.head = torch.compile(model.head, backend=backend)  # type: ignore[assignment]
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)
    assert compiled == []


def test_few_of_many_images_are_run() -> None:
    seen = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not traced(x):
                seen.append(x.shape[0])
            return x

    model, x = made()
    model.scaled = Counting()  # type: ignore[assignment]
    tome_fx.transform(model, 2, example_inputs=x.repeat(8, 1, 1))
    assert seen == [2]


def test_a_model_without_values_is_not_run() -> None:
    with torch.device("meta"):
        model = Model(attention=traced).eval()
    x = torch.zeros(2, N, 6, device="meta")
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)


def test_not_a_number_where_the_model_has_one_too() -> None:
    model, x = made()
    x[0] = float("nan")
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)
