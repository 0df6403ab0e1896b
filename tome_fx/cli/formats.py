"""The files that a model is exported to: written, and run again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tome_fx.cli.failure import CliError

Runner = Callable[[Tensor], Tensor]
SUFFIX = {"pt2": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}


def write(module: nn.Module, x: Tensor, path: Path, kind: str, dynamic: bool) -> Runner:
    """Export ``module`` for inputs like ``x`` to ``path``, and return what runs the file.

    Args:
        kind: ``pt2`` (an ExportedProgram), ``aoti`` (compiled ahead of time for this machine) or
            ``onnx``.
        dynamic: any batch of two or more; else the batch of ``x`` alone.

    Raises:
        CliError: the packages for ONNX are not installed.
    """
    return {"pt2": _pt2, "aoti": _aoti, "onnx": _onnx}[kind](module, x, path, dynamic)


def _program(module: nn.Module, x: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = _shapes(dynamic)
    return torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)


def _shapes(dynamic: bool) -> Any:
    return ({0: torch.export.Dim("batch", min=2, max=65536)},) if dynamic else None


def _pt2(module: nn.Module, x: Tensor, path: Path, dynamic: bool) -> Runner:
    torch.export.save(_program(module, x, dynamic), path)
    loaded: Runner = torch.export.load(path).module()
    return loaded


def _aoti(module: nn.Module, x: Tensor, path: Path, dynamic: bool) -> Runner:
    program = _program(module, x, dynamic)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    loaded: Runner = torch._inductor.aoti_load_package(str(path))
    return loaded


def _onnx(module: nn.Module, x: Tensor, path: Path, dynamic: bool) -> Runner:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise CliError(
            f'--format onnx needs the package {error.name}: pip install "tome_fx[onnx]"'
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it reports each of its steps there
        program = torch.onnx.export(
            module, (x.cpu(),), dynamo=True, dynamic_shapes=_shapes(dynamic), verbose=False
        )
    assert program is not None, "the exporter through Dynamo returns its program"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])

    return run
