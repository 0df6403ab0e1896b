"""The result leaves Python: exported, compiled ahead of time, as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tome_fx
from tests.architectures import randomise
from tests.rules.common import TINY
from tests.tiny import images, tiny
from tome_fx.cli import formats

pytestmark = TINY

MODELS = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "eva02_tiny_patch14_224",
)
UNLIKE = (MODELS[0], MODELS[2], MODELS[4])  # a class token; registers and scales; rotations
DYNAMIC = ({0: torch.export.Dim("batch", min=2, max=1024)},)


def made(name: str, **options: Any) -> tuple[Any, int]:
    """A small merged model, and the side of its images."""
    size = 70 if "14" in name else 80
    shape = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": size, "num_classes": 7}
    model = timm.create_model(name, **shape).eval()
    randomise(model, 0)
    return tome_fx.transform(model, 3, example_inputs=images(2, size), **options), size


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("name", MODELS)
def test_exported_saved_loaded_and_run(name: str, tmp_path: Path) -> None:
    fast, size = made(name)
    static: list[tuple[Any, Any]] = [((3,), None)] if name == MODELS[0] else []
    for batches, shapes in [((3, 2, 5), DYNAMIC), *static]:
        program = torch.export.export(fast, (images(3, size),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "fast.pt2")
        loaded: Any = torch.export.load(tmp_path / "fast.pt2").module()
        for batch in batches:
            x = images(batch, size, seed=batch)
            assert torch.equal(loaded(x), fast(x))


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("name", UNLIKE)
def test_without_scatter_the_same(name: str) -> None:
    (usual, size), (fast, _) = made(name), made(name, scatter=False)
    x = images(3, size).double()
    for module in (usual.double(), fast.double()):
        assert sum(module.schedule) == 6
    torch.testing.assert_close(fast(x), usual(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(fast.token_map(x), usual.token_map(x))
    program = torch.export.export(fast, (x,)).run_decompositions()
    assert "scatter" not in " ".join(str(node.target) for node in program.graph.nodes)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    fast, size = made(MODELS[0])
    program = torch.export.export(fast, (images(3, size),), dynamic_shapes=DYNAMIC)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "a.pt2"))
    loaded: Any = torch._inductor.aoti_load_package(path)
    for batch in (3, 2, 6):
        x = images(batch, size, seed=batch)
        torch.testing.assert_close(loaded(x), fast(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "scatter"), [*((name, True) for name in UNLIKE), (MODELS[0], False)]
)
def test_onnx(name: str, scatter: bool, tmp_path: Path) -> None:
    fast, size = made(name, scatter=scatter)
    path = tmp_path / "fast.onnx"
    run = formats.write(fast, images(3, size), path, "onnx", dynamic=True)
    for batch in (3, 2, 6):
        x = images(batch, size, seed=batch)
        torch.testing.assert_close(run(x), fast(x), rtol=1e-4, atol=1e-4)
    import onnx

    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert any("Scatter" in kind for kind in kinds) == scatter


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_trace_by_torchscript_says_that_it_is_of_one_batch() -> None:
    fast = tome_fx.transform(tiny(), 2)
    with pytest.warns(tome_fx.ToMeWarning, match=r"number of images down.*torch\.export\.export"):
        torch.jit.trace(fast, images(2), check_trace=False)


class Asking(nn.Module):
    """A call as that of the exporter to ONNX on TorchScript: None for what is left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x, is_causal=None)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.jit.trace writes:tome_fx.ToMeWarning")
def test_a_trace_by_torchscript_captures_beside_itself() -> None:
    model, x = tiny(), images(2)
    traced = torch.jit.trace(Asking(tome_fx.transform(model, 0)), x, check_trace=False)
    assert torch.equal(traced(x), model(x))


def test_an_exported_program_asks_nothing_and_has_no_empty_pieces() -> None:
    """Importers that know a list of ops trip over each one more, and some over empty tensors."""
    fast = tome_fx.transform(tiny(), 2)
    program = torch.export.export(fast, (images(2),))
    named = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    fewer = {"promote_types.default", "movedim.int", "where.ScalarOther", "new_ones.default"}
    assert not named & {f"aten.{name}" for name in fewer}
    values = [n.meta["val"] for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    assert all(value.numel() for value in values)
