"""Flags that commands share, as groups that a command takes as one parameter each.

    @grouped(pretrained=True)
    def validate(*, model: ModelFlags, merge: MergeFlags, split: Split = "validation") -> None:

The command line sees each flag by itself; the command gets a frozen dataclass, whose methods make
of them what the library takes. So a flag is the same wherever it stands.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

import torch

from tome_fx.cli import options as o
from tome_fx.cli import results
from tome_fx.cli.failure import CliError
from tome_fx.cli.functions import load_function
from tome_fx.cli.merging import MergeOptions
from tome_fx.cli.models import DTYPES, ModelSpec

Command = Callable[..., None]
_TOLD = ("model", "model_argument", "pretrained", "checkpoint")  # by a result's model and weights


@dataclass(frozen=True)
class ModelFlags:
    """Which model, and with which weights."""

    model: o.ModelName = None
    pretrained: o.Pretrained = False
    checkpoint: o.Checkpoint = None
    img_size: o.ImgSize = None
    num_classes: o.NumClasses = None
    in_chans: o.InChans = None
    model_kwargs: o.ModelKwargs = None

    @property
    def name(self) -> str:
        """The model that is named. Raises CliError if none is."""
        return o.model_name(None, self.model)

    def spec(self, device: str, precision: str = "float32") -> ModelSpec:
        """What to load."""
        return ModelSpec(
            self.name,
            self.pretrained,
            self.checkpoint,
            self.img_size,
            self.num_classes,
            self.in_chans,
            self.model_kwargs or (),
            device,
            precision,
        )


@dataclass(frozen=True)
class NamedModelFlags(ModelFlags):
    """The same where the model may also be the first argument."""

    model_argument: o.ModelArgument = None

    @property
    def name(self) -> str:
        """The one model that is named, either way. Raises CliError if none is, or two are."""
        return o.model_name(self.model_argument, self.model)


@dataclass(frozen=True)
class ProgramFlags:
    """What is rewritten, and how, whatever is merged."""

    prop_attn: o.Prop = True
    capture: o.Capture = "auto"
    remerge: o.Remerge = "mean"
    attention: o.Attention = "auto"
    scatter: o.Scatter = True
    matching: o.Matching = None

    def options(self) -> MergeOptions:
        """What `transform` takes. Raises CliError for what cannot be read."""
        return MergeOptions(**vars(self) | {"matching": _function(self.matching)})


@dataclass(frozen=True)
class MergeFlags(ProgramFlags):
    """The same, and how much is merged where, beside ``--r``."""

    rounding: o.Rounding = "truncate"
    strict: o.Strict = False
    every: o.Every = 1
    align: o.Align = "1"

    def options(self) -> MergeOptions:
        """As above."""
        read = {"matching": _function(self.matching), "align": o.parse_align(self.align)}
        return MergeOptions(**vars(self) | read)


@dataclass(frozen=True)
class RunFlags:
    """Where and in which precision a model runs."""

    device: o.Device = "cpu"
    threads: o.Threads = None
    precision: o.Precision = "float32"
    amp: o.Amp = False
    amp_dtype: o.AmpDtype = "bfloat16"

    @property
    def kind(self) -> str:
        """The precision's name."""
        return "amp" if self.amp else self.precision

    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast, or None without it. Raises CliError for one it cannot have."""
        if self.amp_dtype not in ("bfloat16", "float16"):
            raise CliError(f"--amp-dtype {self.amp_dtype}: not one of bfloat16, float16")
        if self.amp and self.precision not in ("float32", "amp"):
            raise CliError(
                f"--amp with --precision {self.precision}: weights are float32 under autocast"
                f" (--amp-dtype {self.precision} says what it computes in)"
            )
        return DTYPES[self.amp_dtype] if self.kind == "amp" else None

    def set_threads(self) -> None:
        """Take as many threads as are asked for."""
        if self.threads:
            torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class FileFlags:
    """Where results are written, and as what."""

    results_file: o.File = None
    results_format: o.Format = None

    def kind(self) -> str:
        """Its format. Raises CliError where that cannot be told, or the file not written."""
        return results.choose_format(self.results_file, self.results_format)


def told(*groups: Any) -> str:
    """The flags of groups that are not at their defaults, as they are typed.

    Those that name the model and its weights are left out.
    """
    changed = {
        field.name: value
        for group in groups
        for field in fields(group)
        if (value := getattr(group, field.name)) != field.default and field.name not in _TOLD
    }
    return shlex.join(word for name, value in changed.items() for word in _typed(name, value))


def _typed(name: str, value: Any) -> Iterator[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
        return
    for one in value if isinstance(value, list) else [value]:
        yield from (f"--{flag}", str(one))


def grouped(**defaults: Any) -> Callable[[Command], Command]:
    """The command with each flag of its groups as a parameter of its own.

    Args:
        defaults: of flags that have another default in this command.
    """

    def decorate(command: Command) -> Command:
        groups = _groups(command)
        unknown = defaults.keys() - {
            field.name for group in groups.values() for field in fields(group)
        }
        if unknown:
            raise TypeError(f"{command.__name__} has no flag {', '.join(sorted(unknown))}.")

        def called(**given: Any) -> None:
            for name, group in groups.items():
                own = [field.name for field in fields(group)]
                given[name] = group(**{key: given.pop(key) for key in own})
            command(**given)

        parameters = list(_parameters(command, groups, defaults))
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__module__ = command.__module__
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        setattr(called, "__signature__", inspect.Signature(parameters))  # noqa: B010
        return called

    return decorate


def _groups(command: Command) -> dict[str, type[Any]]:
    """The parameters of a command that are groups, with their classes."""
    hints = get_type_hints(command, include_extras=True)
    return {
        name: hints[name]
        for name in inspect.signature(command).parameters
        if is_dataclass(hints[name])
    }


def _parameters(
    command: Command, groups: dict[str, type[Any]], defaults: dict[str, Any]
) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            yield parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name])
            continue
        own = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(field.name, field.default),
                annotation=own[field.name],
            )


def _function(text: str | None) -> Any:
    """The function that ``--matching`` names, if it does."""
    return None if text is None else load_function(text, "--matching")
