"""Models with nothing to merge, or with too little for it to pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

import tome_fx
from tests.test_errors import failure
from tests.tiny import SIZE, Around, images, tiny


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("r", "options", "words"),
    [
        (2, {"protect": 10}, ("no attention has two tokens", "protect=(10, 0)", "fewer tokens")),
        (0.01, {}, ("r=0.01 takes a token at no layer", "A larger r")),
        (0.01, {"every": 2, "align": 8}, ("r=0.01, every=2, align=8 takes a token at no layer",)),
    ],
)
def test_that_nothing_merges_is_warned_of(r: Any, options: Any, words: tuple[str, ...]) -> None:
    model, x = tiny(), images()
    with pytest.warns(tome_fx.ToMeWarning, match="Nothing merges") as told:
        fast = tome_fx.transform(model, r, **options)
    for word in words:
        assert word in str(told[0].message)
    assert str(told[0].message) in str(fast.report)
    assert not any(fast.schedule)
    assert torch.equal(fast(x), model(x))


@pytest.mark.few(2)
@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 4}, {"class_token": False}], ids=str)
def test_one_token(prefix: dict[str, Any]) -> None:
    pool = {"global_pool": "avg"} if "class_token" in prefix else {}
    model, x = tiny(img_size=16, **prefix, **pool), images(size=16)
    with pytest.warns(tome_fx.ToMeWarning, match=r"two tokens that could\. Class"):
        fast = tome_fx.transform(model, 4)
    assert sum(fast.schedule) == 0
    assert torch.equal(fast(x), model(x))


@pytest.mark.few(2)
@pytest.mark.parametrize("protect", [8, 9, 100, (4, 5), (0, 9), (100, 100)], ids=str)
def test_only_protected_tokens(protect: Any) -> None:
    model, x = tiny(), images()
    with pytest.warns(tome_fx.ToMeWarning, match="two tokens that could with protect="):
        fast = tome_fx.transform(model, 4, protect=protect)
    assert sum(fast.schedule) == 0
    assert torch.equal(fast(x), model(x))


WITHOUT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ResNet": (lambda: timm.create_model("resnet18", num_classes=10), "conv2d"),
    "ConvNeXt": (lambda: timm.create_model("convnext_atto", num_classes=10), "conv2d"),
    "MLP-Mixer": (
        lambda: MlpMixer(num_blocks=2, embed_dim=32, img_size=SIZE + 16, num_classes=10),
        "linear",
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", WITHOUT)
def test_no_attention(name: str) -> None:
    make, found = WITHOUT[name]
    model, example = make().eval(), images(size=SIZE + 16)
    text = failure(model, tome_fx.NoAttentionFoundError, example_inputs=example)
    assert "No self-attention" in text
    assert found in text


def test_attention_without_a_residual_is_named() -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    body = nn.ModuleDict({"mix": attention})
    model = Around(lambda body, x: body["mix"](x, x, x)[0], body).eval()
    text = failure(model, tome_fx.NoAttentionFoundError, example_inputs=torch.randn(2, 9, 16))
    assert "no residual add" in text


def test_of_the_reasons_the_commonest_come_first() -> None:
    """Attention over what earlier layers made is nearer the input than it, and never the same."""

    def forward(body: Any, x: Tensor) -> Tensor:
        made = [x]
        for _ in range(4):
            history = torch.stack(made, 2)
            x = ((history @ x.unsqueeze(-1)).softmax(-2) * history).sum(2)
            made.append(body["mix"](x, x, x)[0])
        return made[-1]

    body = nn.ModuleDict({"mix": nn.MultiheadAttention(16, 2, batch_first=True)})
    given = torch.randn(2, 9, 16)
    text = failure(
        Around(forward, body).eval(), tome_fx.NoAttentionFoundError, example_inputs=given
    )
    reasons = text.partition("was found. ")[2]
    assert "keys are not tokens" in reasons
    assert reasons.index("and 3 more: no residual add") < reasons.index("keys are not tokens")


@pytest.mark.cost
def test_merging_that_costs_more_than_it_saves() -> None:
    model, x = tiny(img_size=224, embed_dim=8, num_heads=1, mlp_ratio=1.0), images(size=224)
    with pytest.warns(tome_fx.ToMeWarning, match="costs more than it saves") as caught:
        skipped = tome_fx.transform(model, 1)
    assert skipped.r == 1
    assert sum(skipped.schedule) == 0
    assert torch.equal(skipped(x), model(x))
    assert "not applied" in str(skipped.report)
    fast = tome_fx.transform(model, 1, min_ratio=0)
    assert fast.schedule == (1, 1)
    report = fast.report
    text = str(caught[0].message)
    assert text == skipped.report.skipped
    assert report.macs_after > report.macs_before
    for macs in (report.macs_before, report.macs_after, report.macs_matching):
        assert f"{macs / 1e6:.1f} M" in text
    assert "min_ratio=0" in text
    assert caught[0].filename == __file__


@pytest.mark.cost
def test_a_new_r_that_does_not_pay_is_said() -> None:
    fast = tome_fx.transform(tiny(depth=4, img_size=224), 40)
    assert sum(fast.schedule) > 0
    with pytest.warns(tome_fx.ToMeWarning, match="is not applied") as caught:
        fast.r = [0, 0, 0, 1]
    assert caught[0].filename == __file__
    assert sum(fast.schedule) == 0
    fast.r = 40
    assert fast.schedule == (40, 40, 40, 38)


class Additive(nn.Module):
    """Attention by a sum of queries and keys (Bahdanau), without a product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8)
        self.score = nn.Linear(8, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        q = self.mix(x)
        logits = self.score((q[:, :, None] + q[:, None]).tanh()).squeeze(-1)
        shares = logits.softmax(-1)
        return x + shares @ x


def test_a_softmax_of_no_product_is_told_with_its_place() -> None:
    words = (
        r"softmax at body \(test_nothing_to_merge\.py:\d+: shares = .*\): it is not of a product"
    )
    model = nn.Sequential()
    model.add_module("body", Additive().eval())
    with pytest.raises(tome_fx.NoAttentionFoundError, match=words):
        tome_fx.transform(model, 2, example_inputs=images())
