"""What flags mean."""

from __future__ import annotations

from typing import Any

import pytest

from tome_fx.cli import options as o
from tome_fx.cli.failure import CliError, missing_extra, one_line
from tome_fx.cli.models import parse_kwargs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("0", 0),
        ("-3", -3),
        ("0.05", 0.05),
        ("16:-1", (16, -1.0)),
        ("8:0.5", (8, 0.5)),
        ("[16,16,8]", [16, 16, 8]),
        ("[]", []),
    ],
)
def test_r_is_read(text: str, value: Any) -> None:
    found = o.parse_r(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["", "x", "8,13", "1:", ":1", "0.5:1", "[1,2", "[0.5]", "[true]"])
def test_a_wrong_r_is_quoted(text: str) -> None:
    with pytest.raises(CliError, match="--r"):
        o.parse_r(text)


@pytest.mark.parametrize(
    "text", ["16", "0.05", "16:-1", "[16,16,8]", "0.12345678", "16:-0.1234567"]
)
def test_r_is_shown_as_it_is_written(text: str) -> None:
    assert o.show_r(o.parse_r(text)) == text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8", [8]),
        ("8,13,16", [8, 13, 16]),
        ("8,8,0.1", [8, 0.1]),
        ("8,16:-1,[4,4,0]", [8, (16, -1.0), [4, 4, 0]]),
        ("[4,4],[2,2]", [[4, 4], [2, 2]]),
    ],
)
def test_several_r_are_read(text: str, values: list[Any]) -> None:
    assert o.parse_rs(text) == values


@pytest.mark.parametrize("text", ["", ",", "8,,x", "[4,4", "8 13"])
def test_wrong_lists_of_r_are_refused(text: str) -> None:
    with pytest.raises(CliError, match="--r"):
        o.parse_rs(text)


def test_layers() -> None:
    assert o.parse_layers("4,8,12") == [4, 8, 12]
    assert o.choose_layers(o.parse_layers("auto"), 12) == [4, 8, 12]
    assert o.choose_layers([], 1) == [1]
    assert o.choose_layers([2, 1], 2) == [2, 1]


@pytest.mark.parametrize("text", ["", "a", "4;8", "1.5"])
def test_wrong_layers_are_quoted(text: str) -> None:
    with pytest.raises(CliError, match="--layers"):
        o.parse_layers(text)


@pytest.mark.parametrize("layer", [0, -1, 13])
def test_layers_that_are_not_there_are_refused(layer: int) -> None:
    with pytest.raises(CliError, match="layers 1 to 12"):
        o.choose_layers([1, layer], 12)


def test_a_model_is_named_once() -> None:
    assert o.model_name("a", None) == o.model_name(None, "a") == o.model_name("a", "a") == "a"
    assert o.model_name(None, None, "b") == "b"
    with pytest.raises(CliError, match="two models"):
        o.model_name("a", "b")
    with pytest.raises(CliError, match="no model"):
        o.model_name(None, None)


def test_model_kwargs_are_literals_or_text() -> None:
    pairs = ["depth=3", "qk_norm=True", "norm_layer=rmsnorm", "a=(1, 2)"]
    assert parse_kwargs(pairs) == {
        "depth": 3,
        "qk_norm": True,
        "norm_layer": "rmsnorm",
        "a": (1, 2),
    }
    with pytest.raises(CliError, match="KEY=VALUE"):
        parse_kwargs(["depth"])


def test_errors_take_one_line() -> None:
    assert one_line("a\n  b\tc ") == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("x" * 500) == "x" * 397 + "..."


@pytest.mark.parametrize("name", ["typer", "rich.console", "timm", "PIL.Image", "skimage"])
def test_a_missing_extra_names_the_command_that_installs_it(name: str) -> None:
    line = missing_extra(ModuleNotFoundError("no", name=name))
    assert line is not None
    assert line.endswith('pip install "tome_fx[cli]"')


def test_other_missing_modules_are_not_called_extras() -> None:
    assert missing_extra(ModuleNotFoundError("no", name="tome_fx.nothing")) is None


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ("", ""),
        ("--torchcompile", "--torchcompile=inductor"),
        ("--torchcompile --amp", "--torchcompile=inductor --amp"),
        ("--torchcompile eager --amp", "--torchcompile eager --amp"),
        ("a --torchcompile=eager", "a --torchcompile=eager"),
        ("bench --suite", "bench --suite=all"),
        ("bench --suite --fresh", "bench --suite=all --fresh"),
        ("bench --suite r,batch --fresh", "bench --suite r,batch --fresh"),
    ],
)
def test_some_flags_may_go_without_their_value(args: str, found: str) -> None:
    assert o.with_backend(args.split()) == found.split()


def test_align_is_read() -> None:
    assert o.parse_align("8") == 8
    assert o.parse_align("auto") == "auto"
    with pytest.raises(CliError, match="--align many: a whole number, or auto"):
        o.parse_align("many")
