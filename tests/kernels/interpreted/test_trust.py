"""Kernels that fail on a device, or do something else there, are not used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreted.common import DEVICE
from tome_fx import kernels, trust
from tome_fx.errors import ToMeWarning
from tome_fx.kernels import choice

PLACE = torch.device(DEVICE)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    trust._agrees.cache_clear()
    yield
    trust._agrees.cache_clear()
    choice._DISTRUSTED.clear()


def test_kernels_that_agree_are_used() -> None:
    assert trust.has_kernels(PLACE)
    assert kernels.chosen(DEVICE)


@pytest.mark.few(1)
@pytest.mark.parametrize("how", ["differs", "fails"])
def test_others_are_not(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.ops.tome_fx.match

    def broken(*args: Any) -> list[Tensor]:
        if how == "fails":
            raise RuntimeError("no such instruction\nand more")
        return [index.flip(1) for index in right(*args)]

    monkeypatch.setattr(torch.ops.tome_fx, "match", broken)
    text = "no such instruction" if how == "fails" else "other results than plain ops"
    with pytest.warns(ToMeWarning, match=f"not used on {DEVICE}.*: .*{text}"):
        assert not trust.has_kernels(PLACE)
    assert not kernels.chosen(DEVICE)
    assert not trust.has_kernels(PLACE)  # told once


def test_attention_is_seen_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.ops.tome_fx.attend
    monkeypatch.setattr(torch.ops.tome_fx, "attend", lambda *args: right(*args) + 0.1)
    with pytest.warns(ToMeWarning, match="other results than plain ops"):
        assert not trust.has_kernels(PLACE)
    assert not kernels.has_attention(PLACE, torch.float16, 64)


def test_the_check_is_not_vacuous() -> None:
    with kernels.using("portable"):
        _, src, dst, merged, normed, size, level, *rest = trust._steps(PLACE)
    assert src.numel() == dst.numel() == 18
    assert bool((size > 1).any())
    assert bool((level > 0).any())
    assert len(dst.unique()) > 2
    assert not torch.allclose(merged, normed)
    plans, (first, normed, sizes, _, *attended) = rest[4:10], rest[10:]
    for _, pairs, slots in (plans[:3], plans[3:]):
        assert pairs.shape == slots.shape == (2, 20)
        assert bool((pairs[0] != pairs[1]).any())
    assert len(attended) == 3
    assert {t.dtype for t in (first, normed, *attended)} == {torch.float16}
    assert bool((sizes > 1).any())
    assert all(float(result.std()) > 0.1 for result in attended)
