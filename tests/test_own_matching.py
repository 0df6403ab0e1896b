"""`matching=`: a function of the user chooses what merges."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelThingsBlock
from torch import Tensor

import tome_fx
from tests.compilers import COMPILERS
from tests.laws.common import distance
from tests.rules.common import TINY
from tests.tiny import images, tiny
from tome_fx import ops
from tome_fx.own_matching import ASKED, asked_by, identity_of, name_of

pytestmark = TINY


def neighbours(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Each second token into the one in front of it, from the front."""
    src = 2 * torch.arange(r, device=metric.device) + 1
    return src, src - 1


def as_the_paper(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """What the built-in matching chooses in a first layer behind one class token."""
    plan = ops.match(ops.similarity(metric, 1), r, 1)
    return plan.src, plan.keep.gather(1, plan.dst)


@torch.no_grad()
def test_the_papers_choice_gives_the_papers_result() -> None:
    model, x = tiny().double(), images().double()
    fast = tome_fx.transform(model, [3, 0], matching=as_the_paper)
    usual = tome_fx.transform(model, [3, 0])
    assert distance(fast(x), usual(x)) < 1e-12
    assert fast.report.flop_ratio == usual.report.flop_ratio
    assert fast.report.macs_matching == usual.report.macs_matching > 0
    assert distance(fast(x), model(x)) > 1e-3


def test_pairs_merge_as_they_are_said_and_keep_their_order() -> None:
    fast = tome_fx.transform(tiny(), [3, 2], matching=neighbours)
    first, second = fast.token_map(images())
    # Nine patches: 01 23 45 6 7 8, then 0123 45.6 7 8.
    assert first.tolist() == [[0, 0, 1, 1, 2, 2, 3, 4, 5]] * 2
    assert second.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 3]] * 2
    assert "what merges is chosen by neighbours" in str(fast.report)


