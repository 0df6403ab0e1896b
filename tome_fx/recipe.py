"""A transform as a file: settings in JSON, weights in safetensors, no code."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tome_fx.api import transform
from tome_fx.capturing.modes import deep_copy
from tome_fx.capturing.skeleton import unwrapped
from tome_fx.costs.hardware import DeviceModel
from tome_fx.errors import ConfigError, InputError
from tome_fx.files import file_path, replacing, unwritten
from tome_fx.module import ToMeModule
from tome_fx.options import SAVED_OPTIONS, Settings, checked
from tome_fx.own_matching import Function, name_of
from tome_fx.recipe_weights import check_values, load_weights, save_weights
from tome_fx.rules.base import Rule

FORMAT, VERSION = "tome_fx recipe", 1
_WEIGHTS = ".safetensors"
_KEYS = ("format", "version", "tome_fx", "model", "r", "settings", "schedule", "inputs", "weights")


def save_recipe(module: ToMeModule, path: str | Path, *, weights: bool = False) -> Path:
    """Write how ``module`` was made, as JSON.

    Args:
        module: the result of a transform, compiled or not.
        path: the file to write, ``something.json``.
        weights: write its parameters and buffers too, as ``something.safetensors`` beside it
            (needs the package safetensors), and no recipe where they cannot be. A name without
            ``.json`` keeps all of it: with one that differs in that alone it would share them.

    Returns:
        The path of the recipe.

    Raises:
        TypeError: ``module`` is no result of a transform, or ``path`` no path.
        ConfigError: it was made with code of the user (rules, a matching), or ``path`` takes no
            file, or its weights have no values.
    """
    module = unwrapped(module)
    if not isinstance(module, ToMeModule):
        raise TypeError(f"save_recipe takes the result of transform, not {type(module).__name__}.")
    path = file_path(path, "A recipe")
    _refuse_code(module.settings)
    from tome_fx import __version__

    # Only a ``.json`` makes room: what stands behind the point of vit.v1 is part of its name.
    beside = path.with_name((path.stem if path.suffix == ".json" else path.name) + _WEIGHTS)
    if weights and path.suffix == _WEIGHTS:
        raise ConfigError(f"{path} is the name of its weights: give the recipe another, x.json.")
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "tome_fx": __version__,
        "model": module.report.model,
        "r": _written(module.r),
        "settings": _settings(module),
        "schedule": list(module.schedule),
        "inputs": _inputs(module),
        "weights": beside.name if weights else None,
    }
    if weights:
        check_values(module, "This result", "Load its weights first")
    try:
        with replacing(path) as file:
            file.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
            if weights:
                save_weights(module, beside)  # they are there before what names them
    except OSError as error:
        raise unwritten(error) from None
    return path


def apply_recipe(
    model: nn.Module | torch.export.ExportedProgram,
    path: str | Path,
    *,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    rules: Iterable[tuple[Any, Rule]] | Mapping[Any, Rule] = (),
    matching: Function | None = None,
) -> ToMeModule:
    """Transform ``model`` as a recipe says.

    Weights that the recipe names are loaded into the result, by name and strictly; ``model`` keeps
    its own.

    Args:
        model: the model that the recipe was made for, or one like it; an ``ExportedProgram`` too.
        path: a file of :func:`save_recipe`.
        example_inputs, example_kwargs: as for :func:`tome_fx.transform`; by default zeros of the
            shapes in the recipe.
        rules, matching: code, which a recipe cannot hold.

    Raises:
        TypeError: ``model`` is not a model, or ``path`` no path.
        ConfigError: the file is no recipe, of a later version, or holds what is no setting; or its
            weights cannot be read.
        InputError: the result merges differently than the recipe says, or the weights do not fit:
            this is another model.
    """
    path = file_path(path, "A recipe")
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram)):
        raise TypeError(f"apply_recipe takes what transform takes, not {type(model).__name__}.")
    recipe = _read(path)
    given = example_inputs is not None or bool(example_kwargs)
    if not given and isinstance(model, nn.Module):
        example_inputs = _zeros(recipe["inputs"], model, path)
    protect = recipe["settings"].get("protect")
    protect = tuple(protect) if isinstance(protect, list) else protect
    settings = {**recipe["settings"], "protect": protect}
    if settings.get("batch") is None:  # as it was saved where that was not asked for
        settings.pop("min_speedup", None)
    r = _parsed(recipe["r"], path)
    try:
        checked(Settings(r, **settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if recipe["weights"]:
        check_values(model, "The model", "Make it on a device that holds them")
        model = deep_copy(model)  # which keeps its own weights
    try:
        result = transform(
            model,
            r,
            example_inputs=example_inputs,
            example_kwargs=example_kwargs,
            rules=rules,
            matching=matching,
            **settings,
        )
    except InputError as error:
        if given:
            raise
        raise InputError(
            f"{path} was saved for another model ({recipe['model']}), by whose inputs, as zeros, "
            f"this one is captured. {error} Apply it to the model that it was made for, or give "
            "example_inputs."
        ) from None
    if list(result.schedule) != recipe["schedule"]:
        raise InputError(
            f"{path} was saved for a model that merges {recipe['schedule']} tokens "
            f"({recipe['model']}); this one would merge {list(result.schedule)}. Apply it to the "
            "model that it was made for, or transform this one."
        )
    if recipe["weights"]:
        load_weights(result, path.parent / recipe["weights"])
    return result


def _refuse_code(settings: Settings) -> None:
    told = [f"rules for {', '.join(settings.rules)}"] if settings.rules else []
    told += [f"{name_of(settings.matching)} as its matching"] if settings.matching else []
    if told:
        raise ConfigError(
            f"This transform uses {' and '.join(told)}. That is code and is not saved: give it to "
            "apply_recipe, and transform without it to save."
        )


def _settings(module: ToMeModule) -> dict[str, Any]:
    """As they were, but with what went by the device as it came out: another one may read this."""
    found = {name: getattr(module.settings, name) for name in SAVED_OPTIONS}
    told, hardware = module.report.estimate, found["hardware"]
    if isinstance(hardware, DeviceModel):
        found["hardware"] = asdict(hardware)
    elif told is not None:
        found["hardware"] = told.hardware
    return {**found, "align": module.report.aligned}


def _written(r: Any) -> dict[str, Any]:
    """``r`` by what it means: JSON has no tuples to tell a pair from a list."""
    if isinstance(r, tuple) and len(r) == 2:
        return {"linear": list(r)}
    if isinstance(r, (list, tuple)):
        return {"layers": list(r)}
    return {"share": r} if isinstance(r, float) else {"constant": r}


def _parsed(r: Any, path: Path) -> Any:
    kind, value = next(iter(r.items())) if isinstance(r, dict) and len(r) == 1 else ("", None)
    if kind == "linear" and isinstance(value, list) and len(value) == 2:
        return tuple(value)
    if kind == "layers" and isinstance(value, list):
        return value
    if type(value) is {"share": float, "constant": int}.get(kind):
        return value
    raise ConfigError(f"{path}: r is {r!r}, not one of constant, share, linear and layers.")


def _inputs(module: ToMeModule) -> list[dict[str, Any]] | None:
    """Shape and dtype of each input; None where one is no tensor by place."""
    example = module._example
    if example is None or example.kwargs:
        return None
    if module._located().program.batch == 1 and example.single is not None:
        example = example.single
    if not all(isinstance(x, torch.Tensor) for x in example.args):
        return None
    return [
        {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")} for x in example.args
    ]


def _zeros(inputs: Any, model: nn.Module, path: Path) -> tuple[torch.Tensor, ...] | None:
    """Inputs as the recipe has them, on the device and in the floating dtype of ``model``."""
    if inputs is None:
        return None
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def zeros(shape: Any, dtype: str) -> torch.Tensor:
        value = torch.zeros(shape, dtype=getattr(torch, dtype), device=like.device)
        return value.to(like.dtype) if value.is_floating_point() else value

    try:
        return tuple(zeros(x["shape"], x["dtype"]) for x in inputs)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: its inputs are not shapes and dtypes ({first}).") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from None
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise ConfigError(f"{path} is no recipe of tome_fx: save one with tome_fx.save_recipe.")
    if recipe.get("version") != VERSION:
        raise ConfigError(
            f"{path} has version {recipe.get('version')!r}, this tome_fx reads {VERSION}. It was "
            f"saved by tome_fx {recipe.get('tome_fx')}."
        )
    _reject(recipe, _KEYS, path, "recipe")
    missing = [key for key in _KEYS if key not in recipe]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}.")
    if not isinstance(recipe["settings"], dict) or not isinstance(recipe["schedule"], list):
        raise ConfigError(f"{path}: settings is no object, or schedule is no list.")
    _reject(recipe["settings"], SAVED_OPTIONS, path, "settings")
    name = recipe["weights"]
    beside = isinstance(name, str) and Path(name).name == name and name.endswith(_WEIGHTS)
    if name is not None and not beside:
        raise ConfigError(f"{path}: weights is {name!r}, not the name of a file beside it.")
    return recipe


def _reject(found: Mapping[str, Any], known: tuple[str, ...], path: Path, where: str) -> None:
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{path}: {key!r} is not known in its {where}.{hint}")
