"""The kernels through Triton's own compiler, for devices that need not be there."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from tome_fx.kernels import attention, matching, merging, operators

TRITON = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.skipif(
    not TRITON or os.environ.get("TRITON_INTERPRET") == "1", reason="no compiler of Triton"
)

INTS = {"keep": "*i64", "src": "*i64", "dst": "*i64", "partner": "*i32"}
FLOATS = {"unit": "*fp32", "best": "*fp32", "size": "*fp32", "new_size": "*fp32"}
# torch.compile passes numbers in float64, Triton itself in float32.
NUMBERS = ("eps", "factor")


def attend(width: int, keys: int) -> dict[str, object]:
    """Blocks of attention with heads of ``width``, as they are chosen."""
    first, rest = operators.two_blocks(width)
    rows, columns, _ = operators.attend_blocks(keys, first + rest)
    blocks = {"ROWS": rows, "COLUMNS": columns, "FIRST": first, "REST": rest}
    return blocks | {"VALUE_FIRST": first, "VALUE_REST": rest, "EVEN": first + rest == width}


BLOCKS = [
    (matching.unit_kernel, {"ROWS": 16, "WIDTH": 64}),
    (matching.best_kernel, {"ROWS": 64, "COLUMNS": 64, "STEP": 32}),
    (matching.plan_kernel, {"ROWS": 128, "STEP": 32}),
    (merging.merge_kernel, {"SIZED": True, "MERGES": 16, "WIDTH": 1024}),
    (merging.merge_kernel, {"SIZED": False, "MERGES": 1, "WIDTH": 16}),
    (
        merging.merge_norm_kernel,
        {"SIZED": True, "WEIGHT": True, "BIAS": True, "BRANCH": True, "MERGES": 32, "WIDTH": 1024},
    ),
    (
        merging.merge_norm_kernel,
        {"SIZED": False, "WEIGHT": False, "BIAS": False, "BRANCH": False}
        | {"MERGES": 16, "WIDTH": 64},
    ),
    (attention.attend_kernel, attend(64, 197)),
    (attention.attend_kernel, attend(96, 600)),
    (attention.attend_kernel, attend(80, 100)),
]
MERGING = ("keys", "x", "branch", "merged", "normed", "weight", "bias")
VALUES = (*MERGING, "query", "key", "value", "result")


def compiled(
    kernel: object,
    blocks: dict[str, object],
    dtype: str,
    arch: int,
    ones: bool,
    number: str,
    stages: int = 3,
) -> Any:
    """A kernel for a device; ``ones``: every integer is 1, which Triton makes a constant."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, known = {}, dict(blocks)
    for name in kernel.arg_names:
        tensor = INTS.get(name) or FLOATS.get(name)
        if name in NUMBERS:
            tensor = number
        elif name == "bias" and "FIRST" in blocks:
            tensor = "*fp32"  # of attention: a logarithm for each key
        elif tensor is None and name in VALUES:
            tensor = f"*{dtype}"
        if ones and tensor is None and name not in blocks:
            known[name] = 1
        types[name] = "constexpr" if name in known else tensor or "i32"
    source = ASTSource(kernel, types, known)
    target = GPUTarget("cuda", arch, 32)
    options = {"enable_fp_fusion": True, "num_stages": stages}
    return triton.compile(source, target=target, options=options)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # 3.9 warns where it is not said


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("kernel", "blocks"), BLOCKS)
def test_kernels_compile(kernel: object, blocks: dict[str, object], dtype: str, ones: bool) -> None:
    for arch, number in ((80, "fp32"), (90, "fp64")):
        ptx = compiled(kernel, blocks, dtype, arch, ones, number).asm["ptx"]
        # Addition in no fixed order.
        assert "atom." not in ptx
        assert "red." not in ptx.replace("shared.", "")
        # Products of fewer bits than their operands; three of them make up for it.
        products = ptx.count(".tf32.tf32")
        assert (products > 0) == (kernel is matching.best_kernel)
        assert products % 3 == 0


@pytest.mark.parametrize(("width", "keys"), [(64, 600), (128, 600), (160, 600), (256, 100)])
def test_attention_fits_the_shared_memory_of_small_devices(width: int, keys: int) -> None:
    first, rest = operators.two_blocks(width)
    stages = operators.attend_blocks(keys, first + rest)[2]
    kernel, blocks = attention.attend_kernel, attend(width, keys)
    for arch in (80, 90):
        assert (
            compiled(kernel, blocks, "fp16", arch, False, "fp32", stages).metadata.shared
            <= 99 << 10
        )
