"""The tests of ``interpreted``, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="a build of torch without Triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # What the process around it is, if it is one of many, is nothing to this one.
    around = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [*command, "tests/kernels/interpreted"],
        cwd=ROOT,
        env={**around, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if "wrap_triton only works on functions annotated" in done.stdout:
        pytest.skip("this torch puts no interpreted kernels behind its ops")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
