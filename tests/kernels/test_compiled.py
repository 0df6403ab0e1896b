"""The kernels through Triton's own compiler, for devices that need not be there."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

import pytest

from tests.kernels.descriptors import wrong_descriptors
from tome_fx.kernels import attention, blocks, matching, merging

TRITON = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.skipif(
    not TRITON or os.environ.get("TRITON_INTERPRET") == "1", reason="no compiler of Triton"
)

INTS = {"keep": "*i64", "src": "*i64", "dst": "*i64", "partner": "*i32"}
HALVES = {"high": "*fp16", "low": "*fp16"}
FLOATS = {"best": "*fp32", "size": "*fp32", "new_size": "*fp32", "level": "*fp32"}
# torch.compile passes numbers in float64, Triton itself in float32.
NUMBERS = ("eps", "factor")


BLOCKS = [
    (matching.unit_kernel, blocks.unit_blocks(64)),
    (matching.unit_kernel, blocks.unit_blocks(80)),
    (matching.pairs_kernel, blocks.match_blocks(98, 64)),
    (matching.pairs_kernel, blocks.match_blocks(50, 16)),
    (matching.pairs_kernel, blocks.match_blocks(98, 80)),
    (matching.pairs_kernel, blocks.match_blocks(288, 64)),
    (matching.pairs_kernel, blocks.match_blocks(288, 128)),
    (matching.plan_kernel, blocks.plan_blocks(288)),
    (merging.merge_kernel, {"SIZED": True} | blocks.merge_blocks(768, 16)),
    (merging.merge_kernel, {"SIZED": False} | blocks.merge_blocks(16, 0)),
    (
        merging.merge_norm_kernel,
        {"SIZED": True, "WEIGHT": True, "BIAS": True, "BRANCH": True}
        | blocks.merge_blocks(1280, 40),
    ),
    (
        merging.merge_norm_kernel,
        {"SIZED": False, "WEIGHT": False, "BIAS": False, "BRANCH": False}
        | blocks.merge_blocks(100, 13),
    ),
    (attention.attend_kernel, blocks.attend_blocks(197, 64, 64)),
    (attention.attend_kernel, blocks.attend_blocks(600, 96, 96)),
    (attention.attend_kernel, blocks.attend_blocks(100, 80, 72)),
]
MERGING = ("keys", "x", "branch", "merged", "normed", "weight", "bias")
VALUES = (*MERGING, "query", "key", "value", "result")


def compiled(
    kernel: object, known: dict[str, object], dtype: str, arch: int, ones: bool, number: str,
    packed: bool = False,
) -> Any:  # fmt: skip
    """A kernel for a device; ``ones``: every integer is 1, which Triton makes a constant.

    ``packed``: channels lie side by side, and rows begin at multiples of 16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {key: value for key, value in known.items() if key.startswith("num_")}
    constants = {key: value for key, value in known.items() if key not in options}
    types = {}
    for name in kernel.arg_names:
        tensor = INTS.get(name) or HALVES.get(name) or FLOATS.get(name)
        if name in NUMBERS:
            tensor = number
        elif name == "bias" and "VALUE_FIRST" in known:
            tensor = "*fp32"  # of attention: a logarithm for each key
        elif tensor is None and name in VALUES:
            tensor = f"*{dtype}"
        beside = packed and name.endswith("_c")
        if (ones or beside) and tensor is None and name not in known:
            constants[name] = 1
        types[name] = "constexpr" if name in constants else tensor or "i32"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if packed and (types[name][0] == "*" or name.endswith(("_b", "_h", "_n", "width")))
    }
    source = ASTSource(kernel, types, constants, aligned)
    target = GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True} | options)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # 3.9 warns where it is not said


def dtypes(kernel: object) -> tuple[str, ...]:
    """Those that a kernel is chosen for."""
    return ("bf16", "fp16") if kernel is attention.attend_kernel else ("bf16", "fp16", "fp32")


@pytest.mark.few(1)
@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize(
    ("kernel", "known", "dtype"),
    [(kernel, known, dtype) for kernel, known in BLOCKS for dtype in dtypes(kernel)],
)
def test_kernels_compile(kernel: object, known: dict[str, object], dtype: str, ones: bool) -> None:
    for arch, number in ((80, "fp32"), (90, "fp64")):
        found = compiled(kernel, known, dtype, arch, ones, number)
        ptx = found.asm["ptx"]
        # Addition in no fixed order.
        assert "atom." not in ptx
        assert "red." not in ptx.replace("shared.", "")
        # Products of fewer bits than their operands.
        assert ".tf32" not in ptx
        if kernel is not attention.attend_kernel:  # which is for halves, see below
            assert found.metadata.shared <= 99 << 10


