"""A warning stands at the line of the user that it is about, not at one of the library."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import tiny
from tome_fx import InputError

pytestmark = [TINY, pytest.mark.cost]


def _assign(fast: Any) -> None:
    fast.r = 1


def _hook(part: nn.Module) -> Any:
    return part.register_forward_hook(lambda *args: None)


def _hooked() -> nn.Module:
    model = tiny()
    _hook(model.blocks)
    return model


class Moody(nn.Module):
    """It runs while it is traced, and not when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            raise RuntimeError("not today")
        return self.body(x)  # type: ignore[no-any-return]


ACTIONS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "transform": (tiny, lambda m: tome_fx.transform(m, 2, min_ratio=9.0), "is not applied"),
    "explain": (tiny, lambda m: tome_fx.explain(m, 2, min_ratio=9.0), "is not applied"),
    "an r": (lambda: tome_fx.transform(tiny(), 0, min_ratio=9.0), _assign, "is not applied"),
    "hooks of a model": (_hooked, lambda m: tome_fx.transform(m, 2), "Hooks on blocks"),
    "hook of a part": (lambda: tome_fx.transform(tiny(), 2), lambda f: _hook(f.norm), "A hook on"),
    "mode of a part": (lambda: tome_fx.transform(tiny(), 2), lambda f: f.norm.train(), "of a part"),
    "no run": (lambda: Moody().eval(), lambda m: tome_fx.transform(m, 2), "could not be compared"),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ACTIONS)
def test_a_warning_names_a_line_of_the_user(name: str) -> None:
    made, action, text = ACTIONS[name]
    subject = made()
    with pytest.warns(tome_fx.ToMeWarning, match=text) as told:
        action(subject)
    assert {Path(warning.filename).name for warning in told} == {Path(__file__).name}


def test_all_warnings_go_one_way() -> None:
    library = Path(tome_fx.__file__).parent
    files = [f for folder in (library, library.parent / "passes") for f in folder.rglob("*.py")]
    callers = {f.name for f in files if "warnings.warn(" in f.read_text(encoding="utf-8")}
    assert callers == {"errors.py"}


def test_torch_logs_nothing_beside_the_error() -> None:
    """What export says of an op that refuses its operands is what the error says."""

    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.cat([piece for piece in x.unbind(1) if piece.shape[0] == 77])

    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(handler)
    try:
        with pytest.raises(InputError, match="expected a non-empty list"):
            tome_fx.transform(Empty(), r=1, example_inputs=torch.randn(2, 3, 4))
    finally:
        log.removeHandler(handler)
    assert [record.getMessage() for record in records] == []
