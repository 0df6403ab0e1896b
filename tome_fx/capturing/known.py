"""What constants alone make is known while a model is traced, so that its code may read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch._subclasses.fake_tensor as fake
import torch.fx.experimental.proxy_tensor as proxies

# What to do about code that reads an input.
WRITE_IN = (
    "Write what it reads into forward, in a wrapper say, as torch.tensor([[1, 16, 16]]), and "
    "transform the wrapper."
)
# Numbers in a constant that is followed; tracers by themselves follow constants of one number.
_MOST = 1 << 16


@contextmanager
def constants_known() -> Iterator[None]:
    """Within, tracers compute beside the graph what ``torch.tensor([...])`` leads to.

    A grid or a list of lengths that is written into ``forward`` decides shapes as a list would:
    ``tolist``, ``nonzero`` and ``unique`` of it are no values of an input. The graph is the same.
    """
    with ExitStack() as both:
        for tracer in (fake, proxies):
            both.enter_context(patch.object(tracer, "CONSTANT_NUMEL_LIMIT", _MOST))
        yield
