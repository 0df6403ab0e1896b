"""Nothing that was compiled, or told, stays from one test to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo

import tome_fx.compiling.backend as compiling


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    compiling._TOLD.clear()
    yield
    torch._dynamo.reset()
