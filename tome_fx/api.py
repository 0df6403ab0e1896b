"""The public functions: :func:`transform` and :func:`explain`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from tome_fx.capturing.blame import is_own_code
from tome_fx.capturing.examples import (
    Example,
    away,
    given_example,
    inferred_examples,
    none_accepted,
    rejection,
)
from tome_fx.capturing.first_call import first_call
from tome_fx.capturing.skeleton import refuse_averaging, unwrapped
from tome_fx.capturing.source import Source, source_of
from tome_fx.costs.hardware import DeviceModel
from tome_fx.errors import (
    AlreadyTransformedError,
    CaptureError,
    ConfigError,
    InputError,
    warn,
)
from tome_fx.grouping import Align
from tome_fx.module import ToMeModule
from tome_fx.options import Remerge, Settings, checked, reject_unknown, rule_table
from tome_fx.own_matching import Function
from tome_fx.report import Report
from tome_fx.rules.base import Rule
from tome_fx.schedule import Rounding


def transform(
    model: Any,
    r: Any = 16,
    *,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    example_call: Callable[[], object] | None = None,
    prop_attn: bool = True,
    capture: str = "auto",
    check: bool = True,
    rounding: Rounding = "truncate",
    strict: bool = False,
    protect: int | tuple[int, int] | None = None,
    remerge: Remerge = "mean",
    min_ratio: float = 1.02,
    scatter: bool = True,
    attention: str = "auto",
    every: int = 1,
    align: Align = 1,
    batch: int | None = None,
    hardware: DeviceModel | str | None = None,
    min_speedup: float = 1.0,
    rules: Iterable[tuple[Any, Rule]] | Mapping[Any, Rule] = (),
    matching: Function | None = None,
    **unknown: Any,
) -> ToMeModule:
    """Rewrite a Vision Transformer to merge similar tokens between attention and MLP.

    The method is Token Merging (Bolya et al., ICLR 2023, section 3). The model itself stays as it
    is; the result shares its parameters.

    Args:
        model: an ``nn.Module``, an ``fx.GraphModule`` or an ``ExportedProgram``. Modules wrapped by
            ``torch.compile`` or ``DistributedDataParallel`` are unwrapped; the latter is refused in
            training with several processes, whose gradients it averages.
        r: tokens to remove at each layer: an int; ``(r, inflect)`` for the paper's linear
            schedule (``(16, -1.0)`` falls from 32 to 0); a list, one entry a layer; a float from
            0 to below 1, the share of the tokens that reach a layer; 0 for none.
        example_inputs: a tensor, or a tuple of positional inputs with the batch on axis 0, any
            batch size. Inferred where the model says its image size.
        example_kwargs: keyword inputs.
        example_call: in place of both, for a part of a larger model, a function without arguments
            that calls the whole (``lambda: whole(**inputs)``): it runs once, and the inputs are
            those of its first call of ``model``.
        prop_attn: add ``log size`` to attention (equation 1); False for models trained without.
        capture: ``export``, ``symbolic_trace`` or ``auto`` (export, then symbolic tracing).
        check: run the model and what was captured of it once, on two of the example images. Where
            they differ by more than rounding (a model's code may act differently while it is
            traced), another way to capture it is tried, and CaptureError raised if there is none.
            Not done for what draws random numbers, on the meta device and for an ExportedProgram;
            False saves the time.
        rounding: how ``(r, inflect)`` becomes whole numbers: ``truncate`` as the paper does, or
            ``exact``, whose sum is ``r`` times the number of layers.
        strict: an ``r`` that must be clamped is an error, and so is a list of it that ``every`` or
            ``align`` would change.
        protect: tokens of the image itself that never merge: a number at the front, or
            ``(front, back)``; by default those that the model reads by index. Class, distillation
            and register tokens are always protected.
        remerge: what becomes of values that an op told apart within a group (a convolution over the
            grid) where they come back to the stream: ``mean`` averages them in each group, the one
            approximation besides the merging itself; ``never`` gives all tokens back from there to
            the next merge, which is exact and slower.
        min_ratio: merging that saves less than this FLOP ratio is not applied, with a warning; 0
            always applies it.
        scatter: False places merged tokens by gathers and one-hot products instead, for runtimes
            whose scatter is missing or wrong: equal up to rounding, and slower.
        attention: how attention over merged keys is computed: ``auto`` takes fused attention and,
            except on a CPU, the form of ``log size`` that is measured to be fastest, once for each
            device, dtype and shape; ``measure`` does so on a CPU too; ``mask``, ``channel``,
            ``values``, ``flex``, ``kernel`` or ``plain`` (see ``tome_fx.ops``) name the form, taken
            where it is legal; ``written`` keeps the model's own ops.
        every: merge at one of each ``every`` layers only, all tokens of these at once.
        align: bring the tokens behind each merge, protected ones included, to a multiple of this;
            ``auto`` chooses it by the device and dtype.
        batch: images in a call. Merging that does not pay at this batch, by an estimate, is not
            applied; nor is a single merge that costs more than it saves.
        hardware: where that is estimated: ``cpu`` (one core), ``a100``, ``h100``, ``h200``, the
            latter three also with ``-graphs`` (CUDA graphs), or a ``DeviceModel``; by default the
            device of the model.
        min_speedup: what the estimate at this ``batch`` has to reach; 0 always applies merging.
        rules: rules for more ops, ``(torch.ops.ns.op, rule)`` each; see ``tome_fx.rules``.
        matching: another way to choose what merges: a function that is given by keyword what its
            parameters are named for, of ``metric``, ``r``, ``keys``, ``x``, ``size`` and
            ``position``, and returns ``(src, dst)``, which tokens merge away and into which
            (``docs/matching.md``); None for bipartite soft matching.

    Returns:
        A graph module with the model's inputs, outputs, parameters and mode.

    Raises:
        TypeError: ``model`` is not a model.
        ConfigError: an option is unknown or outside its range.
        InputError: example inputs are missing or the model rejects them.
        CaptureError: the model cannot be turned into a graph, or only into that of another
            computation.
        NoAttentionFoundError: there is no attention to merge at.
        AlreadyTransformedError: ``model`` is the result of a transform.
    """
    reject_unknown(unknown)
    settings = checked(
        Settings(
            r,
            prop_attn,
            capture,
            check,
            rounding,
            strict,
            protect,  # type: ignore[arg-type]
            rule_table(rules),
            remerge,
            min_ratio,
            scatter,
            attention,
            every,
            align,
            batch,
            hardware,
            min_speedup,
            matching,
        )
    )
    refuse_averaging(model)
    model = _unwrapped(model)
    source = source_of(model)
    if isinstance(source.skeleton, nn.Module):
        _warn_about_hooks(model)
        if example_call is not None:
            _check_call(example_inputs, example_kwargs, example_call)
            example_inputs, example_kwargs = first_call(model, example_call)
        given = given_example(example_inputs, example_kwargs)
        result = _captured(source, source.skeleton, settings, given)
    else:
        told = (example_inputs, example_kwargs or None, example_call)
        if any(one is not None for one in told) or capture != "auto":
            raise ConfigError(
                "An ExportedProgram is captured already, for the inputs that it was exported with: "
                "leave out example_inputs, example_kwargs, example_call and capture, or transform "
                "the model."
            )
        result = ToMeModule(source, settings, None)
    if result.report.skipped:
        warn(result.report.skipped)
    return result


def explain(model: Any, r: Any = 16, **options: Any) -> Report:
    """What :func:`transform` would find and do: blocks, tokens per layer, MACs, every unmerge.

    Takes the same options. A module that is already transformed gives its own report, whatever the
    options.
    """
    unknown = {k: v for k, v in options.items() if k not in inspect.signature(transform).parameters}
    reject_unknown(unknown)
    inner = unwrapped(model)
    if isinstance(inner, ToMeModule):
        return inner.report
    return transform(inner, r, **options).report


def _captured(
    source: Source, model: nn.Module, settings: Settings, given: Example | None
) -> ToMeModule:
    """The result from the first example that the model accepts."""
    tried = []
    for example in [given] if given else inferred_examples(model):
        try:
            return ToMeModule(source, settings, example)
        except CaptureError:
            # Whose fault is it? Only a failure asks for a run of the model itself.
            problem = rejection(model, example)
            if problem is None:
                if missing := away(model):
                    raise ConfigError(missing) from None
                raise
            if given:
                named = len(given.args) == 1 and isinstance(given.args[0], Mapping)
                step = ". Give a dict of keyword inputs as example_kwargs." if named else ""
                raise InputError(
                    f"The model itself rejects these example inputs: {problem}{step}"
                ) from None
            tried.append(f"{tuple(example.args[0].shape)}: {problem}")
    raise none_accepted(tried)


def _check_call(inputs: Any, kwargs: Any, call: Any) -> None:
    if inputs is not None or kwargs:
        raise ConfigError(
            "example_call says what the inputs are: leave out example_inputs and example_kwargs."
        )
    if not callable(call):
        raise ConfigError(
            f"example_call={call!r} is no function. Give one that calls what the model is a part "
            "of, for instance example_call=lambda: whole(**inputs)."
        )


def _unwrapped(model: Any) -> Any:
    """The model inside a wrapper that changes nothing, or an error that says what to pass."""
    model = unwrapped(model)
    if isinstance(model, ToMeModule):
        raise AlreadyTransformedError(
            f"This model was transformed with r={model.r!r}. "
            "Assign model.r to change it, or transform the original model."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            "A ScriptModule has no Python code to capture. Pass the nn.Module it was made from."
        )
    bases = {cls.__name__ for cls in type(model).__mro__}
    if bases & {"FSDPModule", "FullyShardedDataParallel"}:
        raise ConfigError(
            "The parameters of this model are sharded (FSDP). "
            "Transform the model first, then shard the result."
        )
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram)):
        raise TypeError(
            f"transform takes an nn.Module, fx.GraphModule or ExportedProgram, "
            f"not {type(model).__name__}."
        )
    if isinstance(model, nn.Module):
        for name, part in model.named_modules():
            if isinstance(part, ToMeModule):
                raise AlreadyTransformedError(
                    f"{name} was transformed with r={part.r!r}. Transform the model that it was "
                    "made from, as a whole."
                )
    return model


def _warn_about_hooks(model: nn.Module) -> None:
    if isinstance(model, GraphModule):
        return  # its graph is all there is to carry over
    hooked = [
        name or type(model).__name__
        for name, module in model.named_modules()
        for hook in (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *module._backward_hooks.values(),
            *module._backward_pre_hooks.values(),
        )
        if not is_own_code(hook, module)
    ]
    hooked = list(dict.fromkeys(hooked))
    if hooked:
        warn(
            f"Hooks on {', '.join(hooked[:5])} are not carried over: what they compute at capture "
            "stays in the program, what they do besides does not happen.",
        )