def test_it_is_given_what_it_names() -> None:
    seen: list[dict[str, Any]] = []

    def asking(
        metric: Tensor, r: int, keys: Tensor, x: Tensor, size: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen.append({**locals()})
        return neighbours(metric, r)

    model, x = tiny(), images()
    fast = tome_fx.transform(model, [3, 2], matching=asking)
    seen.clear()
    fast(x)
    first, second = seen
    assert set(ASKED) <= set(first)
    assert (first["r"], second["r"]) == (3, 2)
    assert first["keys"].shape == (2, 2, 9, 16)
    assert second["keys"].shape == (2, 2, 6, 16)
    assert torch.equal(first["metric"], first["keys"].mean(1))
    assert first["size"].tolist() == [[1.0] * 9] * 2
    assert second["size"].tolist() == [[2.0, 2.0, 2.0, 1.0, 1.0, 1.0]] * 2
    assert first["position"].tolist() == [list(range(9))] * 2
    assert second["position"].tolist() == [[0, 2, 4, 6, 7, 8]] * 2
    tokens = model.patch_embed(x) + model.pos_embed[:, 1:]
    whole = torch.cat([model.cls_token.expand(2, 1, -1) + model.pos_embed[:, :1], tokens], 1)
    block = model.blocks[0]
    assert distance(first["x"], (whole + block.attn(block.norm1(whole)))[:, 1:].detach()) < 1e-5
    assert not any(value.requires_grad for value in first.values() if isinstance(value, Tensor))


def test_more_may_be_asked_for_by_default_only() -> None:
    def with_more(metric: Tensor, r: int, keep: float = 0.5, **others: Any) -> Any:
        assert (keep, others) == (0.5, {})
        return neighbours(metric, r)

    x = images()
    fast = tome_fx.transform(tiny(), 2, matching=with_more)
    assert torch.equal(fast(x), tome_fx.transform(tiny(), 2, matching=neighbours)(x))


def chosen(r: int, metric: Tensor, start: int) -> tuple[Tensor, Tensor]:
    src = start + torch.arange(r, device=metric.device)
    return src, torch.zeros_like(src)


class Chooser:
    def __call__(self, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
        return chosen(r, metric, 1)


CALLABLES = [functools.partial(chosen, start=1), Chooser(), lambda metric, r: chosen(r, metric, 1)]


@pytest.mark.few(2)
@pytest.mark.parametrize("function", CALLABLES)
def test_any_callable(function: Any) -> None:
    model, x = tiny(), images()
    fast = tome_fx.transform(model, 2, matching=function)
    assert fast.token_map(x)[0].tolist() == [[0, 0, 0, 1, 2, 3, 4, 5, 6]] * 2
    assert torch.allclose(torch.compile(fast, backend="eager", fullgraph=True)(x), fast(x))


def test_it_stays_through_all_that_is_done_with_a_result(tmp_path: Path) -> None:
    model, x = tiny(), images()
    fast = tome_fx.transform(model, 2, matching=neighbours)
    y = fast(x)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.settings.matching is neighbours
        assert torch.equal(other(x), y)
    assert torch.equal(tome_fx.transform(model, 2, matching=neighbours, scatter=False)(x), y)
    exported = torch.export.export(fast, (x,), strict=False)
    assert torch.equal(exported.module()(x), y)
    fast.r = [0, 3]
    assert fast.schedule == (0, 3)
    assert fast.token_map(x)[1].max() == 5
    fast.train()
    fast(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_it_compiles_and_serves_as_an_option_of_the_backend() -> None:
    model, x = tiny(), images()
    options = {"r": 2, "matching": neighbours}
    y = tome_fx.transform(model, **options)(x)
    assert distance(torch.compile(tome_fx.transform(model, **options), fullgraph=True)(x), y) < 1e-5
    again = torch.compile(model, backend=tome_fx.backend(**options, inner_backend="eager"))
    assert distance(again(x), y) < 1e-6
    assert tome_fx.backend(**options) == tome_fx.backend(**options)
    assert tome_fx.backend(**options) != tome_fx.backend(2)


def test_scores_stay_wide_under_autocast() -> None:
    kinds = []

    def matching(metric: Tensor, keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
        kinds.append((metric.dtype, (metric @ metric.mT).dtype))
        return neighbours(metric, r)

    fast = tome_fx.transform(tiny(), 2, matching=matching)
    kinds.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast(images())
    assert kinds == [(torch.float32, torch.float32)] * 2


def test_parallel_attentions_share_one_metric() -> None:
    found = []

    def matching(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
        found.append(metric)
        return neighbours(metric, r)

    model = tiny(block_fn=ParallelThingsBlock)
    fast = tome_fx.transform(model, 2, matching=matching)
    found.clear()
    fast(images())
    assert [metric.shape for metric in found] == [(2, 9, 32), (2, 7, 32)]
    assert torch.allclose(found[0].norm(dim=-1), torch.tensor(2.0).sqrt())

    def by_keys(keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
        return neighbours(keys[:, 0], r)

    with pytest.raises(
        tome_fx.ConfigError, match=r"by_keys cannot be asked at .*several attentions"
    ):
        tome_fx.transform(model, 2, matching=by_keys)


def test_a_recipe_says_that_it_is_code(tmp_path: Path) -> None:
    model, x = tiny(), images()
    fast = tome_fx.transform(model, 2, matching=neighbours)
    with pytest.raises(tome_fx.ConfigError, match=r"neighbours as its matching.*is code"):
        tome_fx.save_recipe(fast, tmp_path / "fast.json")
    path = tome_fx.save_recipe(tome_fx.transform(model, 2), tmp_path / "fast.json")
    again = tome_fx.apply_recipe(model, path, matching=neighbours)
    assert torch.equal(again(x), fast(x))


def test_it_may_write_to_what_it_is_given() -> None:
    def writing(metric: Tensor, keys: Tensor, x: Tensor, size: Tensor, position: Tensor, r: int):  # type: ignore[no-untyped-def]  # fmt: skip
        for value in (metric, keys, x, size, position):
            value.zero_()
        return neighbours(metric, r)

    x = images()
    fast = tome_fx.transform(tiny(), 2, matching=writing)
    calm = tome_fx.transform(tiny(), 2, matching=neighbours)
    assert torch.equal(fast(x), calm(x))
    for one, other in zip(fast.token_map(x), calm.token_map(x), strict=True):
        assert torch.equal(one, other)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), calm(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("inner", COMPILERS)
@torch.no_grad()
def test_tensors_that_it_holds_are_constants_of_the_backend(inner: str) -> None:
    weight = torch.randn(16, 4)

    def learned(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
        return as_the_paper(metric @ weight, r)

    model, x = tiny(), images()
    backend = tome_fx.backend([3, 0], matching=learned, inner_backend=inner)
    y = tome_fx.transform(model, [3, 0], matching=learned)(x)
    assert distance(torch.compile(model, backend=backend)(x), y) < 1e-5
    fast = torch.compile(tome_fx.transform(model, [3, 0], matching=learned), backend=inner)
    assert distance(fast(x), y) < 1e-5


def test_the_backend_says_what_is_wrong_with_it() -> None:
    backend = tome_fx.backend(2, matching=lambda metric, r: metric)
    with pytest.raises(Exception, match="not a pair"):
        torch.compile(tiny(), backend=backend)(images())


def test_a_bound_method_is_the_same_function_wherever_it_is_read() -> None:
    class Method:
        def pairs(self, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
            return neighbours(metric, r)

    one, other = Method(), Method()
    assert tome_fx.backend(2, matching=one.pairs) == tome_fx.backend(2, matching=one.pairs)
    assert tome_fx.backend(2, matching=one.pairs) != tome_fx.backend(2, matching=other.pairs)


def test_what_a_partial_binds_stays_bound() -> None:
    function = functools.partial(chosen, start=1, r=2)
    assert asked_by(function) == ("metric",)
    assert name_of(function) == "chosen"


def test_functions_are_known_by_their_code() -> None:
    functions = [
        lambda metric, r: None,
        lambda metric, r: None,
    ]
    assert len({identity_of(function) for function in functions}) == 2
    assert identity_of(Chooser()) == identity_of(Chooser())
    assert identity_of(torch.no_grad()(neighbours)) == identity_of(neighbours)


def test_what_it_computes_is_counted() -> None:
    def by_a_vector(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
        score = metric.flatten(0, 1) @ torch.ones(16)
        return neighbours(score[:, None], r)

    assert tome_fx.explain(tiny(), [2, 0], matching=by_a_vector).macs_matching == 9 * 16
    plain = tome_fx.explain(tiny(), 0, matching=by_a_vector)
    assert not any("is chosen by" in note for note in plain.notes)
