"""L5: the source model and the process are untouched, also after a failure; calls share nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tome_fx
from tests.architectures import Architecture
from tests.laws.common import (
    TINY,
    Subject,
    assert_differs,
    assert_merged,
    run,
    subjects_with_schedule,
    transform,
)
from tests.laws.world import process_state, world
from tests.profiles import examples

pytestmark = TINY


@examples(3)
@given(
    subjects_with_schedule(),
    st.sampled_from([torch.float64, torch.float32]),
    st.booleans(),
    st.booleans(),
)
def test_model_and_process_stay_as_they_were(
    drawn: tuple[Subject, list[int]], dtype: torch.dtype, grad: bool, training: bool
) -> None:
    config, schedule = drawn
    model, x = config.build(dtype), config.images(dtype)
    model.train(training)
    for i, module in enumerate(model.modules()):
        if i % 3 == 1:  # a mode of its own, as with a frozen part
            module.training = not training
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    with torch.set_grad_enabled(grad):
        before = world(model)
        fast = transform(model, x, schedule)
        assert world(model) == before
        fast.eval()
        run(fast, x)
        fast.token_map(x)
        str(fast.report)
        fast.r = 0
        run(fast, x)
        fast.r = schedule
        tome_fx.explain(model, schedule, example_inputs=(x,))
        assert world(model) == before
    assert_merged(fast, schedule, config)
    assert_differs(fast, model.eval(), x, config)


class DataDependent(nn.Module):
    """A model that looks at the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Architecture().build()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + 1
        return self.body(x)


def convolutions() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    return layers.double().eval()


FAILURES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception]]] = {
    "negative r": (Architecture().build, {"r": -1}, tome_fx.ConfigError),
    "r is a bool": (Architecture().build, {"r": True}, tome_fx.ConfigError),
    "unknown capture": (Architecture().build, {"capture": "magic"}, tome_fx.ConfigError),
    "wrong size": (
        Architecture().build,
        {"r": 2, "example_inputs": (torch.zeros(2, 3, 10, 10, dtype=torch.float64),)},
        tome_fx.InputError,
    ),
    "wrong dtype": (
        Architecture().build,
        {"r": 2, "example_inputs": (torch.zeros(2, 3, 6, 6, dtype=torch.float32),)},
        tome_fx.InputError,
    ),
    "data-dependent": (DataDependent, {"r": 2}, tome_fx.CaptureError),
    "no attention": (convolutions, {"r": 2}, tome_fx.NoAttentionFoundError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_leaves_no_trace(name: str) -> None:
    make, options, error = FAILURES[name]
    model = make()
    inputs = {"example_inputs": (Architecture().images(),)}
    before = world(model)
    with pytest.raises(error):
        tome_fx.transform(model, **(inputs | options))
    assert world(model) == before


def test_a_failed_replan_changes_nothing() -> None:
    config = Architecture()
    model, x = config.build(), config.images()
    fast = transform(model, x, [2, 1])
    expected = run(fast, x)
    for wrong in (-1, "many", [1, 2, 3], float("nan")):
        with pytest.raises(tome_fx.ConfigError):
            fast.r = wrong
        assert fast.r == [2, 1]
        assert torch.equal(run(fast, x), expected)


def test_hooks_of_the_source_stay() -> None:
    config = Architecture()
    model, x = config.build(), config.images()
    calls: list[str] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    model.register_forward_pre_hook(lambda *_: calls.append("model"))
    before = world(model)
    with pytest.warns(UserWarning, match="Hooks on .*blocks.0"):
        transform(model, x, [2, 1])
    assert world(model) == before
    calls.clear()
    run(model, x)
    assert calls == ["model", "block"]


def test_the_input_is_not_changed() -> None:
    config = Architecture()
    model, x = config.build(), config.images()
    fast, copy = transform(model, x, [2, 1]), x.clone()
    out = run(fast, x)
    assert torch.equal(x, copy)
    out.zero_()
    assert torch.equal(x, copy)
    assert not torch.equal(run(fast, x), out)


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Run all at once; the first exception is raised here."""
    results: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        try:
            start.wait(timeout=60)
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@examples(3)
@given(subjects_with_schedule(max_depth=2))
def test_threads_and_interleaved_calls(drawn: tuple[Subject, list[int]]) -> None:
    config, schedule = drawn
    model = config.build()
    images = [config.images(batch=1 + i % 3, seed=i) for i in range(4)]
    fast = transform(model, images[1], schedule)
    assert_merged(fast, schedule, config)
    expected = [run(fast, x) for x in images]

    def many(x: Tensor) -> list[Tensor]:
        return [run(fast, x) for _ in range(10)]

    found = in_threads([lambda x=x: many(x) for x in images])
    for outputs, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(output, wanted) for output in outputs)


def test_a_transform_beside_running_programs() -> None:
    first, second = Architecture(seed=1), Architecture(pool="avg", fused=False, seed=2)
    model, x = first.build(), first.images()
    fast = transform(model, x, [2, 1])
    models = [second.build() for _ in range(3)]
    expected, before = run(fast, x), process_state()

    def infer() -> list[Tensor]:
        return [run(fast, x) for _ in range(200)]

    def original() -> list[Tensor]:
        return [run(model, x) for _ in range(200)]

    def build() -> Tensor:
        return run(transform(models.pop(), x, [1, 1]), x)

    alone, plain = build(), run(model, x)
    outputs, originals, one, two = in_threads([infer, original, build, build])
    assert all(torch.equal(output, expected) for output in outputs)
    assert all(torch.equal(output, plain) for output in originals)
    assert torch.equal(one, alone)
    assert torch.equal(two, alone)
    assert process_state() == before
