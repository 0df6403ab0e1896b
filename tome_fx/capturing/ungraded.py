"""``torch.inference_mode`` in a model's code, while it is captured."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch


@contextlib.contextmanager
def inference_recorded() -> Iterator[None]:
    """Within, ``torch.inference_mode`` is ``no_grad``: export records that, and not the other.

    What is computed is the same, and that nothing flows back through it. Other threads may be
    serving meanwhile: their inference mode stays what it is.
    """
    thread = threading.get_ident()
    before, after = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    entered: dict[int, contextlib.AbstractContextManager[None]] = {}

    def enter(self: Any) -> None:
        if threading.get_ident() != thread:
            before(self)
            return
        entered[id(self)] = torch.no_grad() if self.mode else contextlib.nullcontext()
        entered[id(self)].__enter__()

    def leave(self: Any, *raised: Any) -> None:
        own = entered.pop(id(self), None) if threading.get_ident() == thread else None
        if own is None:
            after(self, *raised)
        else:
            own.__exit__(*raised)

    with (
        patch.object(torch.inference_mode, "__enter__", enter),
        patch.object(torch.inference_mode, "__exit__", leave),
    ):
        yield
