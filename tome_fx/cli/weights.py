"""Where weights come from: the hub, a file, or the random generator. Nothing is unpickled."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tome_fx.cli.failure import CliError, one_line

SEED = 0
RANDOM = f"random (seed {SEED})"
PATIENCE = 3.0  # seconds to find out whether the hub can be reached

# Where published files keep the weights, next to optimizer states and the like.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def create(
    name: str, pretrained: bool | None, fresh: bool, options: Mapping[str, Any]
) -> tuple[nn.Module, str]:
    """Return a timm model and, in words, what weights it holds.

    `pretrained=None` takes weights that can be had within seconds and random ones otherwise;
    True raises CliError where they cannot be had. `fresh=False`: a checkpoint follows.
    """
    import timm

    if fresh and pretrained is not False:
        try:
            with _hub():
                model = timm.create_model(name, pretrained=True, **options)
            return model, f"pretrained ({_tag(model, name)})"
        except (OSError, RuntimeError) as error:
            if pretrained:
                raise CliError(
                    f"{name}: no pretrained weights (--no-pretrained takes random ones, "
                    f"--checkpoint FILE your own): {one_line(error, 200)}"
                ) from error
    torch.manual_seed(SEED)
    source = RANDOM if pretrained is False or not fresh else f"{RANDOM}, no others in reach"
    return timm.create_model(name, pretrained=False, **options), source


def _tag(model: nn.Module, name: str) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    tag = config.get("tag") if isinstance(config, dict) else None
    return f"{name.partition('.')[0]}.{tag}" if tag else name


@contextmanager
def _hub() -> Iterator[None]:
    """Let the hub be asked for weights; from its cache alone where it cannot be reached.

    Without a network its client tries again and again, most of a minute for each file.
    """
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    logger.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = offline or not reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)


def reachable(url: str, patience: float = PATIENCE) -> bool:
    """Tell whether anything answers at a URL within `patience` seconds, proxies included."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=patience).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except (OSError, ValueError):
            answers.append(False)

    # A thread, for the look-up of a name knows no time limit.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(patience)
    return bool(answers and answers[0])


def load_checkpoint(model: nn.Module, path: Path) -> str:
    """Load weights into the model, strictly; returns under which names the file holds them.

    A .safetensors file, or one of torch.save that holds tensors and plain containers only: code
    in it is never run. Of a model and its moving average it is the average, as
    timm.models.load_checkpoint has it. Raises CliError where the file is neither, or does not fit.
    """
    state, inside = _state_dict(_read(path))
    if not state:
        raise CliError(f"--checkpoint {path}: holds no weights")
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        parts = [_listed("lacks", missing), _listed("has unknown", unknown)]
        raise CliError(f"--checkpoint {path}: {', '.join(part for part in parts if part)}")
    shapes = [key for key in own if own[key].shape != state[key].shape]
    if shapes:
        key = shapes[0]
        theirs, ours = tuple(state[key].shape), tuple(own[key].shape)
        raise CliError(f"--checkpoint {path}: {key} is {theirs}, the model's is {ours}")
    model.load_state_dict(state)
    return inside


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        text = one_line(error)
        if "weights_only" in text or "Unsupported" in text:
            text = "not a checkpoint that holds weights alone (code in a file is never run)"
        elif not isinstance(error, (OSError, RuntimeError)):
            text = "not a safetensors or torch file"
        raise CliError(f"--checkpoint {path}: {text[:200]}") from error


def _state_dict(content: Any) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and the keys that led to them."""
    keys = []
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            keys.append(key)
    if not isinstance(content, Mapping):
        return {}, ""
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, ".".join(keys)


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return f"{what} {', '.join(keys[:2])}{more}"
