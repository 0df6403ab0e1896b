"""The images that a model is tuned on: as batches of its inputs, on its device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.examples import Example, rejection
from tome_fx.errors import ConfigError

_FORMS = "a tensor [N, C, H, W], or batches: tensors, tuples of inputs or dicts of keyword inputs"


def batches_of(images: Any, batch_size: int, model: nn.Module) -> tuple[Example, ...]:
    """Return the batches, each with the number of its images.

    A tensor is cut into batches of ``batch_size``; an iterable gives its own, and is read once.

    Raises:
        ConfigError: there are no images, they are of another kind or of several sizes, or labels
            came with them.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found = tuple(_batch(one, device) for one in _pieces(images, batch_size))
    if not found:
        raise ConfigError(f"images holds no image. Give {_FORMS}.")
    sizes = dict.fromkeys(map(_sizes, found))
    if len(sizes) > 1:
        several = " and ".join(", ".join(map(str, each)) for each in list(sizes)[:2])
        raise ConfigError(
            f"The batches of images are of several sizes behind the first axis: {several}. A "
            "program is for one: give images of one size, and tune for another by itself."
        )
    _refuse_labels(found[0], model)
    return found


def _sizes(batch: Example) -> tuple[tuple[int, ...], ...]:
    tensors = [leaf for leaf in batch.leaves if isinstance(leaf, Tensor)]
    return tuple(tuple(leaf.shape[1:]) for leaf in tensors)


def _pieces(images: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(images, Tensor):
        if images.dim() < 2:
            raise ConfigError(f"images has shape {tuple(images.shape)}. Give {_FORMS}.")
        return torch.split(images, batch_size) if len(images) else ()
    if isinstance(images, Mapping):
        return (images,)
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise ConfigError(f"images is {type(images).__name__}. Give {_FORMS}.")
    return images


def _batch(one: Any, device: torch.device) -> Example:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    if isinstance(one, Mapping):
        args, kwargs = (), dict(one)
    elif isinstance(one, Sequence) and not isinstance(one, (str, bytes)):
        args, kwargs = tuple(one), {}
    else:
        args, kwargs = (one,), {}
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or not tensors[0].shape[0]:
        raise ConfigError(
            f"A batch of images is {type(one).__name__} without images. Give {_FORMS}."
        )
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to(device), (args, kwargs))
    return Example(args, kwargs, tensors[0].shape[0])


def _refuse_labels(batch: Example, model: nn.Module) -> None:
    """A number for each image that the model does without is a label.

    Passed on, it would be taken for some other input, or for a loss to compute.
    """

    def is_label(value: Any) -> bool:
        if isinstance(value, list):  # as loaders gather what is no tensor; a pair may be a size
            one_each = len(value) == batch.batch
            return one_each and all(isinstance(one, (int, str)) for one in value)
        return (
            isinstance(value, Tensor)
            and tuple(value.shape) == (batch.batch,)
            and not value.is_floating_point()
        )

    args = tuple(x for x in batch.args if not is_label(x))
    kwargs = {key: x for key, x in batch.kwargs.items() if not is_label(x)}
    if len(args) + len(kwargs) == len(batch.args) + len(batch.kwargs) or not (args or kwargs):
        return
    if rejection(model, Example(args, kwargs, batch.batch)) is None:
        raise ConfigError(
            "The batches hold a number or a name for each image, which the model does without: "
            "labels? tune needs none. Give the images alone, for instance (x for x, _ in loader)."
        )