@pytest.mark.parametrize("left", [98, 288])
@pytest.mark.parametrize("width", [32, 64, 80])
def test_scores_are_three_products_of_halves_summed_in_float32(left: int, width: int) -> None:
    known = blocks.match_blocks(left, width)
    ampere, hopper = (
        compiled(matching.pairs_kernel, known, "bf16", arch, False, "fp32").asm["ptx"]
        for arch in (80, 90)
    )
    for products in (ampere.count(".f32.f16.f16.f32"), hopper.count(".f32.f16.f16 ")):
        assert products > 0
        assert products % 3 == 0


@pytest.mark.parametrize(
    ("width", "keys"), [(64, 600), (80, 600), (128, 600), (160, 600), (256, 100)]
)
def test_attention_fits_the_shared_memory_of_each_device(width: int, keys: int) -> None:
    kernel, known = attention.attend_kernel, blocks.attend_blocks(keys, width, width)
    for arch in (80, 90):
        assert compiled(kernel, known, "fp16", arch, False, "fp32").metadata.shared <= 99 << 10
    # Where rows can be fetched ahead they are, and only large devices have more.
    for arch, most in ((80, 99), (86, 99), (89, 99), (90, 227)):
        found = compiled(kernel, known, "fp16", arch, False, "fp32", packed=True)
        assert found.metadata.shared <= most << 10


WIDTHS = [(20, 32), (32, 64), (64, 32), (64, 64), (64, 96), (80, 80), (128, 20), (160, 96)]
PRODUCTS = [
    *((attention.attend_kernel, blocks.attend_blocks(600, *widths)) for widths in WIDTHS),
    *((matching.pairs_kernel, blocks.match_blocks(98, width)) for width in (16, 64, 80)),
    *((matching.pairs_kernel, blocks.match_blocks(288, width)) for width in (32, 64, 128)),
]


EXTENTS = (("FIRST", "REST"), ("VALUE_FIRST", "VALUE_REST"))


@pytest.mark.few(3)
@pytest.mark.parametrize(("kernel", "known"), PRODUCTS)
def test_products_read_what_is_theirs(kernel: object, known: dict[str, object]) -> None:
    sass = compiled(kernel, known, "bf16", 90, False, "fp64", packed=True).asm["sass"]
    count, wrong = wrong_descriptors(sass)
    assert count == sass.count("HGMMA") + len(re.findall(r"HGMMA\S* R\w+, gdesc", sass)) > 0
    assert not wrong


@pytest.mark.parametrize("width", [1, 16, 20, 32, 33, 64, 80, 96, 128, 160, 200, 256])
def test_blocks_of_attention_have_32_channels_all_of_them_or_none(width: int) -> None:
    for value_width in range(1, 257):
        known = blocks.attend_blocks(600, width, value_width)
        key, value = (known[name] + known[rest] for name, rest in EXTENTS)
        assert key >= width
        assert value >= value_width
        extents = {known[name] for pair in EXTENTS for name in pair} - {0}
        assert extents == {32} or min(extents) >= 64


def test_a_descriptor_of_something_else_is_seen() -> None:
    good = """
        USGXT.U32 UR6, UR4, 0xe;
        UIADD3.X UR7, UR4, 0x40000040, URZ, UP0, !UPT;
        UMOV UR7, 0x40000040;
        UMOV UR5, UR7;
        UMOV UR4, UR6;
        UIADD3.64 UR10, UR6, 0x2, URZ;
        HGMMA.64x64x16.F32 R24, gdesc[UR4], RZ, !UPT;
        HGMMA.64x64x16.F32 R24, R72, gdesc[UR8].tnspB, R24;"""
    assert wrong_descriptors(good) == (3, [])
    other = good.replace("UMOV UR7, 0x40000040", "UMOV UR7, 0xc0000060")
    assert len(wrong_descriptors(other)[1]) == 3
    elsewhere = good.replace("UMOV UR4, UR6", "UIADD3 UR4, UP1, UR12, 0x40, URZ")
    assert len(wrong_descriptors(elsewhere)[1]) == 1
