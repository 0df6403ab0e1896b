"""Models by name, and their weights."""

from __future__ import annotations

import pickle
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tome_fx.cli import weights
from tome_fx.cli.failure import CliError
from tome_fx.cli.models import Loaded, ModelSpec, load

TINY = "test_vit"


def load_tiny(**options: Any) -> Loaded:
    return load(ModelSpec(TINY, **options))


def failure(name: str = TINY, **options: Any) -> str:
    with pytest.raises(CliError) as caught:
        load(ModelSpec(name, **options))
    return str(caught.value)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing in the cache."""
    create = timm.create_model

    def refuse(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("not to be\nfound")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(weights, "reachable", lambda url: False)


def test_random_weights_are_the_same_each_time() -> None:
    one, other = load_tiny(), load_tiny()
    assert one.weights == "random (seed 0)"
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)
    )
    assert not one.model.training


def test_the_example_has_the_size_that_was_asked_for() -> None:
    found = load_tiny(img_size=96, in_chans=1, num_classes=7, model_kwargs=["depth=2"])
    x = found.example(3)
    assert x.shape == (3, 1, 96, 96)
    assert found.model(x).shape == (3, 7)
    assert torch.equal(x, found.example(3))


def test_precision_is_that_of_weights_and_example() -> None:
    found = load_tiny(precision="bfloat16")
    assert found.example().dtype == next(found.model.parameters()).dtype == torch.bfloat16
    assert load_tiny(precision="amp").dtype == torch.float32
    assert "did you mean bfloat16" in failure(precision="bfloat")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("vit_base_patch16_2244", "vit_base_patch16_224"),
        ("tests_vit", "test_vit"),
        (f"{TINY}.no_such_tag", "r160_in1k"),
    ],
)
def test_unknown_names_are_answered_with_the_closest(name: str, close: str) -> None:
    assert close in failure(name)


def test_options_that_a_model_does_not_take_are_named() -> None:
    assert failure("resnet18", img_size=64) == "resnet18 takes no --img-size"
    assert failure(model_kwargs=["foo=1"]) == f"{TINY} takes no --model-kwargs foo"


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", "meta"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    assert failure(device=name).startswith(f"--device {name}")


@pytest.mark.usefixtures("no_hub")
def test_pretrained_weights_out_of_reach() -> None:
    assert load_tiny(pretrained=None).weights == "random (seed 0), no others in reach"
    text = failure(pretrained=True)
    assert text.startswith(f"{TINY}: no pretrained weights (--no-pretrained takes random ones")
    assert text.endswith("your own): not to be found")


def test_an_unreachable_hub_costs_little_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes the connection, never answers
        start = time.perf_counter()
        assert not weights.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.5)
        assert time.perf_counter() - start < 2
    assert not weights.reachable("no url", patience=0.5)


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return timm.create_model(TINY).state_dict()


@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "module.", "state_dict_ema"])
def test_checkpoints_are_unwrapped(tmp_path: Path, wrap: str) -> None:
    wanted = state()
    content: Any = wanted
    if wrap.endswith("."):
        content = {wrap + key: value for key, value in wanted.items()}
    elif wrap:
        content = {wrap: wanted, "epoch": 3}
    if wrap == "state_dict_ema":
        content["state_dict"] = {key: value + 1 for key, value in wanted.items()}
    path = tmp_path / "a.pth"
    torch.save(content, path)
    found = load_tiny(checkpoint=path)
    assert all(torch.equal(wanted[key], value) for key, value in found.model.state_dict().items())
    inside = "" if wrap in ("", "module.") else f", {wrap}"
    assert found.weights == f"checkpoint {path}{inside}"


def test_safetensors_are_read(tmp_path: Path) -> None:
    wanted, path = state(), tmp_path / "a.safetensors"
    save_file(wanted, path)
    found = load_tiny(checkpoint=path).model.state_dict()
    assert all(torch.equal(wanted[key], value) for key, value in found.items())


class Trap:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("writer", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, writer: Any) -> None:
    path, mark = tmp_path / "a.pth", tmp_path / "mark"
    writer({"state_dict": Trap(mark)}, path)
    assert "code in a file is never run" in failure(checkpoint=path)
    assert not mark.exists()


def test_checkpoints_that_do_not_fit_say_where(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    content = state()
    del content["norm.weight"]
    content["extra"] = torch.zeros(1)
    torch.save(content, path)
    text = failure(checkpoint=path)
    assert "lacks norm.weight" in text
    assert "has unknown extra" in text
    torch.save(state() | {"norm.weight": torch.zeros(3)}, path)
    assert "norm.weight is (3,), the model's is (64,)" in failure(checkpoint=path)
    torch.save({"epoch": 3}, path)
    assert "holds no weights" in failure(checkpoint=path)
    assert "no such file" in failure(checkpoint=tmp_path / "none.pth")
    broken = tmp_path / "b.safetensors"
    broken.write_bytes(b"nothing")
    assert str(broken) in failure(checkpoint=broken)
