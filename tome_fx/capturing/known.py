"""What constants alone make is known while a model is traced, so that its code may read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch._subclasses.fake_tensor as fake

# What to do about code that reads an input.
WRITE_IN = (
    "Write what it reads into forward, in a wrapper say, as torch.tensor([[1, 16, 16]]), and "
    "transform the wrapper."
)
# Numbers in a constant that is followed; by themselves, fake tensors follow those of one number.
_MOST = 1 << 16


@contextmanager
def constants_known() -> Iterator[None]:
    """Within, fake tensors compute beside their shapes what ``torch.tensor([...])`` leads to.

    A grid or a list of lengths that is written into ``forward`` decides shapes as a list would:
    ``tolist``, ``nonzero`` and ``unique`` of it are no values of an input. A constant that the
    model writes to is none from then on, nor is what shares its memory: that is for fake tensors to
    know, and proxies, which follow constants too, do not. It is for the whole process, so for one
    thread at a time (``locating.LOCK``).
    """
    with patch.object(fake, "CONSTANT_NUMEL_LIMIT", _MOST):
        yield
