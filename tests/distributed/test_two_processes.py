"""DDP and FSDP2 on two processes of this machine, started as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CASES = ("ddp", "ddp_checkpointed", "ddp_of_the_model", "sharded", "sharded_too_early")


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch was built without gloo",
)
def test_training_and_evaluation() -> None:
    """All cases in one start: starting takes longer than what is tested."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "2", "-m", "tests.distributed.worker", *CASES],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for case in CASES:
        assert done.stdout.count(f"{case} is well") == 2
