"""A data set of timm by its name or folder, checked; and the share of it that a process reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.preprocess import DataConfig

LABELS = ("data", "none")
# Those of timm's data sets, before the slash.
_KINDS = ("torch", "hfds", "hfids", "tfds", "wds")
# How timm finds the part of a folder: by its name, or another name of the same.
_PARTS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test",))
USUAL = "validation"
# timm's names for what pillow has.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class DataSpec:
    """Which data is asked for, in timm's words. `labels=False`: class folders mean nothing."""

    root: Path | None
    dataset: str = ""
    split: str = USUAL
    class_map: str = ""
    labels: bool = True

    @property
    def name(self) -> str:
        """What an error calls the data."""
        return " ".join(str(part) for part in (self.dataset, self.root) if part)


@dataclass(frozen=True)
class Reading:
    """How the data is read: batches, worker processes, and what the model wants to see."""

    config: DataConfig
    batch_size: int
    workers: int
    device: torch.device
    dtype: torch.dtype


def open_data(spec: DataSpec, channels: int, classes: int, batch_size: int) -> Any:
    """Return timm's data set.

    Raises CliError where it cannot be read or holds no images, and, with labels, where it has
    another number of classes than the model.
    """
    _check_root(spec)
    if channels not in (1, 3):
        raise CliError(f"images have 1 or 3 channels, the model takes {channels} (--in-chans)")
    from timm.data import create_dataset

    try:
        data = create_dataset(
            name=spec.dataset,
            root=str(spec.root or ""),
            split=spec.split,
            class_map=spec.class_map,
            batch_size=batch_size,
            input_img_mode="RGB" if channels == 3 else "L",
        )
    except Exception as error:
        # Readers and the libraries behind them fail with whatever they like.
        raise CliError(f"{spec.name}: {one_line(error, 200)}") from error
    if not is_stream(data) and len(data) == 0:
        raise CliError(f"{spec.name}: holds no images")
    if hasattr(data, "_max_retries"):
        # timm takes the next image for one that it cannot read; here that would count it twice.
        data._max_retries = 1
    found = _classes(data)
    if spec.labels and found and found != classes:
        raise CliError(
            f"{spec.name}: {found} classes, the model has {classes}"
            " (--class-map, --num-classes, or --labels none)"
        )
    return data


def _check_root(spec: DataSpec) -> None:
    """Say in plain words what is wrong with a folder, before timm does."""
    kind, slash, _ = spec.dataset.partition("/")
    if slash and kind.lower() not in _KINDS:  # timm reads the folder then, whatever the name says
        raise CliError(f"--dataset {spec.dataset}: {kind} is not one of {', '.join(_KINDS)}")
    if spec.root is None:
        if spec.dataset:
            return
        raise CliError("no data: give a folder of images, or --dataset")
    if spec.dataset:
        return
    if not spec.root.exists():
        raise CliError(f"{spec.root}: does not exist")
    if spec.root.is_dir():
        _check_part(spec.root, spec.split)
    elif spec.root.suffix != ".tar":
        raise CliError(f"{spec.root}: neither a folder nor a tar file")


def _check_part(root: Path, split: str) -> None:
    """See that the part of a folder is there: timm takes the whole for one that is not."""
    asked = split.split("[")[0]
    if not asked or has_part(root, asked):
        return
    parts = [name for names in _PARTS for name in names if (root / name).is_dir()]
    if parts:
        raise CliError(f"{root}: no split {asked!r}; there are {', '.join(parts)} (--split)")
    if asked != USUAL:
        raise CliError(f"{root}: no split {asked!r}, nor any other; leave --split out for all")


def has_part(root: Path, name: str) -> bool:
    """Does timm find a part of that name in a folder?"""
    same = next((names for names in _PARTS if name in names), ())
    return any((root / one).exists() for one in (name, *same))


def _classes(data: Any) -> int | None:
    """Return how many classes the data set knows of, where it says so."""
    names = getattr(getattr(data, "reader", None), "class_to_idx", None)
    names = names or getattr(data, "classes", None)
    return len(names) if names else None


def is_stream(data: Any) -> bool:
    """Is this data that can only be read from its beginning?"""
    return isinstance(data, IterableDataset)


def fingerprint(data: Any) -> str:
    """Return a short hash of what the data set lists: files and classes, or else its length.

    What is in the files is not looked at.
    """
    samples = getattr(getattr(data, "reader", None), "samples", None)
    if samples is None:
        samples = getattr(data, "samples", None)
    listed = repr(samples if samples is not None else len(data))
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


class Shard(Dataset[tuple[Any, int]]):
    """The images of a data set at some indices. `transform` is the data set's own."""

    def __init__(self, data: Any, indices: range, labels: bool) -> None:
        self.data, self.indices, self.labels = data, indices, labels

    @property
    def transform(self) -> Any:
        """timm's loader sets the transform of evaluation here."""
        return self.data.transform

    @transform.setter
    def transform(self, value: Any) -> None:
        self.data.transform = value

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        index = self.indices[position]
        try:
            image, target = self.data[index][:2]
            return image, int(target) if self.labels else 0
        except Exception as error:
            text = one_line(error, 200)
            if text.startswith("Failed to load"):  # timm keeps the reason to itself
                text = "unreadable image"
            raise CliError(f"{_path(self.data, index)}: {text}") from None


def _path(data: Any, index: int) -> str:
    try:
        return str(data.filename(index, absolute=True))
    except Exception:
        return f"image {index}"  # not every data set is made of files


def batches(
    data: Any, indices: range | None, labels: bool, reading: Reading
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images [B, C, H, W] and class indices [B] on the device, each index once, in order.

    All of a stream for `indices=None`. Raises CliError with the path of an unreadable image.
    """
    from timm.data import create_loader

    config = reading.config
    source = data if indices is None else Shard(data, indices, labels)
    loader = create_loader(
        source,
        input_size=config.input_size,
        batch_size=reading.batch_size,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        num_workers=reading.workers,
        persistent_workers=False,
        device=reading.device,
        img_dtype=reading.dtype,
    )
    try:
        yield from loader
    except CliError as error:
        # One raised in a worker carries the worker's traceback; our line is its last.
        text = str(error).rstrip().splitlines()[-1]
        raise CliError(text.rpartition("CliError: ")[2]) from error
