"""``torch.compile(model, backend="tome_fx")``: the same numbers as transform, on whole graphs."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch._dynamo

import tome_fx
from tests.compiling.common import R, backend, expected, listening
from tests.rules.common import TINY
from tests.tiny import Cast, images, same, seeded, tiny

pytestmark = TINY


@torch.no_grad()
def test_by_name_with_options() -> None:
    model, x = tiny(), images()
    options = {"r": R, "inner_backend": "aot_eager", "min_ratio": 0}
    compiled = torch.compile(model, backend="tome_fx", options=options, fullgraph=True)
    assert torch.equal(compiled(x), expected(model)(x))
    assert not torch.equal(compiled(x), model(x))
    assert "tome_fx" in torch._dynamo.list_backends()


@torch.no_grad()
@pytest.mark.slow
def test_inductor_is_the_inner_backend() -> None:
    model, x = tiny(), images()
    compiled = torch.compile(model, backend=tome_fx.backend(R, min_ratio=0))
    torch.testing.assert_close(compiled(x), expected(model)(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize(("dynamic", "view"), [(True, False), (None, True)])
def test_one_graph_for_all_batches(dynamic: bool | None, view: bool) -> None:
    model, fast, chosen = tiny(), expected(tiny()), backend()
    compiled = torch.compile(model, backend=chosen, dynamic=dynamic, fullgraph=True)
    for batch in (4, 2, 3, 5):
        x = images(8)[:batch] if view else images(batch)
        assert torch.equal(compiled(x), fast(x))
    # Without a word Dynamo compiles for one size first, and for all at the second one.
    assert len(chosen.reports) <= 2


@torch.no_grad()
def test_numbers_that_dynamo_passes_as_tensors_are_folded() -> None:
    """With ``dynamic=True`` Dynamo makes every float of the model a tensor."""
    model, x, chosen = tiny(proj_drop_rate=0.25).eval(), images(), backend()
    compiled = torch.compile(model, backend=chosen, dynamic=True, fullgraph=True)
    assert torch.equal(compiled(x), expected(model)(x))
    model.blocks[0].norm1.eps = 0.5  # type: ignore[union-attr]
    result, told = listening(compiled, x)
    assert not told
    assert torch.equal(result, expected(model)(x))


@torch.no_grad()
def test_a_number_that_changes_is_told_of_once() -> None:
    """The graph holds one value of it; with any other the model runs as it is."""
    body, x, chosen = tiny(), images(), backend(inner="eager")
    fast = expected(body)

    def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
        return body(x) * factor  # type: ignore[no-any-return]

    compiled = torch.compile(scaled, backend=chosen, dynamic=True, fullgraph=True)
    heard = []
    for factor, model in ((0.5, fast), (0.25, body), (0.75, body), (0.5, fast)):
        result, told = listening(lambda x, by=factor: compiled(x, by), x)
        torch.testing.assert_close(result, model(x) * factor)
        heard.append("has changed" in told)
    assert heard == [False, True, False, False]
    assert len(chosen.reports) == 1


def test_training_reads_dropout_from_the_graph() -> None:
    model = tiny(proj_drop_rate=0.25, drop_path_rate=0.5).train()
    fast, x = expected(model), images()
    assert fast.training
    compiled = torch.compile(model, backend=backend(inner="eager"), fullgraph=True)
    ours, theirs = seeded(compiled, x), seeded(fast, x)
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    assert torch.equal(compiled(x), expected(model)(x))


def test_gradients_are_those_of_transform() -> None:
    model, x = tiny().double(), images().double()
    compiled = torch.compile(model, backend=backend(), fullgraph=True)
    found = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    wanted = torch.autograd.grad(expected(model)(x).square().sum(), list(model.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize("inside", [True, False, None])
def test_autocast(inside: bool | None, around: bool) -> None:
    model, x, chosen = tiny() if inside is None else Cast(inside), images(), backend()
    compiled = torch.compile(model, backend=chosen, fullgraph=True)
    exact = tome_fx.transform(model, R, example_inputs=x, min_ratio=0)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around):
        ours, plain = compiled(x), model(x)
    assert ours.dtype == plain.dtype
    torch.testing.assert_close(ours.float(), exact.float(), rtol=0.1, atol=0.1)
    assert chosen.reports[0].schedule == (R, R)


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(mode: Any) -> None:
    model, x = tiny(), images()
    compiled = torch.compile(model, backend=backend(), fullgraph=True)
    with mode():
        assert torch.equal(compiled(x), expected(model)(x))
    assert compiled(x).requires_grad


@torch.no_grad()
def test_what_does_not_pay_is_left_out() -> None:
    from tome_fx import pipeline

    model, x = tiny(), images()
    chosen = tome_fx.backend(R, inner_backend="eager", min_ratio=50.0)
    compiled = torch.compile(model, backend=chosen)
    if getattr(pipeline.is_worth_it, "__module__", "") == pipeline.__name__:
        with pytest.warns(tome_fx.ToMeWarning, match="not applied"):
            assert same(compiled(x), model(x))


# -- the object ------------------------------------------------------------------------------


def test_equal_settings_are_equal_backends() -> None:
    first, second = tome_fx.backend([2, 1], mode="default"), tome_fx.backend([2, 1], mode="default")
    assert first == second
    assert hash(first) == hash(second)
    assert first != tome_fx.backend([1, 2], mode="default")
    assert first != tome_fx.backend([2, 1])
    assert len({first, second}) == 1


@torch.no_grad()
def test_an_equal_backend_does_not_recompile() -> None:
    model, x = tiny(), images()
    first, second = backend(), backend()
    torch.compile(model, backend=first)(x)
    torch.compile(model, backend=second)(x)
    assert len(first.reports) + len(second.reports) == 1
    torch.compile(model, backend=backend(1))(x)
    assert len(first.reports) + len(second.reports) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rr": 3}, "Did you mean r"),
        ({"r": -1}, "r=-1"),
        ({"inner_backend": "inductr"}, "inner_backend='inductr'"),
        ({"inner_backend": "tome_fx"}, "inner_backend='tome_fx'"),
        ({"capture": "export"}, "not an option"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match=text):
        tome_fx.backend(**options)
    compiled = torch.compile(tiny(), backend="tome_fx", options=options)
    with pytest.raises(Exception, match=text):
        compiled(images())


@torch.no_grad()
def test_a_mode_reaches_the_inner_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Wrapper:
        def __init__(self, *args: Any) -> None:
            seen.append(args)

        def __call__(self, module: Any, inputs: Any) -> Any:
            return module

    monkeypatch.setattr(torch, "_TorchCompileInductorWrapper", Wrapper)
    model, x = tiny(), images()
    compiled = torch.compile(model, backend="tome_fx", mode="max-autotune")
    compiled(x)
    assert seen[-1][0] == "max-autotune"
    options = {"mode": "reduce-overhead", "inner_options": {"epilogue_fusion": True}}
    torch.compile(tiny(), backend="tome_fx", options=options)(x)
    assert seen[-1][:2] == ("reduce-overhead", {"epilogue_fusion": True})


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "beit_base_patch16_224"])
def test_models_as_transform_has_them(name: str) -> None:
    options = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64, "num_classes": 5}
    model = timm.create_model(name, **options).eval()
    from tests.architectures import randomise

    randomise(model, 0)
    x = images(3, 64)
    fast = tome_fx.transform(model, R, example_inputs=x, min_ratio=0)
    for dynamic in (True, False):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend(), dynamic=dynamic, fullgraph=True)
        torch.testing.assert_close(compiled(x), fast(x), rtol=1e-5, atol=1e-5)
