"""Inputs whose merged tokens are exact duplicates, for the duplicates law.

Patches fall into classes with one picture each, and the model's position tables are made equal
inside each class (`tie`). Then all patches of a class stay equal through every layer, and merging
two of them must change nothing. A schedule that merges *all* pairs of duplicates which the
even/odd split offers, or none, can be followed on the labels alone; `Layout` holds such a
schedule. Which of several equal tokens are taken is left to rounding, so after a layer that
merges only some of them nothing more merges, unless all patches are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.architectures import Architecture
from tests.models import Plain, PlainViT


@dataclass(frozen=True)
class Layout:
    """The class of every patch, and how many tokens merge in each layer."""

    labels: tuple[int, ...]
    schedule: tuple[int, ...]

    def uneven(self, protected: int) -> bool:
        """True where attention or pooling surely meets unequal tokens of unequal size."""
        if not protected and len(set(self.labels)) == 1:
            return False  # an average of equal values, whatever the weights
        left = len(self.labels)
        for r in self.schedule:
            left -= r
            if r and (protected or len(self.labels) % left):
                return True
        return False


def mergeable(tokens: list[int], front: int) -> tuple[list[int], list[int]]:
    """Positions in A that have a duplicate in B, and the positions of B."""
    group_a = [i for i in range(len(tokens)) if (i + front) % 2 == 0]
    group_b = [i for i in range(len(tokens)) if (i + front) % 2 == 1]
    targets = {tokens[b] for b in group_b}
    return [a for a in group_a if tokens[a] in targets], group_b


@st.composite
def layouts(
    draw: st.DrawFn,
    stream: int,
    front: int,
    depth: int,
    patterns: tuple[str, ...] = ("random", "random", "pairs", "half", "constant"),
) -> Layout:
    """Classes and a schedule of exact merges, with at least one merge in the first layer.

    ``front`` protected tokens shift the parity.
    """
    pattern = draw(st.sampled_from(patterns))
    if pattern == "random":
        classes = draw(st.integers(2, max(2, stream - 1)))
        labels = draw(st.lists(st.integers(0, classes - 1), min_size=stream, max_size=stream))
        labels[1] = labels[0]  # neighbours are on both sides of the split
    else:
        unit = {"pairs": 2, "half": max(2, stream // 2), "constant": stream}[pattern]
        labels = [i // unit for i in range(stream)]
    tokens, schedule = list(labels), []
    for layer in range(depth):
        sources, targets = mergeable(tokens, front)
        most = min(len(sources), len(tokens) // 2)
        wanted = draw(st.sampled_from(["all", "all", "some", "none"]))
        r = {"all": most, "none": 0, "some": draw(st.integers(0, most))}[wanted]
        if layer == 0:
            r = max(1, r)
        schedule.append(r)
        if 0 < r < len(sources) and len(set(tokens)) > 1:  # rounding decides which: stop here
            schedule += [0] * (depth - layer - 1)
            break
        if r == 0:
            continue
        gone = set(sources[:r])
        order = [i for i in range(len(tokens)) if i not in gone and i not in targets] + targets
        tokens = [tokens[i] for i in order]
    return Layout(tuple(labels), tuple(schedule))


def front_tokens(config: Architecture | Plain) -> int:
    """Protected tokens before the patches: they shift the parity of the split."""
    return config.front if isinstance(config, Plain) else config.protected


def cases(config: Architecture | Plain) -> st.SearchStrategy[Layout]:
    """Layouts that fit a model."""
    size = (config.stream, front_tokens(config), config.depth)
    if isinstance(config, Plain) and config.readout == "patch":
        # The patch that is read is protected, so the labels cannot say which tokens are paired.
        return layouts(*size, patterns=("constant",))
    return layouts(*size)


@torch.no_grad()
def tie(model: nn.Module, config: Architecture | Plain, labels: tuple[int, ...]) -> None:
    """Make the model's position tables equal inside each class of patches."""
    if isinstance(model, PlainViT):
        model.tie(labels)
    elif model.pos_embed is not None:
        start = model.pos_embed.shape[1] - config.stream
        rows = [start + labels.index(label) for label in labels]
        model.pos_embed[:, start:] = model.pos_embed[:, rows].clone()


def images(config: Architecture | Plain, labels: tuple[int, ...], seed: int = 0) -> Tensor:
    """Images in float64 whose patches of one class are equal, different in each image."""
    x = config.images(seed=seed)
    patch, (_, wide) = config.patch, config.grid

    def tile(index: int) -> tuple[slice, slice]:
        row, column = divmod(index, wide)
        return (
            slice(row * patch, (row + 1) * patch),
            slice(column * patch, (column + 1) * patch),
        )

    out = x.clone()
    for i, label in enumerate(labels):
        target, source = tile(i), tile(labels.index(label))
        out[:, :, target[0], target[1]] = x[:, :, source[0], source[1]]
    return out
