"""Processes of torchrun share the images out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.validating.common import MODEL, TIMED, Run, rows

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "--"]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in (*TORCHRUN, "tome_fx.cli.main", "validate", *args, *MODEL)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_processes_share_the_images_out(validate: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    args = [data, "--r", "8,20", "-b", 2, "--json"]
    wanted = rows(validate(*args), but=(TIMED, "logit_distance"))
    done = run(*args, "--results-file", path)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout, but=(TIMED, "logit_distance")) == wanted
    assert json.loads(done.stdout)["environment"]["processes"] == 2
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.slow
@pytest.mark.few(0)
def test_one_of_them_says_what_is_wrong(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing", "--r", 8)
    assert done.returncode != 0
    assert done.stderr.count("tome-fx: ") == 1, done.stderr
