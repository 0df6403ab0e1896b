"""The kernels through Triton's own compiler, for devices that need not be there."""

from __future__ import annotations

import importlib.util
import os

import pytest

from tome_fx.kernels import matching, merging

TRITON = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.skipif(
    not TRITON or os.environ.get("TRITON_INTERPRET") == "1", reason="no compiler of Triton"
)

INTS = {"keep": "*i64", "src": "*i64", "dst": "*i64", "partner": "*i32"}
FLOATS = {"unit": "*fp32", "best": "*fp32", "size": "*fp32", "new_size": "*fp32", "eps": "fp32"}
BLOCKS = [
    (matching.unit_kernel, {"ROWS": 16, "WIDTH": 64}),
    (matching.best_kernel, {"ROWS": 32, "COLUMNS": 64, "STEP": 32}),
    (matching.plan_kernel, {"ROWS": 128, "STEP": 32}),
    (merging.merge_kernel, {"SIZED": True, "MERGES": 16, "WIDTH": 1024}),
    (merging.merge_kernel, {"SIZED": False, "MERGES": 1, "WIDTH": 16}),
    (
        merging.merge_norm_kernel,
        {"SIZED": True, "WEIGHT": True, "BIAS": True, "MERGES": 32, "WIDTH": 1024},
    ),
    (
        merging.merge_norm_kernel,
        {"SIZED": False, "WEIGHT": False, "BIAS": False, "MERGES": 16, "WIDTH": 64},
    ),
]


def compiled(kernel: object, blocks: dict[str, object], dtype: str, arch: int, ones: bool) -> str:
    """The PTX of a kernel; ``ones``: every number is 1, which Triton makes a constant."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, known = {}, dict(blocks)
    for name in kernel.arg_names:
        tensor = INTS.get(name) or FLOATS.get(name)
        if tensor is None and name in ("keys", "x", "merged", "normed", "weight", "bias"):
            tensor = f"*{dtype}"
        if ones and tensor is None and name not in blocks:
            known[name] = 1
        types[name] = "constexpr" if name in known else tensor or "i32"
    source = ASTSource(kernel, types, known)
    target = GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True}).asm["ptx"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # 3.9 warns where it is not said


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("kernel", "blocks"), BLOCKS)
def test_kernels_compile(kernel: object, blocks: dict[str, object], dtype: str, ones: bool) -> None:
    for arch in (80, 90):
        ptx = compiled(kernel, blocks, dtype, arch, ones)
        # Addition in no fixed order, and products of fewer bits than the metric has.
        assert "atom." not in ptx
        assert "red." not in ptx.replace("shared.", "")
        assert "tf32" not in ptx
