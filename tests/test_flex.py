"""FlexAttention is read: what it means is what the same attention spelled out means."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import tome_fx
from tests.flexed import ASKED, Asked, Attend, Model, N, inputs, made
from tests.laws.common import TINY, distance
from tests.versions import lacks

# The model's own calls, which are not compiled; those of a transform say nothing.
UNCOMPILED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
pytestmark = [TINY, UNCOMPILED]


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    """Each call is compiled by torch, for eight different ones in a process and no more."""
    torch._dynamo.reset()


def transformed(model: nn.Module, given: Any, r: int = 4, **options: Any) -> tome_fx.ToMeModule:
    return tome_fx.transform(model, r, example_inputs=given, min_ratio=0, **options)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ASKED)
def test_it_merges_as_attention_that_is_spelled_out(name: str) -> None:
    asked, given = ASKED[name], inputs()
    model, plain = made(asked), made(asked, flexible=False)
    fast, same = transformed(model, given), transformed(plain, given)
    assert fast.schedule == same.schedule == (4, 4)
    assert fast.report.notes == same.report.notes
    assert [entry.reason for entry in fast.report.unmerges] == [
        entry.reason for entry in same.report.unmerges
    ]
    model.requires_grad_(False)  # on a CPU it has no gradients
    with torch.no_grad():
        assert torch.equal(fast.token_map(*given), same.token_map(*given))
        assert distance(fast(*given), same(*given)) < 1e-12
        assert distance(fast(*given), model(*given)) > 1e-6
        other = [value[:2] for value in given]
        assert distance(fast(*other), fast(*given)[:2]) < 1e-12
        if asked.alike:
            assert not any("attention" in entry.op for entry in fast.report.unmerges)
            equal = inputs(kinds=3)
            assert distance(fast(*equal), model(*equal)) < 1e-12
        fast.r = 0
        assert distance(fast(*given), model(*given)) < 1e-12
    # The tables of blocks, which are made under vmap, are gone.
    names = " ".join(str(node.target) for node in fast.graph.nodes)
    assert not any(part in names for part in ("batch_dim", "nesting", "argsort", "flex"))


def capped(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return 5 * torch.tanh(s / 5)


def written_to(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    s = s * 1.5
    s += 0.25 * (h - 1)
    return s.clamp(min=-1)


def filled(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    scale = torch.tensor([0.5, 1.0, 1.5, 2.0])[h]
    return torch.where(s > 2, torch.full_like(s, 2), s) * scale


@pytest.mark.few(1)
@pytest.mark.parametrize("score", [capped, written_to, filled])
@pytest.mark.parametrize("masked", [False, True])
def test_other_scores_are_written_out(score: Any, masked: bool) -> None:
    """To the last bit: it is what the op does itself where it is not compiled."""
    hiding: Any = {"mask": ASKED["padding"].mask} if masked else {}
    model, given = made(Asked(lambda block: score, **hiding)), inputs()
    fast = transformed(model, given)
    model.requires_grad_(False)
    with torch.no_grad():
        assert fast.schedule == (4, 4)
        assert distance(fast(*given), model(*given)) > 1e-6
        equal = inputs(kinds=3)
        assert distance(fast(*equal), model(*equal)) < 1e-12
        fast.r = 0
        assert torch.equal(fast(*given), model(*given))


def test_a_row_without_keys_is_zeros() -> None:
    asked = Asked(lambda block: capped, mask=lambda valid: lambda b, h, q, k: valid[b, k] & (q > 2))
    model, given = made(asked), inputs()
    fast = transformed(model, given, 0)
    model.requires_grad_(False)
    assert torch.equal(fast(*given), model(*given))
    assert fast(*given).isfinite().all()


def test_a_causal_mask_is_seen() -> None:
    asked = Asked(mask=lambda valid: lambda b, h, q, k: q >= k)
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        transformed(made(asked), inputs())


def test_a_bias_is_added_in_float32() -> None:
    """In a mask of fused attention it would have the precision of the queries."""
    given = inputs(dtype=torch.bfloat16)
    model = made(ASKED["a table of distances"], dtype=torch.bfloat16)
    fast = transformed(model, given, 0)
    model.requires_grad_(False)
    assert torch.equal(fast(*given), model(*given))


def test_gradients_are_those_of_the_attention() -> None:
    asked, given = ASKED["padding and a table"], inputs()
    models = [made(asked), made(asked, flexible=False)]
    grads = []
    for model in models:
        loss = transformed(model, given)(*given).square().sum()
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(distance(a, b) < 1e-12 for a, b in zip(*grads, strict=True))
    assert grads[0][0].abs().max() > 1e-6


@pytest.mark.parametrize("name", ["padding and a table", "documents"])
@torch.no_grad()
def test_the_backend_reads_it(name: str) -> None:
    model, given = made(ASKED[name]).requires_grad_(False), inputs()
    chosen = tome_fx.backend(4, inner_backend="eager", min_ratio=0, protect=0)
    compiled = torch.compile(model, backend=chosen)
    assert distance(compiled(*given), model(*given)) > 1e-6
    equal = inputs(kinds=1)  # whatever merges
    assert distance(compiled(*equal), model(*equal)) < 1e-12
    assert [report.schedule for report in chosen.reports] == [(4, 4)]


@torch.no_grad()
def test_an_exported_program_is_read_too() -> None:
    model, given = made(ASKED["padding"]).requires_grad_(False), inputs()
    fast = transformed(torch.export.export(model, given), None)
    assert distance(fast(*given), transformed(model, given)(*given)) < 1e-12


class Around(nn.Module):
    """What a model does beside its attention."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.model = how, made(ASKED["padding"])
        self.norm = nn.BatchNorm1d(6).double()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        if self.how == "view":
            x = x * 2
            x.flatten(1).mul_(torch.linspace(0, 1, N * 6, dtype=x.dtype))
        elif self.how == "count":
            self.count.add_(1)
        elif self.how == "norm":
            x = self.norm(x.mT).mT
        elif self.how == "pair":
            x, valid = torch.cat([x, -x]), torch.cat([valid, valid])
        elif self.how == "input":
            x[:, 0].zero_()
        return self.model(x, valid)  # type: ignore[no-any-return]


