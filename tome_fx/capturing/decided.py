"""Branches that a model's own buffers decide: ``if self.share[layer] > 0:``.

Export traces values without numbers, so such a line stops it, though no image has a part in it. For
a second try, what is made of small buffers alone is also computed for real on the way, and numbers
are read from there.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from tome_fx.capturing.followed import Followed, Known

# More numbers than that are data, which decide nothing.
_FEW = 64


class DecidedByBuffers(Followed):
    """Within, reading a number of what is made of small buffers of ``model`` gives that number.

    ``names`` are the buffers that were read so: what was captured is right for their values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(_FEW)
        self.names: set[str] = set()
        self._values: dict[str, Tensor] = {}
        # Where each stands: every tensor of a trace is held against what is there, and a model with
        # batch norms has hundreds.
        self._places: list[tuple[dict[str, Tensor | None], str, str]] = []
        for name, buffer in model.named_buffers(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            held = model.get_submodule(owner)._buffers
            # A script makes a tensor anew at each look, so that none is found there.
            if buffer.numel() <= _FEW and not buffer.is_meta and isinstance(held, dict):
                self._values[name] = buffer.detach().clone()
                self._places.append((held, leaf, name))

    @property
    def serves(self) -> bool:
        """Is there any buffer that could decide?"""
        return bool(self._values)

    def known_by_itself(self, tensor: Tensor) -> Known | None:
        own = next((n for held, leaf, n in self._places if held.get(leaf) is tensor), None)
        return None if own is None else Known(tensor, (self._values[own],), frozenset({own}))

    def read(self, names: Collection[str]) -> None:
        self.names.update(names)
