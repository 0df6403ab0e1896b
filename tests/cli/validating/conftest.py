"""Pictures in class folders, and the command run in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.validating.common import COUNTS, MODEL, Run, paint
from tests.threads import one_thread as one_thread
from tome_fx.cli import evaluate, main, merging
from tome_fx.cli.models import Loaded
from tome_fx.measuring.kept import weights_of


@pytest.fixture(scope="package", autouse=True)
def _captured_once() -> Iterator[None]:
    """A capture takes a second: runs with the same model and the same r share it."""
    real, kept = evaluate.contenders, {}

    def contenders(loaded: Loaded, rs: Mapping[str, Any], options: merging.MergeOptions) -> Any:
        weights = weights_of(loaded.model)
        key = (weights, loaded.config.input_size, repr(rs), options)
        if key not in kept:
            kept[key] = real(loaded, rs, options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "contenders", contenders)
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class folders below `val`, as ImageNet comes."""
    for label, count in enumerate(COUNTS):
        for index in range(count):
            paint(tmp_path / "data" / "val" / f"n{label}" / f"{index}.png", 5 * label + index)
    return tmp_path / "data"


@pytest.fixture
def validate(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command, which must succeed, and return its stdout."""

    def run(*args: object) -> str:
        code = main.run(["validate", *map(str, args), *MODEL])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run