TWICE = lacks("cannot run the model itself, whose batch is twice that of its input")


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "how", ["view", "count", "norm", pytest.param("pair", marks=TWICE), "input"]
)
def test_what_the_model_writes_stays(how: str) -> None:
    model = Around(how).train(how == "norm").requires_grad_(False)
    fast = transformed(copy.deepcopy(model), inputs(), 0)
    for seed in range(2):
        x, valid = inputs(seed=seed)
        given, own = x.clone(), x.clone()
        assert distance(fast(given, valid), model(own, valid)) < 1e-12
        assert torch.equal(given, own)
    for name, buffer in model.named_buffers():
        assert torch.equal(fast.get_buffer(name), buffer), name
    fast.r = 4
    assert fast.schedule == (4, 4)


class Blocked(Attend):
    """Tables of blocks alone say which keys a query sees."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, block: nn.Module) -> Tensor:
        out = flex_attention(q, k, v, block_mask=BLOCKS)
        assert isinstance(out, Tensor)
        return out


BLOCKS = BlockMask.from_kv_blocks(
    torch.ones(1, 1, 3, dtype=torch.int32),
    torch.arange(3, dtype=torch.int32).reshape(1, 1, 3, 1).expand(1, 1, 3, 3).contiguous(),
    BLOCK_SIZE=8,
    seq_lengths=(N, N),
)


def test_blocks_that_no_mask_hides_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.flexed.Attend", Blocked)
    with pytest.raises(tome_fx.NoAttentionFoundError, match="blocks"):
        transformed(made(Asked()), inputs(), capture="export")


class Summing(Attend):
    """Asks for the sums of exponents."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, block: nn.Module) -> Tensor:
        out, sums = flex_attention(q, k, v, return_lse=True)
        return out * sums[..., None].sigmoid()  # type: ignore[no-any-return]


def sorted_by(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return s + torch.stack([q, k]).max()


@pytest.mark.filterwarnings("ignore:return_lse is deprecated")
def test_what_is_not_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(tome_fx.NoAttentionFoundError, match="done for each score by itself"):
        transformed(made(Asked(lambda block: sorted_by)), inputs(), capture="export")
    monkeypatch.setattr("tests.flexed.Attend", Summing)
    with pytest.raises(tome_fx.NoAttentionFoundError, match="asked for sums of exponents"):
        transformed(made(Asked()), inputs(), capture="export")


def test_transformers_with_it_merge() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=24, patch_size=4,
    )  # fmt: skip
    config._attn_implementation = "flex_attention"
    flexible = transformers.ViTModel(config, add_pooling_layer=False).eval()
    config._attn_implementation = "sdpa"
    plain = transformers.ViTModel(config, add_pooling_layer=False).eval()
    plain.load_state_dict(flexible.state_dict())
    x = torch.randn(2, 3, 24, 24)
    fast, same = transformed(flexible, x), transformed(plain, x)
    assert fast.schedule == same.schedule == (4, 4)
    torch.testing.assert_close(fast(x)[0], same(x)[0], rtol=1e-5, atol=1e-5)


def test_its_place_in_the_code_is_told() -> None:
    fast = transformed(made(ASKED["padding and a table"]), inputs())
    (entry, *_) = fast.report.unmerges
    assert entry.source.startswith("flexed.py:")
    assert Model.__name__ in str(fast.report)
