"""The result of a transform as a module: its state, attributes, gradients and `r`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Around, Stateful, images, parametrized, tiny

pytestmark = TINY


def ids(tensors: Any) -> list[int]:
    return [id(tensor) for tensor in tensors]


# --- state ---------------------------------------------------------------------------------------


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": tiny,
    "registers": lambda: tiny(reg_tokens=2, init_values=0.1, qk_norm=True),
    "distilled": lambda: VisionTransformerDistilled(48, embed_dim=32, depth=2, num_heads=2),
    "stateful": Stateful,
    "parametrized": parametrized,
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", MODELS)
def test_state(name: str) -> None:
    model = MODELS[name]().eval()
    fast = tome_fx.transform(model, 2, example_inputs=images())
    for named in ("named_parameters", "named_buffers"):
        for once in (True, False):
            ours = dict(getattr(fast, named)(remove_duplicate=once))
            theirs = dict(getattr(model, named)(remove_duplicate=once))
            assert list(ours) == list(theirs)
            assert all(ours[key] is theirs[key] for key in theirs)
    state, own = model.state_dict(), fast.state_dict()
    assert list(own) == list(state)
    assert all(own[key].data_ptr() == state[key].data_ptr() for key in state)
    assert all(p.requires_grad == q.requires_grad
               for p, q in zip(fast.parameters(), model.parameters(), strict=True))  # fmt: skip
    fast.load_state_dict(state, strict=True)
    model.load_state_dict(own, strict=True)
    fast.r = 1
    fast.train()
    assert list(fast.state_dict()) == list(state)


def test_weights_are_shared_with_the_source() -> None:
    model, other, x = tiny(), tiny(), images()
    fast = tome_fx.transform(model, 0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    model.load_state_dict(other.state_dict())
    assert torch.equal(fast(x), other(x))


def test_casts_of_a_result_leave_the_gradients_of_its_model() -> None:
    model, x = tiny(), images()
    model(x).square().sum().backward()
    held = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    fast = tome_fx.transform(model, 2)
    for cast in (fast.bfloat16, fast.double, lambda: fast.to("meta")):
        cast()
        assert all(p.grad.dtype == p.dtype for p in fast.parameters())
        for name, p in model.named_parameters():
            own, before = held[name]
            assert p.grad is own
            assert torch.equal(own, before)


def test_weights_loaded_by_assignment() -> None:
    model, x = tiny(), images()
    fast = tome_fx.transform(tiny(), 2)
    fast.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()}, assign=True)
    model.load_state_dict(fast.state_dict())
    for r in (2, 1):
        fast.r = r
        assert torch.equal(fast(x), tome_fx.transform(model, r)(x))
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))


ATTRIBUTES = (
    "pretrained_cfg",
    "default_cfg",
    "num_classes",
    "embed_dim",
    "num_features",
    "head_hidden_size",
    "global_pool",
    "num_prefix_tokens",
    "num_reg_tokens",
    "has_class_token",
    "no_embed_class",
    "grad_checkpointing",
)


def test_attributes() -> None:
    model = tiny(reg_tokens=2)
    fast = tome_fx.transform(model, 2)
    for name in ATTRIBUTES:
        assert getattr(fast, name) == getattr(model, name), name
    assert fast.head.weight is model.head.weight
    assert fast.patch_embed.proj.weight is model.patch_embed.proj.weight
    assert fast.training is False
    assert (fast.r, fast.schedule) == (2, (2, 2))


def test_numbers_of_parts() -> None:
    """Who has a part of a model asks that for its patches and heads."""
    model = tiny()
    fast = tome_fx.transform(model, 2)
    for one in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert one.patch_embed.grid_size == model.patch_embed.grid_size
        assert one.blocks[1].attn.num_heads == model.blocks[1].attn.num_heads
        assert one.blocks[1].attn.scale == model.blocks[1].attn.scale


def test_numbers_that_the_program_does_not_look_at() -> None:
    fast = tome_fx.transform(tiny(), 2)
    fast.blocks[0].attn.fused_attn = fast.blocks[0].attn.fused_attn  # what it computes with
    with pytest.raises(tome_fx.ConfigError, match=r"scale=1.0 would change nothing.*scale=0\.\d+"):
        fast.blocks[0].attn.scale = 1.0
    with pytest.warns(tome_fx.ToMeWarning, match=r"global_pool='avg' changes nothing that is comp"):
        fast.global_pool = "avg"
    fast.note, fast.blocks[0].note = "whose own", "it is"


def test_tensors_that_the_program_does_not_look_at() -> None:
    """A plain attribute, neither parameter nor buffer, is what it was."""

    def forward(body: nn.Module, x: Tensor) -> Tensor:
        made: Tensor = body(x * body.blocks[0].attn.tint)
        return made

    body = tiny()
    body.blocks[0].attn.tint = torch.ones(3, 1, 1)
    model = Around(forward, body)
    model.tint = torch.ones(3)
    fast = tome_fx.transform(model.eval(), 2)
    with pytest.raises(tome_fx.ConfigError, match=r"tint is a plain attribute.*transform that"):
        fast.body.blocks[0].attn.tint = torch.zeros(3, 1, 1)
    with pytest.warns(tome_fx.ToMeWarning, match=r"tint is a plain attribute"):
        fast.tint = torch.zeros(3)
    fast.mark = fast.body.blocks[0].attn.mark = torch.zeros(3)  # the model has none


def test_names_that_a_result_has_itself() -> None:
    model = tiny()
    model.r, model.schedule, model.unknown = 5, "cosine", float("nan")
    fast = tome_fx.transform(model, 2)
    fast.r = 1
    fast.unknown = float("nan")
    assert fast.schedule == (1, 1)


def test_the_program_is_readable() -> None:
    fast = tome_fx.transform(tiny(), 2)
    for name in ("match", "merge", "scaled_dot_product_attention"):
        assert name in fast.code
    fast.graph.lint()


# --- gradients -----------------------------------------------------------------------------------


def test_gradients_reach_every_parameter() -> None:
    model, x = tiny(init_values=0.5, reg_tokens=1), images().requires_grad_()
    fast = tome_fx.transform(model, 2)
    fast(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.any() for name, p in model.named_parameters() if "attn.qkv.bias" not in name)
    assert x.grad is not None
    assert x.grad.any()


def test_gradients_of_an_unmerged_program_are_the_models() -> None:
    x = images()
    model, fast = tiny(), tome_fx.transform(tiny(), 0)
    for one in (model, fast):
        one(x).square().sum().backward()
    for ours, theirs in zip(fast.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


# --- r -------------------------------------------------------------------------------------------


def test_r_plans_anew_without_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny(depth=3), images()
    fast = tome_fx.transform(model, 2)
    wanted = {r: tome_fx.transform(model, r) for r in (0, 1, 3)}
    before = ids(fast.parameters())

    def no_capture(*_: Any) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr("tome_fx.locating.capture", no_capture)
    for r in (1, 0, [1, 2], (2, -1.0), 0.25, 3):
        fast.r = r
        assert fast.r == r
        assert fast.report.r == r
    assert fast.schedule == wanted[3].schedule
    assert ids(fast.parameters()) == before
    for r, other in wanted.items():
        fast.r = r
        assert torch.equal(fast(x), other(x))
        assert fast.report == other.report
        assert torch.equal(fast.token_map(x), other.token_map(x))


def test_r_holds_in_the_other_mode_too() -> None:
    fast = tome_fx.transform(tiny(), 2)
    fast.train()
    fast.r = 1
    assert fast.eval().schedule == (1, 1)
    fast.r = [3, 0]
    assert fast.train().schedule == (3, 0)
    assert fast.report.schedule == (3, 0)


@pytest.mark.parametrize("strict", [False, True])
def test_a_bad_r_leaves_the_old_one(strict: bool) -> None:
    x, fast = images(), tome_fx.transform(tiny(), 2, strict=strict)
    code, y, report = fast.code, fast(x), fast.report
    for r in (-1, "2", None, [1, 1, 1], float("nan"), *([5] if strict else [])):
        with pytest.raises(tome_fx.ConfigError):
            fast.r = r
        assert (fast.r, fast.code, fast.report) == (2, code, report)
        assert torch.equal(fast(x), y)


def test_a_list_as_r_is_a_copy() -> None:
    mine = [2, 1]
    fast = tome_fx.transform(tiny(), mine)
    mine[0] = 4
    assert fast.train().schedule == (2, 1)
    fast.r = mine
    mine[0] = -1
    assert fast.eval().schedule == (4, 1)


@pytest.mark.parametrize(
    "copier", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_an_entry_of_r_alone_is_not_changed(copier: Callable[[Any], Any]) -> None:
    fast = copier(tome_fx.transform(tiny(), [2, 1]))
    before = fast.r
    for change in (
        lambda r: r.__setitem__(0, 0),
        lambda r: r.__iadd__([1]),
        lambda r: r.append(1),
        lambda r: r.sort(),
        lambda r: r.pop(),
    ):
        with pytest.raises(tome_fx.ConfigError, match=r"fast\.r = \["):
            change(fast.r)
    assert (fast.r, fast.report.r, fast.train().schedule) == ([2, 1], [2, 1], (2, 1))
    fast.r = [*before[:1], 0]
    assert (fast.r, fast.schedule) == ([2, 0], (2, 0))


def test_a_linear_without_bias_is_shown() -> None:
    model = tiny("eva02_tiny_patch14_224", img_size=56)
    fast = tome_fx.transform(model, 2, example_inputs=images(size=56))
    assert "bias=False" in repr(fast)
    assert fast.state_dict().keys() == model.state_dict().keys()
