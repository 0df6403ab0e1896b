"""A transform saved as JSON and made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tome_fx
from tests.rules.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


@pytest.mark.few(2)
@pytest.mark.parametrize("r", [2, 0, (2, -1.0), [3, 1], 0.25])
def test_a_recipe_makes_the_same_module(tmp_path: Path, r: Any) -> None:
    model, x = tiny(), images()
    options: dict[str, Any] = {"prop_attn": False, "rounding": "exact", "scatter": False}
    fast = tome_fx.transform(model, r, **options)
    path = tome_fx.save_recipe(fast, tmp_path / "fast.json")
    again = tome_fx.apply_recipe(model, path)
    assert again.settings == fast.settings
    assert type(again.r) is type(r)
    assert torch.equal(again(x), fast(x))


def test_a_compiled_result_is_the_result(tmp_path: Path) -> None:
    fast = tome_fx.transform(tiny(), 2)
    compiled: Any = torch.compile(fast, backend="eager")
    path = tome_fx.save_recipe(compiled, tmp_path / "recipe.json")
    assert tome_fx.apply_recipe(tiny(), path).schedule == fast.schedule


def test_weights_travel_as_safetensors(tmp_path: Path) -> None:
    model, other, x = tiny(), tiny(), images()
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(0.5)
    kept = {name: value.clone() for name, value in other.state_dict().items()}
    fast = tome_fx.transform(model, 2)
    path = tome_fx.save_recipe(fast, tmp_path / "fast.json", weights=True)
    assert (tmp_path / "fast.safetensors").is_file()
    again = tome_fx.apply_recipe(other, path)
    assert torch.equal(again(x), fast(x))
    assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())


def test_inputs_are_those_of_the_recipe(tmp_path: Path) -> None:
    """A model that does not say its size is captured with the size in the file."""
    model = torch.nn.Sequential(tiny(img_size=64))
    model[0].pretrained_cfg = {}  # type: ignore[assignment]
    fast = tome_fx.transform(model, 2, example_inputs=images(size=64))
    path = tome_fx.save_recipe(fast, tmp_path / "fast.json")
    assert json.loads(path.read_text())["inputs"] == [{"shape": [2, 3, 64, 64], "dtype": "float32"}]
    assert tome_fx.apply_recipe(model, path).schedule == (2, 2)
    assert tome_fx.apply_recipe(model.double(), path)(images(size=64).double()).shape == (2, 10)


def test_another_model_is_named(tmp_path: Path) -> None:
    path = tome_fx.save_recipe(tome_fx.transform(tiny(), 2), tmp_path / "fast.json")
    with pytest.raises(tome_fx.InputError, match=r"merges \[2, 2\].*would merge \[2, 2, 2\]"):
        tome_fx.apply_recipe(tiny(depth=3), path)
    with pytest.raises(
        tome_fx.InputError, match=r"fast.json was saved .* rejects .* height \(48\)"
    ):
        tome_fx.apply_recipe(tiny(img_size=64), path)
    with pytest.raises(tome_fx.InputError, match=r"^The model itself rejects"):
        tome_fx.apply_recipe(tiny(img_size=64), path, example_inputs=images())


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "other"}, "is no recipe"),
        ({"version": 2}, "version 2"),
        ({"settings": {"prop_atn": True}}, "Did you mean prop_attn"),
        ({"setings": {}}, "Did you mean settings"),
        ({"r": {"constant": -3}}, "r=-3"),
        ({"r": 16}, "not one of constant"),
        ({"settings": {"remerge": "now"}}, "remerge='now'"),
        ({"inputs": [{"shape": [3, 48, 48], "dtype": "float31"}]}, "float31"),
        ({"weights": "../elsewhere.safetensors"}, "beside it"),
        ({"weights": ".."}, "beside it"),
        ({"r": {"constant": 0.1}}, "not one of constant"),
        ({"r": {"share": 2}}, "not one of constant"),
        ({"settings": {"every": 0}}, "fast.json: every=0"),
        ({"inputs": [{"shape": [2**62, 48], "dtype": "float32"}]}, r"dtypes \([^\n]*\)\.$"),
    ],
)
def test_bad_recipes(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = tome_fx.save_recipe(tome_fx.transform(tiny(), 2), tmp_path / "fast.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(tome_fx.ConfigError, match=text):
        tome_fx.apply_recipe(tiny(), path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(tome_fx.ConfigError, match="cannot be read"):
        tome_fx.apply_recipe(tiny(), tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(tome_fx.ConfigError, match="is not JSON"):
        tome_fx.apply_recipe(tiny(), tmp_path / "bad.json")
    with pytest.raises(TypeError, match="result of transform"):
        tome_fx.save_recipe(tiny(), tmp_path / "x.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [False, True])
def test_a_place_that_takes_no_file(tmp_path: Path, weights: bool) -> None:
    fast = tome_fx.transform(tiny(), 2)
    for path in (tmp_path / "none" / "x.json", tmp_path):
        with pytest.raises(tome_fx.ConfigError, match="cannot be written"):
            tome_fx.save_recipe(fast, path, weights=weights)
    with pytest.raises(tome_fx.ConfigError, match="the name of its weights"):
        tome_fx.save_recipe(fast, tmp_path / "x.safetensors", weights=True)
    with pytest.raises(TypeError, match="a path"):
        tome_fx.save_recipe(fast, None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["", ".", "a\0b.json"])
def test_names_of_no_file(name: str) -> None:
    for call in (
        lambda: tome_fx.save_recipe(tome_fx.transform(tiny(), 2), name),
        lambda: tome_fx.apply_recipe(tiny(), name),
    ):
        with pytest.raises(tome_fx.ConfigError, match="names no file"):
            call()


def test_each_recipe_has_weights_of_its_own(tmp_path: Path) -> None:
    one, other, x = tiny(), tiny(), images()
    with torch.no_grad():
        other.head.weight.mul_(0.5)
    results = {name: tome_fx.transform(m, 2) for name, m in (("vit.v1", one), ("vit.v2", other))}
    for name, fast in results.items():
        tome_fx.save_recipe(fast, tmp_path / name, weights=True)
    for name, fast in results.items():
        assert torch.equal(tome_fx.apply_recipe(tiny(), tmp_path / name)(x), fast(x))


def test_what_stood_there_stays_where_weights_cannot_be_written(tmp_path: Path) -> None:
    fast, path = tome_fx.transform(tiny(), 2), tmp_path / "fast.json"
    tome_fx.save_recipe(fast, path, weights=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "other.safetensors").mkdir()
    with pytest.raises(tome_fx.ConfigError, match=r"other.safetensors cannot .* it is a folder"):
        tome_fx.save_recipe(fast, tmp_path / "other.json", weights=True)
    (tmp_path / "other.safetensors").rmdir()
    with pytest.raises(tome_fx.ConfigError, match="no values for cls_token"):
        tome_fx.save_recipe(tome_fx.transform(tiny().to("meta"), 1), path, weights=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(tome_fx.ConfigError, match="no values for cls_token"):
        tome_fx.apply_recipe(tiny().to("meta"), path)


def test_weights_come_before_what_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the last step fails does a recipe name weights that are not there."""
    path, replace = tmp_path / "fast.json", Path.replace

    def failing(new: Path, goal: Path) -> Path:
        if goal.name == failed:
            raise PermissionError(1, "not today", str(new), None, str(goal))
        return replace(new, goal)

    monkeypatch.setattr(Path, "replace", failing)
    fast = tome_fx.transform(tiny(), 2)
    for failed, left in (("fast.safetensors", []), ("fast.json", ["fast.safetensors"])):
        with pytest.raises(tome_fx.ConfigError, match=f"{failed} cannot be written: not today"):
            tome_fx.save_recipe(fast, path, weights=True)
        assert [file.name for file in tmp_path.iterdir()] == left


