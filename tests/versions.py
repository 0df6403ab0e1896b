"""What the oldest torch that is served cannot do, by itself; seen with 2.11."""

from __future__ import annotations

import pytest
import torch

# Which release between 2.11 and the one of `constraints.txt` was the first to do it was not tried.
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)


def lacks(what: str) -> pytest.MarkDecorator:
    """Skip where torch is older than the one of ``constraints.txt``, since it ``what``."""
    return pytest.mark.skipif(OLD, reason=f"this torch {what}")
