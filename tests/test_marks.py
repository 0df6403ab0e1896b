"""Programs that were made of a result are known for what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

import tome_fx
import tome_fx.compiling.backend as compiling
from tests.compiling.common import backend, listening
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


@pytest.mark.few(1)
@pytest.mark.parametrize("as_module", [False, True])
def test_an_exported_result_is_refused(tmp_path: Path, as_module: bool) -> None:
    exported = torch.export.export(tome_fx.transform(tiny(), [2, 1]), (images(),))
    torch.export.save(exported, tmp_path / "fast.pt2")
    for program in (exported, torch.export.load(tmp_path / "fast.pt2")):
        given: Any = program.module() if as_module else program
        with pytest.raises(tome_fx.AlreadyTransformedError, match=r"r=\[2, 1\].*Transform the ori"):
            tome_fx.transform(given, 2, example_inputs=images() if as_module else None)


@pytest.mark.parametrize("around", [False, True])
def test_so_is_one_that_was_exported_strictly_or_in_a_wrapper(around: bool) -> None:
    fast = tome_fx.transform(tiny(), 2)
    model = nn.Sequential(fast, nn.Linear(10, 3)).eval() if around else fast
    exported = torch.export.export(model, (images(),), strict=not around)
    with pytest.raises(tome_fx.AlreadyTransformedError, match="merges already"):
        tome_fx.transform(exported, 2)


@pytest.mark.few(1)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_backend_merges_a_result_without_merges(dynamic: bool) -> None:
    torch._dynamo.reset()
    fast, chosen = tome_fx.transform(tiny(), 0), backend()
    _, told = listening(torch.compile(fast, backend=chosen, dynamic=dynamic), images())
    assert "already" not in told
    assert [report.schedule for report in chosen.reports] == [(2, 2)]


def test_without_merges_it_is_a_program_like_others() -> None:
    exported = torch.export.export(tome_fx.transform(tiny(), 0), (images(),))
    assert tome_fx.transform(exported, 2).schedule == (2, 2)


@pytest.mark.parametrize("around", [False, True])
def test_the_backend_merges_no_second_time(around: bool) -> None:
    torch._dynamo.reset()
    compiling._TOLD.clear()
    fast, chosen = tome_fx.transform(tiny(), 2), backend()
    model = nn.Sequential(fast, nn.Linear(10, 3)).eval() if around else fast
    result, told = listening(torch.compile(model, backend=chosen), images())
    assert "was transformed: it merges already" in told
    torch.testing.assert_close(result, model(images()))
    assert not chosen.reports


@pytest.mark.parametrize(
    "kind", [nn.DataParallel, lambda fast: torch.compile(fast, backend="eager")]
)
def test_a_result_in_a_wrapper_explains_itself(kind: Any) -> None:
    fast = tome_fx.transform(tiny(), 2)
    assert tome_fx.explain(kind(fast)) == fast.report
