"""torchao's weights of few bits, before a transform and after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.quantised import BY_ROWS, NARROW, OTHERS, by_config, float8, packed, quantised
from tests.threads import one_thread as one_thread
from tests.tiny import images, tiny

pytestmark = [TINY, pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao")]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [*OTHERS, BY_ROWS])
def test_a_quantised_model_is_transformed(name: str) -> None:
    model = quantised(tiny(), name)
    x = images(4).to(model.cls_token.dtype)
    fast = tome_fx.transform(model, 0)
    assert packed(fast) == packed(model)
    assert len(packed(fast)) == 9 - (name == NARROW)  # four linears in each block, and the head
    with torch.no_grad():
        y, exact = model(x).float(), tiny()(images(4))
        assert torch.equal(fast(x).float(), y)
        assert 0 < float((y - exact).norm()) < 0.2 * float(exact.norm())
        fast.r = 2
        assert fast.schedule == (2, 2)
        assert not fast.report.unmerges
        merged = fast(x).float()
        expected = tome_fx.transform(tiny(), 2)(images(4))
        assert not torch.equal(merged, y)
        assert float((merged - expected).norm()) < 0.5 * float(expected.norm())


def test_a_scale_of_a_whole_tensor_is_made_of_merged_tokens() -> None:
    """The default of torchao. Where oneDNN keeps to AVX-512 no CPU runs it: see ``conftest``."""
    model = by_config(tiny().bfloat16(), float8(None))
    fast = tome_fx.transform(model, 2, check=False)
    kinds = [str(node.target) for node in fast.graph.nodes]
    assert "aten.amax.default" in kinds
    assert "aten._scaled_mm.default" in kinds
    assert fast.schedule == (2, 2)
    assert not fast.report.unmerges


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["weights", "int4", BY_ROWS])
@pytest.mark.parametrize("capture", ["symbolic_trace", "backend"])
@torch.no_grad()
def test_every_door(name: str, capture: str) -> None:
    model = quantised(tiny(), name)
    x = images(3).to(model.cls_token.dtype)
    expected = tome_fx.transform(model, 2)(x)
    if capture == "backend":
        backend = tome_fx.backend(2, inner_backend="aot_eager")
        assert torch.equal(torch.compile(model, backend=backend, fullgraph=True)(x), expected)
        assert backend.reports[0].schedule == (2, 2)
    else:
        assert torch.equal(tome_fx.transform(model, 2, capture=capture)(x), expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_its_products_are_of_each_token_and_are_counted(name: str) -> None:
    """Rows of activations have scales of their own, so that equal tokens stay equal."""
    model, plain = quantised(tiny(img_size=64), name), tome_fx.explain(tiny(img_size=64), 4)
    fast = tome_fx.transform(model, 4)
    report = fast.report
    assert (report.macs_before, report.macs_after) == (plain.macs_before, plain.macs_after)
    assert not report.unmerges
    assert [block.mlp for block in report.blocks] == [block.mlp for block in plain.blocks]
    patch = torch.randn(1, 3, 1, 16, 1, 16)
    equal = patch.expand(2, -1, 4, -1, 4, -1).reshape(2, 3, 64, 64)
    embedding = model.pos_embed
    embedding[:, 1:] = embedding[:, 1:2]  # type: ignore[index]
    # The last bit of an activation decides between two steps of 8 bits.
    step = 1e-5 if name == "weights" else 1e-2
    torch.testing.assert_close(fast(equal), model(equal), rtol=0, atol=step)
    x = images(size=64)
    assert float((fast(x) - model(x)).abs().max()) > 5e-2


@pytest.mark.few(1)
@pytest.mark.parametrize("capture", ["export", "symbolic_trace"])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.filterwarnings("ignore:At pre-dispatch tracing:UserWarning")  # torch's own
@torch.no_grad()
def test_products_as_on_a_gpu(capture: str, cast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There torchao asks for a product of int8 in int32, and reads off how many rows it has."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        wide = torch.ops.higher_order.out_dtype
        pair = (a.float(), b.float()) if cast else (a, b)
        return wide(torch.ops.aten.mm.default, torch.int32, *pair)

    monkeypatch.setattr("torchao.kernel.intmm._is_device", lambda *args: False)
    monkeypatch.setattr("torchao.kernel.intmm.safe_int_mm", product)
    model, plain = quantised(tiny(), "activations"), tome_fx.explain(tiny(), 2)
    fast = tome_fx.transform(model, 2, capture=capture)
    kinds = {str(node.target) for node in fast.graph.nodes}
    assert ("aten.mm.default" if cast else "aten._int_mm.default") in kinds
    assert "out_dtype" not in kinds
    assert not fast.report.unmerges
    assert fast.report.macs_after == plain.macs_after
    fast.r = 0
    for batch in (2, 5):
        x = images(batch)
        assert torch.equal(fast(x), model(x))


@pytest.mark.few(2)
@pytest.mark.parametrize("name", OTHERS)
def test_a_result_is_not_quantised(name: str) -> None:
    """It says so, and stays what it was; without a word it would have stayed so too."""
    model, x = tiny(), images()
    fast = tome_fx.transform(model, 2)
    y = fast(x)
    with pytest.raises(
        tome_fx.ConfigError, match="Quantise the model first, by torchao, then transform it"
    ):
        quantised(fast, name)
    assert packed(fast) == packed(model) == []
    assert torch.equal(fast(x), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch.ao")
def test_weights_that_no_graph_can_read_are_refused() -> None:
    old = pytest.importorskip("torch.ao.quantization")  # it is to be removed from torch
    packed = old.quantize_dynamic(tiny(), {nn.Linear})
    with pytest.raises(tome_fx.CaptureError, match=r"LinearPackedParams.*Quantise by torchao"):
        tome_fx.transform(packed, 2)


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_inputs_are_refused(layout: torch.layout) -> None:
    rows = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)], layout=layout)
    with pytest.raises(tome_fx.InputError, match=r"is a nested tensor, .* padded, with a mask"):
        tome_fx.transform(tiny(), 2, example_inputs=(rows,))


@pytest.mark.compiler
def test_it_compiles() -> None:
    fast, x = tome_fx.transform(quantised(tiny(), "weights"), 2), images(4)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), fast(x), rtol=1e-4, atol=1e-5)
