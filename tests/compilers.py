"""What compiles a program in tests that are of any of them: the quickest first."""

from __future__ import annotations

import pytest

COMPILERS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.compiler)]
