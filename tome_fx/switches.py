"""The switches of gradient checkpointing, as the libraries have them, on a result.

Some call a method of the model; transformers writes an attribute on every part of a whole that has
it, so that a tower follows the model that it is a part of. Either way the structure that captures
are made of is told, and the program of training captured anew.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tome_fx.capturing.checkpoints import SWITCHES, asks_for_checkpoints
from tome_fx.capturing.source import Source

_FUNCTION = "_gradient_checkpointing_func"  # what transformers writes beside it


class Switches:
    """What a result has of them."""

    _source: Source
    _programs: dict[bool, Any]
    training: bool

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As in timm: recompute blocks in backward instead of keeping what they made."""
        self._ask("set_grad_checkpointing", enable)

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers. Checkpointing is by blocks and not reentrant, whatever is asked."""
        self._ask("activation_checkpointing_enable", *args, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """As in transformers."""
        self._ask("activation_checkpointing_disable")

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same under its older name."""
        self._ask("gradient_checkpointing_enable", *args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """As in transformers."""
        self._ask("gradient_checkpointing_disable")

    def _rewrite(self) -> None:
        raise NotImplementedError

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Ask the structure that captures are made of, as the user would ask the model."""
        model = self._source.skeleton
        method = getattr(model, name, None)
        if not isinstance(model, nn.Module) or method is None:
            raise AttributeError(
                f"{self._source.name} has no {name}. Use torch.utils.checkpoint in the forward of "
                "the model and transform it: the result checkpoints its blocks."
            )
        method(*args, **kwargs)
        self._show_switches()
        self._capture_again()

    def _show_switches(self) -> None:
        """Have the attributes that parts of the model have, so that they are found here."""
        model = self._source.skeleton
        parts = list(model.modules()) if isinstance(model, nn.Module) else []
        for name in SWITCHES:
            if any(hasattr(part, name) for part in parts):
                object.__setattr__(self, name, asks_for_checkpoints(model))

    def _follow_switch(self, name: str, value: Any) -> None:
        """Tell the parts of the model what was written to an attribute."""
        model = self._source.skeleton
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        before = [(part, getattr(part, name)) for part in modules if hasattr(part, name)]
        if all(was == value for _, was in before):
            return
        for part, _ in before:
            if _FUNCTION in vars(self):
                setattr(part, _FUNCTION, vars(self)[_FUNCTION])
            setattr(part, name, value)
        try:
            self._capture_again()
        except Exception:
            for part, was in before:
                setattr(part, name, was)
            self._programs.pop(True, None)
            raise
        self._show_switches()

    def _capture_again(self) -> None:
        self._programs.pop(True, None)
        if self.training:
            self._rewrite()
