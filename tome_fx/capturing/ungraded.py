"""What stops gradients in a model's code and is not recorded: ``inference_mode``, ``x.data``."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._export.passes import replace_set_grad_with_hop_pass
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from tome_fx.capturing.blame import TORCH


@contextlib.contextmanager
def data_recorded() -> Iterator[None]:
    """Within, ``x.data`` of a traced value is ``x.detach()``: tracing takes it for a constant.

    That of weights, of what is not traced, and for torch itself stays what it is.
    """
    whole = torch._C.TensorBase.data
    thread = threading.get_ident()

    def read(self: Tensor) -> Tensor:
        traced = isinstance(self, (FakeTensor, FunctionalTensor))
        if traced and threading.get_ident() == thread and not _is_torch(sys._getframe(1)):
            return self.detach()
        return whole.__get__(self)  # type: ignore[attr-defined, no-any-return]

    def write(self: Tensor, value: Tensor) -> None:
        whole.__set__(self, value)  # type: ignore[attr-defined]

    with patch.object(torch.Tensor, "data", property(read, write)):
        yield


@contextlib.contextmanager
def inference_recorded() -> Iterator[None]:
    """Within, ``torch.inference_mode`` is ``no_grad``: export records that, and not the other.

    What is computed is the same, and that nothing flows back through it. Other threads may be
    serving meanwhile: their inference mode stays what it is, and so does that of torch itself.
    """
    thread = threading.get_ident()
    before, after = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    entered: dict[int, torch.no_grad | torch.enable_grad] = {}

    def enter(self: Any) -> None:
        if threading.get_ident() != thread or _is_torch(sys._getframe(1)):
            before(self)
            return
        entered[id(self)] = torch.no_grad() if self.mode else torch.enable_grad()
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


@contextlib.contextmanager
def regions_recorded() -> Iterator[None]:
    """Within, export keeps ``no_grad`` apart inside of autocast too.

    It splits a program where gradients are switched, opens autocast anew in each part, and then
    asks whether the first op of a part is the switch.
    """
    splitting: Any = replace_set_grad_with_hop_pass
    first = splitting.nodes_first

    def first_but_autocast(nodes: Any, wanted: Any = None) -> Any:
        enter = torch.amp.autocast_mode._enter_autocast
        return first([node for node in nodes if node.target is not enter], wanted)

    with patch.object(splitting, "nodes_first", first_but_autocast):
        yield


def _is_torch(frame: FrameType) -> bool:
    """Is it code of torch, other than what wraps a decorated function of somebody else?"""
    name = frame.f_code.co_filename
    return name.startswith(TORCH) and not name.endswith("_contextlib.py")
