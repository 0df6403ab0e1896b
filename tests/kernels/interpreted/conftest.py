"""These tests are for a process that can run kernels; elsewhere they are not collected."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

from tome_fx import kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with kernels.using("triton"):
        yield