def test_errors_of_the_user_s_rules_do_not_blame_the_recipe(tmp_path: Path) -> None:
    path = tome_fx.save_recipe(tome_fx.transform(tiny(), 2), tmp_path / "fast.json")
    rule: Any = lambda context: None  # noqa: E731
    with pytest.raises(tome_fx.ConfigError, match=r"^The rule for aten.gelu returned None"):
        tome_fx.apply_recipe(tiny(), path, rules={"aten.gelu": rule})


@pytest.mark.parametrize("weights", [False, True])
def test_a_recipe_of_an_exported_program(tmp_path: Path, weights: bool) -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(tiny(), (images(2),), dynamic_shapes=({0: batch},))
    fast = tome_fx.transform(program, 2)
    path = tome_fx.save_recipe(fast, tmp_path / "x.json", weights=weights)
    again = tome_fx.apply_recipe(program, path)
    assert again.schedule == fast.schedule == (2, 2)
    assert torch.equal(again(images(3)), fast(images(3)))
    with pytest.raises(TypeError, match="takes what transform takes, not str"):
        tome_fx.apply_recipe("vit", path)  # type: ignore[arg-type]


def test_what_was_not_looked_at_when_it_was_saved_is_not_now(tmp_path: Path) -> None:
    path = tome_fx.save_recipe(tome_fx.transform(tiny(), 2), tmp_path / "x.json")
    path.write_text(path.read_text().replace('"min_speedup": 1.0', '"min_speedup": 1.2'))
    assert tome_fx.apply_recipe(tiny(), path).schedule == (2, 2)


def test_weights_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tome_fx.save_recipe(tome_fx.transform(tiny(), 2), tmp_path / "fast.json", weights=True)
    other = tiny(embed_dim=64)
    with pytest.raises(tome_fx.InputError, match="do not fit"):
        tome_fx.apply_recipe(other, path)
    weights = tmp_path / "fast.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(tome_fx.ConfigError, match=r"fast.safetensors cannot be read"):
        tome_fx.apply_recipe(tiny(), path)
    weights.unlink()
    with pytest.raises(tome_fx.ConfigError, match=r"fast.safetensors cannot be read"):
        tome_fx.apply_recipe(tiny(), path)


def test_a_recipe_is_for_a_model(tmp_path: Path) -> None:
    path = tome_fx.save_recipe(tome_fx.transform(tiny(), 2), tmp_path / "fast.json")
    with pytest.raises(TypeError, match="not NoneType"):
        tome_fx.apply_recipe(None, path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a path"):
        tome_fx.apply_recipe(tiny(), 5)  # type: ignore[arg-type]
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(tome_fx.ConfigError, match="is not JSON"):
        tome_fx.apply_recipe(tiny(), tmp_path / "deep.json")


def test_rules_are_code_and_not_saved(tmp_path: Path) -> None:
    rule: Any = print
    fast = tome_fx.transform(tiny(), 2, rules=[("aten.erfinv", rule)])
    with pytest.raises(tome_fx.ConfigError, match=r"rules for aten\.erfinv\. That is code"):
        tome_fx.save_recipe(fast, tmp_path / "x.json")
