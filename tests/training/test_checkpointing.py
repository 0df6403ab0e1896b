"""Gradient checkpointing: where a model asks for it, the blocks of the result are checkpointed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTForImageClassification

import tome_fx
from tests.laws.common import TINY
from tests.laws.test_l5_purity import in_threads
from tests.tiny import Around, images, seeded, tiny

pytestmark = [
    TINY,
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    # transformers renames the switch; both names are tested where it has both.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning"),
]

DOORS = ("export", "symbolic_trace")
RATES = {"drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.4}


def hugging_face() -> nn.Module:
    config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
                       intermediate_size=64, image_size=48, patch_size=16)  # fmt: skip
    torch.manual_seed(0)
    return ViTForImageClassification(config)


def segments(fast: Any) -> int:
    return sum(node.target is checkpoint for node in fast.graph.nodes)


@contextmanager
def kept() -> Iterator[list[int]]:
    """The bytes that autograd keeps for backward."""
    total = [0]

    def pack(x: Tensor) -> Tensor:
        total[0] += 0 if isinstance(x, nn.Parameter) else x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield total


def step(program: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients and the bytes kept, from one random state."""
    program.zero_grad()
    with kept() as total:
        y = seeded(program, x)
        loss = (y if isinstance(y, Tensor) else y.logits).square().sum()
    loss.backward()
    grads = {n: p.grad.clone() for n, p in program.named_parameters() if p.grad is not None}
    return loss.detach(), grads, total[0]


def assert_equal(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours[0], theirs[0])
    assert list(ours[1]) == list(theirs[1])
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.few(1)
@pytest.mark.parametrize("capture", DOORS)
@pytest.mark.parametrize("r", [0, 2])
def test_timm(capture: str, r: int) -> None:
    model, x = tiny(depth=3, **RATES).train(), images(4)
    plain = step(tome_fx.transform(model, r, capture=capture), x)
    model.set_grad_checkpointing()
    fast = tome_fx.transform(model, r, capture=capture)
    assert segments(fast) == 3
    assert "gradients are checkpointed in 3 segments" in str(fast.report)
    found = step(fast, x)
    assert_equal(found, plain)
    assert found[2] < plain[2] / 3  # what it is for
    assert list(fast.state_dict()) == list(model.state_dict())


def test_transformers() -> None:
    model, x = hugging_face().train(), images(4)
    plain = step(tome_fx.transform(model, 2), x)
    model.gradient_checkpointing_enable()
    fast = tome_fx.transform(model, 2)
    assert segments(fast) == 3
    found = step(fast, x)
    assert_equal(found, plain)
    assert found[2] < plain[2] / 3


