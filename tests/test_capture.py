"""The ways in: torch.export, torch.fx.symbolic_trace, a GraphModule, an ExportedProgram."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import SIZE, Around, images, parametrized, same, tiny

pytestmark = TINY

BOTH = ("export", "symbolic_trace")


def unfused(**options: Any) -> nn.Module:
    model = tiny(**options)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIZE, 16, 2, 2, 32, 64, num_classes=10).eval()


class Tables(nn.Module):
    """Tensors that are plain attributes, which no `state_dict` knows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.body.gain = torch.tensor(2.0)
        self.table = torch.arange(10.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.body.gain + self.table


TRACEABLE: dict[str, Callable[[], nn.Module]] = {
    "plain": tiny,
    "eager attention": unfused,
    "registers": lambda: tiny(reg_tokens=3, init_values=0.3, qk_norm=True, no_embed_class=True),
    "mean": lambda: tiny(class_token=False, global_pool="avg"),
    "dense": lambda: tiny(global_pool="", num_classes=0),
    "map": lambda: tiny(class_token=False, global_pool="map"),
    "distilled": lambda: tiny("deit_tiny_distilled_patch16_224"),
    "parametrized": parametrized,
    "plain tensors": Tables,
    "torchvision": torchvision_vit,
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", TRACEABLE)
def test_both_ways_give_the_same(name: str) -> None:
    model, x = TRACEABLE[name]().eval(), images(3)
    options = {"example_inputs": images()} if name == "plain tensors" else {}
    found = {way: tome_fx.transform(model, 2, capture=way, **options) for way in BOTH}
    for way, fast in found.items():
        assert fast.report.capture == way
    one, two = found.values()
    assert torch.equal(one(x), two(x))
    assert torch.equal(one.token_map(x), two.token_map(x))
    assert one.schedule == two.schedule == (2, 2)
    for ours, theirs in zip(one.report.blocks, two.report.blocks, strict=True):
        assert ours == theirs
    for fast in found.values():
        assert list(fast.state_dict()) == list(model.state_dict())
        fast.r = 0
        assert same(fast(x), model(x))


# --- auto ----------------------------------------------------------------------------------------


def test_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny(), images()
    first = tome_fx.transform(model, 2)
    wanted = first(x)
    assert first.report.capture == "export"

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("export is out of order\n\nsee the manual")

    monkeypatch.setattr(torch.export, "export", refuse)
    fast = tome_fx.transform(model, 2)
    assert fast.report.capture == "symbolic_trace"
    assert torch.equal(fast(x), wanted)
    with pytest.raises(tome_fx.CaptureError, match="export is out of order"):
        tome_fx.transform(model, 2, capture="export")


def test_auto_tells_what_export_said_where_both_fail() -> None:
    def forward(body: nn.Module, x: Tensor) -> Tensor:
        return body(x) if x.mean() < 9 else x

    with pytest.raises(tome_fx.CaptureError, match=r"torch\.export"):
        tome_fx.transform(Around(forward), 2, example_inputs=images())


# --- graphs and programs -------------------------------------------------------------------------


def test_a_graph_module() -> None:
    model, x = tiny(), images()
    traced = torch.fx.symbolic_trace(model)
    fast = tome_fx.transform(traced, 2, example_inputs=x)
    assert torch.equal(fast(x), tome_fx.transform(model, 2)(x))
    assert list(fast.state_dict()) == list(traced.state_dict()) == list(model.state_dict())
    assert fast.head.weight is model.head.weight
    assert fast(images(5)).shape == (5, 10)
    fast.train()
    fast.r = 1
    assert fast.schedule == (1, 1)


def exported(model: nn.Module, dynamic: bool = True) -> torch.export.ExportedProgram:
    shapes = {0: torch.export.Dim("batch", min=1)} if dynamic else None
    return torch.export.export(model, (images(),), dynamic_shapes=(shapes,), strict=False)


def test_an_exported_program() -> None:
    model = tiny()
    program = exported(model)
    fast = tome_fx.transform(program, 2)
    again = torch.export.load(_saved(program))
    assert fast.report.blocks == tome_fx.explain(again, 2).blocks
    wanted = tome_fx.transform(model, 2)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert fast.head.weight is model.head.weight
    for batch in (1, 2, 3, 5):
        assert torch.equal(fast(images(batch)), wanted(images(batch)))
    fast.r = wanted.r = [1, 3]
    assert torch.equal(fast(images()), wanted(images()))
    with pytest.raises(tome_fx.CaptureError, match="holds one mode only"):
        fast.train()
    assert not fast.training
    assert torch.equal(fast(images()), wanted(images()))
    with pytest.raises(tome_fx.ShapeError, match=f"{SIZE}, {SIZE}"):
        fast(images(size=64))


def _saved(program: torch.export.ExportedProgram) -> io.BytesIO:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file


def test_an_exported_program_of_one_batch_size() -> None:
    model = tiny()
    fast = tome_fx.transform(exported(model, dynamic=False), 2)
    assert torch.equal(fast(images()), tome_fx.transform(model, 2)(images()))
    assert any("batch" in note and "2" in note for note in fast.report.notes)
    with pytest.raises(tome_fx.ShapeError, match="batch"):
        fast(images(3))


def test_the_module_of_an_exported_program() -> None:
    model, x = tiny(), images()
    fast = tome_fx.transform(exported(model).module(), 2, example_inputs=x)
    assert torch.equal(fast(x), tome_fx.transform(model, 2)(x))


# --- batches and sizes ---------------------------------------------------------------------------


@pytest.mark.few(2)
@pytest.mark.parametrize("capture", BOTH)
@pytest.mark.parametrize("example", [1, 2, 7])
def test_the_batch_stays_free(capture: str, example: int) -> None:
    model = tiny()
    fast = tome_fx.transform(model, 2, example_inputs=images(example), capture=capture)
    wanted = tome_fx.transform(model, 2)
    assert fast.report.notes == ()
    for batch in (1, 2, 3, 5):
        x = images(batch)
        assert torch.equal(fast(x), wanted(x))
        assert fast.token_map(x).shape == (2, batch, 9)


@pytest.mark.parametrize("size", [32, (32, 64), 80])
def test_the_size_is_inferred(size: Any) -> None:
    model = tiny(img_size=size)
    high, wide = size if isinstance(size, tuple) else (size, size)
    fast = tome_fx.transform(model, 1)
    assert fast.report.blocks[0].tokens_in == 1 + high * wide // 256
    assert fast(torch.randn(3, 3, high, wide)).shape == (3, 10)


def test_channels_are_inferred() -> None:
    model = tiny(in_chans=1)
    x = images(channels=1)
    fast = tome_fx.transform(model, 2)
    assert fast.schedule == (2, 2)
    fast.r = 0
    assert torch.equal(fast(x), model(x))


def test_inputs_of_hugging_face_and_torchvision_are_inferred() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=64, image_size=SIZE, num_channels=1)
    model, x = ViTForImageClassification(config).eval(), images(3, channels=1)
    fast = tome_fx.transform(model, 2)
    assert fast.report.blocks[0].tokens_in == 10
    assert type(fast(pixel_values=x)) is type(model(pixel_values=x))
    assert fast.config.hidden_size == 32
    fast.r = 0
    assert torch.equal(fast(x).logits, model(x).logits)
    fast = tome_fx.transform(torchvision_vit(), 2)
    assert fast.report.blocks[0].tokens_in == 10


class Queries(nn.Module):
    """Detection by words: so many texts for each image, laid out by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.words = tiny(global_pool="", num_classes=0), nn.Embedding(9, 32)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        each = words.shape[0] // image.shape[0]
        texts = self.words(words).mean(1).reshape(image.shape[0], each, 32)
        return self.body(image) @ texts.transpose(1, 2)


def test_a_fixed_number_over_the_batch_fixes_the_batch() -> None:
    model, x, words = Queries().eval(), images(), torch.arange(12).reshape(4, 3) % 9
    fast = tome_fx.transform(model, 2, example_inputs=(x, words))
    assert fast.schedule == (2, 2)
    assert "the model's own code fixes the batch at 2" in str(fast.report)
    fast.r = 0
    assert torch.equal(fast(x, words), model(x, words))
    with pytest.raises(tome_fx.ToMeError, match="batch of 3"):
        fast(images(3), words)


class Checking(nn.Module):
    """Checks of values, by which nothing is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor) -> Tensor:
        torch._check_tensor_all(torch.tensor([3, 3]).prod() == 9, lambda: "not the grid")
        torch._check_tensor_all(x.isfinite(), lambda: "not finite")
        return self.body(x)  # type: ignore[no-any-return]


def test_checks_of_values_read_no_numbers() -> None:
    model, x = Checking(), images()
    fast = tome_fx.transform(model, 3, example_inputs=x, capture="export")
    assert fast.schedule == (3, 3)
    assert not any("aten.item" in str(node.target) for node in fast.graph.nodes)
    assert same(fast(x), tome_fx.transform(model.body, 3, example_inputs=x)(x))


class Counting(Checking):
    """A shape that follows a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.ones(int(x.sum().item()) ** 0).sum()


def test_numbers_that_make_shapes_are_refused() -> None:
    with pytest.raises(tome_fx.CaptureError):
        tome_fx.transform(Counting(), 3, example_inputs=images(), capture="export")


class Finding(Checking):
    """Places that fulfil a condition are looked up by their numbers."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y[torch.where(y > 1.0)] = 1.0
        return y  # type: ignore[no-any-return]


def test_shapes_that_follow_from_values_are_refused_with_the_line() -> None:
    with pytest.raises(
        tome_fx.CaptureError, match=r"shape that follows from values .*torch\.where"
    ):
        tome_fx.transform(Finding(), 3, example_inputs=images(), capture="export")
