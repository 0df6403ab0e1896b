"""Flags that commands share: one and the same in each of them."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import SHORT, TINY, Run
from tests.cli.test_commands import command as command
from tests.cli.test_commands import photograph as photograph
from tome_fx.cli import main
from tome_fx.cli import options as o
from tome_fx.cli.app import app
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import MergeFlags, ModelFlags, ProgramFlags, RunFlags, grouped, told

PAIRS = (
    "def first(metric, r):\n    import torch\n    s = 2 * torch.arange(r)\n    return s, s + 1\n"
)
BRIEF = ("--num-bench-iter", 1, "--num-warm-iter", 0)


def test_a_flag_is_the_same_in_every_command() -> None:
    seen: dict[str, set[str]] = {}
    for info in app.registered_commands:
        assert info.callback is not None
        for name, parameter in inspect.signature(info.callback).parameters.items():
            seen.setdefault(name, set()).add(str(parameter.annotation))
    shared = {name for group in (ModelFlags, MergeFlags, RunFlags) for name in vars(group())}
    assert {name: len(seen[name]) for name in shared} == dict.fromkeys(shared, 1)


def test_a_command_gets_its_groups() -> None:
    got: list[Any] = []

    @grouped(pretrained=None)
    def one(*, model: ModelFlags, merge: MergeFlags, r: o.R = "8") -> None:
        """What it does."""
        got.extend((model, merge, r))

    assert one.__doc__ == "What it does."
    parameters = inspect.signature(one).parameters
    assert (parameters["pretrained"].default, parameters["every"].default) == (None, 1)
    given = {name: parameter.default for name, parameter in parameters.items()}
    one(**given | {"model": "vit", "every": 3})
    assert got == [ModelFlags("vit", None), MergeFlags(every=3), "8"]


def test_a_default_of_no_flag_is_a_mistake() -> None:
    def one(*, model: ModelFlags) -> None:
        """Nothing."""

    with pytest.raises(TypeError, match="one has no flag pretraind"):
        grouped(pretraind=True)(one)


def test_what_is_told_can_be_typed() -> None:
    assert told(ModelFlags("vit", True), MergeFlags()) == ""
    merge = MergeFlags(prop_attn=False, strict=True, every=3, matching="my file.py:one")
    model = ModelFlags("vit", img_size=96, model_kwargs=["depth=2", "qk_norm=True"])
    assert shlex.split(told(model, merge)) == [
        "--img-size", "96", "--model-kwargs", "depth=2", "--model-kwargs", "qk_norm=True",
        "--no-prop-attn", "--matching", "my file.py:one", "--strict", "--every", "3",
    ]  # fmt: skip


def test_autocast() -> None:
    assert RunFlags(amp_dtype="float16").autocast() is None
    assert str(RunFlags(amp=True).autocast()) == "torch.bfloat16"
    assert str(RunFlags(precision="amp", amp_dtype="float16").autocast()) == "torch.float16"
    with pytest.raises(CliError, match="--amp-dtype"):
        RunFlags(amp_dtype="int8").autocast()


def test_options_are_those_of_the_library() -> None:
    assert MergeFlags(align="auto").options().align == "auto"
    assert vars(ProgramFlags().options()) == vars(MergeFlags().options())


def test_every_command_matches_as_it_is_told(
    tmp_path: Path, command: Run, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PAIRS, encoding="utf-8")
    own = (*SHORT, "--r", 8, "--matching", "mine.py:first")
    command("vis", photograph, "-m", TINY, *own, "--tile", 64)
    found = json.loads(command("profile", TINY, *own, *BRIEF, "--every", 2, "--json"))
    assert found["environment"]["flags"].endswith("--matching mine.py:first --every 2")
    assert json.loads(command("export", TINY, *own, "--json"))["schedule"] == [8, 8]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("explain", TINY, "--remerge", "once"), "--remerge once"),
        (("export", TINY, "--attention", "fast"), "--attention fast"),
        (("profile", TINY, "--align", "many"), "--align many"),
        (("vis", "photo.png", "--every", "0"), "photo.png"),
        (("bench", "no_such_model", "--matching", "nowhere.py:f"), "nowhere.py"),
    ],
)
def test_what_is_wrong_is_named_as_it_was_typed(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], says: str
) -> None:
    assert main.run(list(args)) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_recipe_holds_no_matching(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PAIRS, encoding="utf-8")
    args = ["tune", TINY, ".", "--target-speedup", "1.2", "--recipe", "best.json"]
    assert main.run([*args, "--matching", "mine.py:first"]) == 2
    assert "--recipe with --matching: a recipe holds no code" in capsys.readouterr().err
