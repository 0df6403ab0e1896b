"""The one place that says whether a kernel is used."""

from __future__ import annotations

import threading

import pytest
import torch

from tome_fx import ConfigError, kernels
from tome_fx.kernels import choice

HAS = pytest.mark.skipif(choice.importlib.util.find_spec("triton") is None, reason="no Triton")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose every device has kernels."""
    monkeypatch.setattr(choice, "_served", lambda index: not torch.compiler.is_exporting())
    monkeypatch.setattr(choice, "_forced", lambda kind: True)


def test_a_cpu_has_none() -> None:
    assert not kernels.chosen("cpu")
    assert not kernels.can_match(torch.zeros(1, 1, 4, 2), 4)
    assert not kernels.can_merge(torch.zeros(1, 4, 2), None, 1)


def test_a_device_that_is_not_there_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not kernels.chosen("cuda", 0)


@HAS
@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True)])
def test_only_new_devices_have_them(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert kernels.chosen("cuda", 0) is expected
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm calls its devices cuda too
    assert not kernels.chosen("cuda", 0)


@HAS
@pytest.mark.usefixtures("everywhere")
def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (kernels.chosen("cuda", 0), kernels.chosen("cpu")) == (True, False)
    monkeypatch.setenv(choice.VARIABLE, "portable")
    assert not kernels.chosen("cuda", 0)
    with kernels.using("triton"):
        assert kernels.chosen("cuda", 0)
        assert kernels.chosen("cpu")
        with kernels.using("portable"):
            assert not kernels.chosen("cpu")
        assert kernels.chosen("cpu")
    assert not kernels.chosen("cpu")
    monkeypatch.setenv(choice.VARIABLE, "triton")
    assert kernels.chosen("cpu")


@HAS
@pytest.mark.usefixtures("everywhere")
def test_a_mode_is_that_of_its_thread() -> None:
    found = []
    with kernels.using("triton"):
        thread = threading.Thread(target=lambda: found.append(kernels.chosen("cpu")))
        thread.start()
        thread.join()
        assert kernels.chosen("cpu")
    assert found == [False]


def test_an_unknown_mode_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'fast' is not one of 'auto', 'portable', 'triton'"):
        kernels.using("fast").__enter__()
    monkeypatch.setenv(choice.VARIABLE, "cuda")
    with pytest.raises(ConfigError, match="TOME_FX_KERNELS='cuda' is not one of"):
        kernels.chosen("cuda", 0)


@HAS
@pytest.mark.usefixtures("everywhere")
# functorch's own, on its first forward-mode gradient
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_transforms_and_exports_get_plain_ops() -> None:
    seen: list[bool] = []

    def looks(x: torch.Tensor) -> torch.Tensor:
        seen.append(kernels.chosen("cuda", 0))
        return x * 2

    x = torch.ones(3)
    torch.func.vmap(looks)(x)
    torch.func.grad(lambda v: looks(v).sum())(x)
    torch.func.jvp(looks, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        looks(x)
    assert seen == [False] * 4
    looks(x)
    assert seen.pop() is True
    module = torch.nn.Module()
    module.forward = looks  # type: ignore[method-assign]
    seen.clear()
    torch.export.export(module, (x,), strict=False)
    assert seen
    assert not any(seen)


@HAS
@pytest.mark.usefixtures("everywhere")
def test_what_fits() -> None:
    with kernels.using("triton"):
        keys = torch.empty(1, 2, 8, 16, device="meta")
        assert kernels.can_match(keys, 8)
        assert not kernels.can_match(keys, 1)
        assert not kernels.can_match(keys.double(), 8)
        assert not kernels.can_match(keys.expand(1, 2, 8, 16).repeat(1, 1, 1, 65), 8)
        x, size = torch.empty(2, 8, 16, device="meta"), torch.ones(2, 8, device="meta")
        assert kernels.can_merge(x, size, 1)
        assert kernels.can_merge(x.half(), None, 1)
        assert not kernels.can_merge(x, size, 2)
        assert not kernels.can_merge(x[None], size, 1)
        assert not kernels.can_merge(x.double(), size, 1)
        assert not kernels.can_merge(x, size.double(), 1)
        assert not kernels.can_merge(x, size.requires_grad_(), 1)