@pytest.mark.few(2)
@pytest.mark.parametrize("capture", DOORS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_call_in_forward(capture: str, reentrant: bool, training: bool) -> None:
    """The reentrant kind hides its gradients from a trace: none may be lost."""

    def forward(body: nn.Module, x: Tensor) -> Tensor:
        x = body.pos_embed[:, 1:] + body.patch_embed(x)
        for block in body.blocks:
            x = checkpoint(block, x, use_reentrant=reentrant)
        return body.head(body.norm(x).mean(1))

    def without(body: nn.Module, x: Tensor) -> Tensor:
        x = body.pos_embed[:, 1:] + body.patch_embed(x)
        return body.head(body.norm(body.blocks(x)).mean(1))

    x = images(4)
    model, plain = (Around(f).train(training) for f in (forward, without))
    fast = tome_fx.transform(model, 2, example_inputs=x, capture=capture)
    assert segments(fast) == (2 if training else 0)
    assert fast.schedule == (2, 2)
    expected = tome_fx.transform(plain, 2, example_inputs=x, capture=capture)
    assert_equal(step(fast, x), step(expected, x))


def test_in_training_alone() -> None:
    model = tiny()
    model.set_grad_checkpointing()
    fast = tome_fx.transform(model, 2)
    assert segments(fast) == 0
    fast.train()
    assert segments(fast) == 2
    fast.r = 1
    assert segments(fast) == 2
    assert fast.token_map(images()).shape == (2, 2, 9)
    fast.eval()
    assert segments(fast) == 0
    assert not [name for name, _ in fast.named_modules() if name.startswith("_segment")]


@pytest.mark.few(1)
@pytest.mark.parametrize("training", [False, True])
def test_the_result_has_the_switches_of_timm(training: bool) -> None:
    model = tiny().train(training)
    fast = tome_fx.transform(model, 2)
    fast.set_grad_checkpointing()
    assert fast.grad_checkpointing is True
    assert model.grad_checkpointing is False
    for other in (fast, copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert segments(other.train()) == 2
    fast.set_grad_checkpointing(False)
    assert segments(fast) == 0
    assert not [name for name, _ in fast.named_modules() if name.startswith("_segment")]


def test_the_result_has_the_switches_of_transformers() -> None:
    fast = tome_fx.transform(hugging_face().train(), 2)
    with pytest.raises(AttributeError, match="set_grad_checkpointing"):
        fast.set_grad_checkpointing()
    fast.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    assert segments(fast) == 3
    fast.gradient_checkpointing_disable()
    assert segments(fast) == 0
    if hasattr(hugging_face(), "activation_checkpointing_enable"):
        fast.activation_checkpointing_enable()
        assert segments(fast) == 3
        fast.activation_checkpointing_disable()
        assert segments(fast) == 0


def test_a_model_without_a_switch_says_what_to_do() -> None:
    fast = tome_fx.transform(Around(lambda body, x: body(x)), 2, example_inputs=images())
    with pytest.raises(AttributeError, match=r"Use torch\.utils\.checkpoint in the forward"):
        fast.set_grad_checkpointing()


def test_batches_are_counted_once() -> None:
    """What a batch norm counts must not be run again."""

    def forward(body: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(body, x, use_reentrant=False)

    body = tiny()
    body.norm_pre = Across()
    model, x = Around(forward, body).train(), images(4)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    fast(x).sum().backward()
    assert int(body.norm_pre.norm.num_batches_tracked) == 1
    assert segments(fast) == 1


class Across(nn.Module):
    """Batch norm over channels of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def test_with_autocast_and_compile_free_calls() -> None:
    model, x = tiny(depth=3).train(), images(4)
    plain = tome_fx.transform(model, 2)
    model.set_grad_checkpointing()
    fast = tome_fx.transform(model, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(step(fast, x), step(plain, x))
    weights = {name: value.detach() + 0.1 for name, value in fast.named_parameters()}
    ours = torch.func.functional_call(fast, weights, (x,))
    assert torch.equal(ours, torch.func.functional_call(plain, weights, (x,)))


@pytest.mark.compiler
def test_it_compiles() -> None:
    model, x = tiny().train(), images(4)
    model.set_grad_checkpointing()
    fast = tome_fx.transform(model, 2)
    expected = step(fast, x)
    loss, grads, _ = step(torch.compile(fast, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(loss, expected[0])
    assert len(grads) == len(expected[1])


def test_other_threads_checkpoint_as_before() -> None:
    """A capture must not touch the checkpoints of a training that runs beside it."""

    def train() -> list[Tensor]:
        found = []
        for i in range(300):
            x = torch.full((3,), 2.0, requires_grad=True)
            checkpoint(lambda x: (x * 3).sin(), x, use_reentrant=i % 2 == 0).sum().backward()
            found.append(x.grad)
        return found

    def build() -> int:
        model = tiny().train()
        model.set_grad_checkpointing()
        return segments(tome_fx.transform(model, 2))

    expected = train()[0]
    gradients, one = in_threads([train, build])
    assert all(torch.equal(gradient, expected) for gradient in gradients)
    assert one == 2
