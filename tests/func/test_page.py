"""The examples of docs/functional.md run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "functional.md"


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_examples() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) >= 5
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    assert names["fast"].schedule == (8, 8)
    ensemble = names["together"]
    assert not torch.allclose(ensemble[0], ensemble[1])
    assert names["dy"].shape == names["y"].shape
