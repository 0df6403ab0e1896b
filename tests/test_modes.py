"""`train()` and `eval()`, random layers, batch norm, casts, moves and hooks of a result."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Around, images, same, seeded, tiny

pytestmark = TINY

DOORS = ("export", "symbolic_trace")


def dropping() -> nn.Module:
    """A model in which everything that can drop does."""
    rates = dict.fromkeys(("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"), 0.2)
    return tiny(**rates, drop_path_rate=0.4)


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("capture", DOORS)
@pytest.mark.parametrize(("fused", "first"), [(True, False), (False, True)])
def test_an_unmerged_program_is_the_model_in_both_modes(
    capture: str, fused: bool, first: bool
) -> None:
    model, x = dropping(), images(4)
    for block in model.blocks:
        block.attn.fused_attn = fused
    fast = tome_fx.transform(model.train(first), 0, capture=capture)
    assert fast.training is first
    for training in (True, False, True, False):
        model.train(training)
        assert fast.train(training) is fast
        for seed in (1, 2):
            assert torch.equal(seeded(fast, x, seed=seed), seeded(model, x, seed=seed))
    assert all(module.training is False for module in fast.modules())


@pytest.mark.parametrize("capture", DOORS)
def test_layers_drop_in_training_only(capture: str) -> None:
    fast, x = tome_fx.transform(dropping(), 2, capture=capture), images(4)
    assert torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=2))
    fast.train()
    assert torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=1))
    assert not torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=2))
    fast.eval()
    assert torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=2))


def test_each_mode_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tome_fx import locating

    modes: list[bool] = []
    capture = locating.capture

    def counted(model: Any, *rest: Any, **options: Any) -> Any:
        modes.append(model.training)
        return capture(model, *rest, **options)

    monkeypatch.setattr(locating, "capture", counted)
    model = tiny()
    fast = tome_fx.transform(model, 2)
    fast.eval()
    assert modes == [False]
    for _ in range(2):
        fast.train()
        fast.r = 1
        fast.eval()
    assert modes == [False, True]
    assert model.training is False


def test_the_mode_of_the_source_and_of_the_result_are_apart() -> None:
    model = dropping().eval()
    fast = tome_fx.transform(model, 2)
    fast.train()
    assert not any(module.training for module in model.modules())
    model.train()
    fast.eval()
    assert all(module.training for module in model.modules())


def test_a_mode_that_cannot_be_captured_leaves_the_old_one() -> None:
    def forward(body: nn.Module, x: Tensor) -> Tensor:
        return body(x + 1 if body.training and x.sum() > 0 else x)

    model, x = Around(forward).eval(), images()
    fast = tome_fx.transform(model, 2, example_inputs=x)
    y = fast(x)
    with pytest.raises(tome_fx.CaptureError):
        fast.train()
    assert fast.training is False
    assert torch.equal(fast(x), y)
    fast.r = 1
    assert fast.schedule == (1, 1)


def test_a_transform_in_inference_mode_is_no_less() -> None:
    model, x = tiny(), images()
    with torch.inference_mode():
        fast = tome_fx.transform(model, 2, example_inputs=images())
    assert torch.equal(fast(x), tome_fx.transform(model, 2)(x))
    fast.train()
    fast(x).sum().backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())


# --- a convolutional stem with batch norm --------------------------------------------------------


class Hybrid(nn.Module):
    """Convolution, batch norm, ReLU, and a tiny model on what comes out."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = tiny(in_chans=8, img_size=24, patch_size=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("capture", DOORS)
