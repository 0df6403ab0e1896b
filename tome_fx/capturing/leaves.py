"""Modules that cannot be captured, each as one op in the capture of what stands around it."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tome_fx.capturing.blame import blame
from tome_fx.capturing.calling import other_forward
from tome_fx.capturing.containers import PLAIN
from tome_fx.capturing.examples import Example, run_apart
from tome_fx.capturing.skeleton import fresh
from tome_fx.errors import CaptureError
from tome_fx.graph.leaves import Form, Leaf, Made, Measured, Slot, leaf

# How torch casts and moves a module, and it calls itself for each child.
_MOVES = ("_apply", "to", "cpu", "cuda", "float", "double", "half", "bfloat16", "type", "to_empty")


def culprit(error: BaseException, model: nn.Module) -> str:
    """The path of the innermost module whose code an exception went through; "" if none."""
    # A module with two places is called through another object, which has its attributes.
    paths = {id(vars(module)): path for path, module in model.named_modules()}
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CaptureError) and seen.module and seen.module in paths.values():
            return seen.module
        for frame, _ in reversed(list(traceback.walk_tb(seen.__traceback__))):
            owner = frame.f_locals.get("self")
            if (
                frame.f_code.co_name in _MOVES
                and frame.f_code.co_filename == nn.modules.module.__file__
            ):
                continue  # what is cast is not what asks for it
            path: str = paths.get(id(vars(owner)), "") if isinstance(owner, nn.Module) else ""
            if path:
                return path
        seen = seen.__cause__ or seen.__context__
    return ""


@contextmanager
def as_leaves(model: nn.Module, reasons: Mapping[str, str], example: Example) -> Iterator[None]:
    """Within, the modules at the paths of ``reasons`` run as one op each.

    Raises:
        CaptureError: the model does not run, or one of them cannot be an op: what it makes does
            not follow from the shapes of what it gets.
    """
    modules, running = {path: model.get_submodule(path) for path in reasons}, fresh(model)
    try:
        first = _recorded(running, reasons, example)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError("The model does not run on its example inputs.") from error
    try:
        second = _recorded(running, reasons, _larger(example))
    except Exception:  # the model's own code fixes the batch
        second = first
    with ExitStack() as stack:
        for path, module in modules.items():
            if len(first[path]) != len(second[path]):
                text = f"{path} is called once for each image, so it cannot stay a call."
                raise CaptureError(text, path)
            calls = zip(first[path], second[path], strict=True)
            leaves = [_leaf(path, reasons[path], module, example.batch, *pair) for pair in calls]
            for leaf_, call in zip(leaves, first[path], strict=True):
                _tried(leaf_, model, module, call)
            stack.enter_context(other_forward(module, _Stub(module, leaves)))
        yield


@dataclass(frozen=True)
class _Call:
    """What came into a module and out of it, at one call."""

    given: Form
    result: Form
    came: tuple[Tensor, ...]
    made: tuple[Tensor, ...]
    flops: int


def _recorded(model: nn.Module, paths: Iterable[str], example: Example) -> dict[str, list[_Call]]:
    """The calls of some modules in a run on the example, which leaves the model as it was."""
    found: dict[str, list[_Call]] = {path: [] for path in paths}
    counter = _Counter()
    with ExitStack() as stack:
        for path in found:
            module = model.get_submodule(path)
            stack.enter_context(
                other_forward(module, _Recorder(path, module, found[path], counter))
            )
        stack.enter_context(counter)
        run_apart(model, example)
    return found


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations as ``FlopCounterMode`` does, without its hooks on modules.

    Those fail where a module is handed a view of a parameter.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


class _Recorder:
    """A forward that writes down what it gets and returns.

    Raises:
        CaptureError: it writes to what it gets, which others read at their own level of merging,
            or puts new buffers in the place of its own, which no call hands back.
    """

    def __init__(self, path: str, module: nn.Module, calls: list[_Call], counter: _Counter) -> None:
        self.path, self.module, self.forward = path, module, module.forward
        self.calls, self.counter = calls, counter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given, came = Form.of((args, kwargs))
        before = self.counter.flops
        versions, weights = [tensor._version for tensor in came], _weights(self.module)
        value = self.forward(*args, **kwargs)
        flops = self.counter.flops - before
        if versions != [tensor._version for tensor in came]:
            raise CaptureError(f"{self.path} writes to its inputs, so it cannot stay a call.")
        after = _weights(self.module)
        if any(after.get(name) is not tensor for name, tensor in weights.items()):
            raise CaptureError(f"{self.path} replaces its buffers, so it cannot stay a call.")
        result, made = Form.of(value)
        self.calls.append(_Call(given, result, tuple(came), tuple(made), flops))
        return value


class _Stub:
    """A forward that is one op for whoever traces it."""

    def __init__(self, module: nn.Module, leaves: list[Leaf]) -> None:
        self.module, self.leaves, self.calls = module, leaves, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Stub:
        return _Stub(copy.deepcopy(self.module, memo), self.leaves)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given, came = Form.of((args, kwargs))
        called = self.leaves[self.calls % len(self.leaves)]  # a model may be captured twice
        self.calls += 1
        if given != called.given:
            raise CaptureError(
                f"{called.path} is called with other arguments in a trace than in a run, say "
                "sizes that follow the batch."
            )
        weights = _weights(self.module)
        made = leaf(called.key, [*came, *(weights[name] for name in called.names)])
        return called.result.filled(made)


def _larger(example: Example) -> Example:
    """The example with one image more."""

    def longer(value: Tensor) -> Tensor:
        return torch.cat([value, value[:1]]) if example.has_rows(value) else value

    args, kwargs = pytree.tree_map_only(Tensor, longer, (example.args, dict(example.kwargs)))
    return Example(args, kwargs, example.batch + 1)


def _leaf(
    path: str, reason: str, module: nn.Module, batch: int, call: _Call, larger: _Call
) -> Leaf:
    """The leaf of a call, from how its shapes grow with the batch."""
    others = [v for form in (call.given, call.result) for v in form.values]
    odd = [v for v in others if not isinstance(v, (*PLAIN, Slot))]
    if (call.given, call.result) != (larger.given, larger.result) or odd:
        what = f"a {type(odd[0]).__name__}" if odd else "numbers that follow the batch"
        raise CaptureError(f"{path} takes or returns {what}, so it cannot stay a call.")
    came = list(zip(call.came, larger.came, strict=True))
    made = tuple(
        Made(
            tuple(_extent(path, came, *pair) for pair in zip(a.shape, b.shape, strict=True)),
            a.dtype,
        )
        for a, b in zip(call.made, larger.made, strict=True)
    )
    macs = call.flops // 2 // max(batch, 1)
    return Leaf(path, reason, module, tuple(_weights(module)), call.given, call.result, made, macs)


class _Reads(TorchFunctionMode):
    """Notes whether any op gets one of some tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.watched, self.found = {id(tensor) for tensor in tensors}, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = pytree.tree_leaves((args, kwargs))
        self.found = self.found or any(id(value) in self.watched for value in given)
        return func(*args, **(kwargs or {}))


def _tried(made: Leaf, model: nn.Module, module: nn.Module, call: _Call) -> None:
    """Run a leaf by itself, on copies of its own weights.

    Raises:
        CaptureError: it does not run, or reads weights that are none of its own.
    """
    weights = [value.detach().clone() for value in _weights(module).values()]
    others = _Reads([*model.parameters(), *model.buffers()])
    try:
        with others, torch.no_grad(), torch.random.fork_rng(devices=[]):
            made.run(*call.came, *weights)
    except Exception as error:
        text = f"{made.path} does not run by itself, so it cannot stay a call: {blame(error)}"
        raise CaptureError(text) from error
    if others.found:
        raise CaptureError(f"{made.path} reads weights of others, so it cannot stay a call.")


def _extent(path: str, came: list[tuple[Tensor, Tensor]], size: int, larger: int) -> int | Measured:
    if size == larger:
        return size
    for index, (before, after) in enumerate(came):
        for dim, (one, other) in enumerate(zip(before.shape, after.shape, strict=True)):
            if one and size % one == 0 and larger == size // one * other and one != other:
                return Measured(index, dim, size // one)
    raise CaptureError(f"{path} makes shapes that follow the values of its inputs.")


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones at each of theirs."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
