"""Processes of torchrun share the images out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.validating.common import MODEL, TIMED, Run, rows


@pytest.mark.slow
def test_processes_share_the_images_out(validate: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    args = [data, "--r", "8,20", "-b", 2, "--json"]
    wanted = rows(validate(*args), but=(TIMED, "logit_distance"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "--"]
    command = [*torchrun, "tome_fx.cli.main", "validate", *args, "--results-file", path, *MODEL]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout, but=(TIMED, "logit_distance")) == wanted
    assert json.loads(done.stdout)["environment"]["processes"] == 2
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4

    shutil.rmtree(data)
    done = run()
    assert done.returncode != 0
    assert done.stderr.count("tome-fx: ") == 1, done.stderr