def test_batch_norm(capture: str) -> None:
    model, x = Hybrid().train(), images(4)
    twin = copy.deepcopy(model)
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=capture)
    assert int(model.stem[1].num_batches_tracked) == 0  # a capture is no step
    for seed in (1, 2):
        batch = images(4, seed=seed)
        assert torch.equal(fast(batch), twin(batch))
    for (name, ours), theirs in zip(fast.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours is model.get_buffer(name)
    fast.eval()
    assert torch.allclose(fast(x), twin.eval()(x), rtol=1e-5, atol=1e-6)
    assert int(model.stem[1].num_batches_tracked) == 2
    merged = tome_fx.transform(model, 2, example_inputs=x, capture=capture)
    assert merged.schedule == (2, 2)
    assert int(model.stem[1].num_batches_tracked) == 2


# --- dtypes and devices --------------------------------------------------------------------------


def with_constants(body: nn.Module, x: Tensor) -> Tensor:
    """Constants made in forward, in the model's dtype and in one of their own."""
    y = body.forward_features(x)
    n = y.shape[1]
    y = y * torch.linspace(0.5, 1.5, n)[:, None].to(y) + torch.tensor(0.25)
    y = y + torch.zeros_like(y) + torch.ones(1, n, 1)  # float32: a half becomes a float
    return body.head(y.mean(1).to(body.head.weight.dtype))


CASTS = [(torch.bfloat16, False), (torch.float64, True), (torch.float16, True)]


@pytest.mark.few(1)
@pytest.mark.parametrize(("dtype", "constants"), CASTS, ids=str)
def test_a_cast_of_the_result(dtype: torch.dtype, constants: bool) -> None:
    model, x = Around(with_constants) if constants else tiny(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    shared = {id(parameter) for parameter in model.parameters()}
    before, narrow = model(x), copy.deepcopy(model).to(dtype)
    assert {id(parameter) for parameter in fast.float().parameters()} == shared
    assert fast.to(dtype) is fast
    assert not shared & {id(parameter) for parameter in fast.parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model(x), before)
    assert torch.equal(fast(x.to(dtype)), narrow(x.to(dtype)))
    assert fast(x.to(dtype)).dtype == dtype
    fast.r = 2
    merged = tome_fx.transform(narrow, 2, example_inputs=x.to(dtype))
    assert torch.equal(fast(x.to(dtype)), merged(x.to(dtype)))
    fast.float()
    assert fast(x).dtype == torch.float32
    fast.train()
    assert fast(x).dtype == torch.float32


def test_casts_by_name() -> None:
    fast = tome_fx.transform(tiny(depth=1), 2)
    for name in ("half", "double", "bfloat16", "float"):
        x = getattr(images(), name)()
        assert getattr(fast, name)()(x).dtype == x.dtype
        assert fast.schedule == (2,)


def test_no_memory_for_a_model_without_any() -> None:
    with torch.device("meta"):
        model = tiny()
    fast = tome_fx.transform(model, 2)
    tensors = [*fast.parameters(), *fast.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert fast.schedule == (2, 2)
    assert fast(images().to("meta")).is_meta
    fast.train()
    assert fast(images().to("meta")).is_meta


@pytest.mark.few(1)
@pytest.mark.parametrize("assign", [True, False])
def test_a_model_without_memory_gets_its_weights_later(assign: bool) -> None:
    real, x = tiny(), images()
    with torch.device("meta"):
        model = tiny()
    fast = tome_fx.transform(model, 2)
    if not assign:
        fast.to_empty(device="cpu")
    fast.load_state_dict(real.state_dict(), assign=assign)
    assert torch.equal(fast(x), tome_fx.transform(real, 2)(x))
    fast.train()
    fast.r = 1
    assert torch.equal(fast.eval()(x), tome_fx.transform(real, 1)(x))


def test_no_second_copy_of_the_weights() -> None:
    model = tiny()
    fast = tome_fx.transform(model, 2)
    fast.train()
    pointers = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    reached: list[Any] = [fast.__dict__]
    seen: set[int] = set()
    while reached:
        thing = reached.pop()
        if id(thing) in seen or isinstance(thing, torch.fx.Graph):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor) and thing.numel() > 1 and thing.device.type == "cpu":
            example = thing.shape[-2:] == (48, 48)
            assert example or thing.untyped_storage().data_ptr() in pointers, thing.shape
        elif isinstance(thing, dict):
            reached.extend(thing.values())
        elif isinstance(thing, (list, tuple)):
            reached.extend(thing)
        elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("tome_fx"):
            reached.append(vars(thing))


# --- hooks ---------------------------------------------------------------------------------------


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_that_vanish_are_named(register: str) -> None:
    model = tiny()
    getattr(model.blocks[1].mlp, register)(lambda *_: None)
    getattr(model, register)(lambda *_: None)
    with pytest.warns(tome_fx.ToMeWarning, match=r"blocks\.1\.mlp") as caught:
        tome_fx.transform(model, 2)
    assert "VisionTransformer" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_librarys_own_hooks_are_not_named() -> None:
    """transformers hooks its layers at the first call that asks for hidden states."""
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    model, x = ViTModel(config).eval(), images(2, 32)
    told = model(x, output_hidden_states=True).hidden_states
    given = {"pixel_values": x, "output_hidden_states": True}
    fast = tome_fx.transform(model, 0, example_kwargs=given)
    assert same(fast(**given).hidden_states, told)


def test_hooks_on_the_result_work() -> None:
    fast, calls = tome_fx.transform(tiny(), 2), []
    fast.register_forward_hook(lambda *_: calls.append(1))
    fast.r = 1
    fast.train()
    fast(images())
    assert calls == [1]
