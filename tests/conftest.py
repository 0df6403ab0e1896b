"""What every test stands on: hypothesis profiles, threads, skips for what is not there."""

from __future__ import annotations

import gc
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Read once, when torch first asks for it. By AMX oneDNN computes convolutions of bfloat16 with four
# channels or more and patches of 16 wrongly (torch 2.15): off by more than the values themselves.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import pytest
import torch

from tests import profiles
from tome_fx import pipeline

profiles.register()
# One of several test processes has one core, and so has what it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def missing_for_compile() -> str | None:
    """What torch.compile needs on a CPU and does not find here, or None."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in names):
        return "no C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python headers"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Who names tests wants them whole.
    if not config.option.keyword and not any("::" in arg for arg in config.args):
        left_out = profiles.left_out(items)
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    missing = {
        "compiler": missing_for_compile(),
        "cuda": None if torch.cuda.is_available() else "no CUDA device",
    }
    for item in items:
        for name, reason in missing.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Graphs are many small objects: else a fifth of the time goes into looking for garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000)


@pytest.fixture(autouse=True)
def _worth_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models of a few tokens save nothing; tests are about more than that, but for a few."""
    real = pipeline.is_worth_it
    if not request.node.get_closest_marker("cost"):
        pipeline.is_worth_it = lambda report, settings: True
    yield
    pipeline.is_worth_it = real


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws the same random numbers, alone or among others."""
    torch.manual_seed(0)
