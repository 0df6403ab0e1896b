"""Copies of a result: deepcopy, pickle, torch.save, another process, other threads."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tome_fx
from tests.laws.common import TINY
from tests.laws.test_l5_purity import in_threads
from tests.laws.world import process_state, world
from tests.tiny import Around, Stateful, images, parametrized, tiny

pytestmark = TINY


def ids(tensors: Any) -> list[int]:
    return [id(tensor) for tensor in tensors]


def by_deepcopy(fast: Any) -> Any:
    return copy.deepcopy(fast)


def by_pickle(fast: Any) -> Any:
    return pickle.loads(pickle.dumps(fast))


def by_save(fast: Any) -> Any:
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.few(1)
@pytest.mark.parametrize("how", [by_deepcopy, by_pickle, by_save])
@pytest.mark.parametrize("training", [False, True])
def test_a_copy(how: Callable[[Any], Any], training: bool) -> None:
    model, x = Stateful().train(training), images()
    fast = tome_fx.transform(model, 2, example_inputs=x, prop_attn=False)
    fast.r = [3, 1]
    with torch.no_grad():
        fast.kept.add_(1.0)
    other = how(fast)
    assert isinstance(other, tome_fx.ToMeModule)
    assert other.training is training
    assert (other.r, other.report, other.settings) == (fast.r, fast.report, fast.settings)
    assert list(other.state_dict()) == list(fast.state_dict())
    assert ids(other.parameters()) != ids(fast.parameters())
    first = "body.blocks.0.mlp.fc1.weight"
    assert other.get_parameter(first) is other.get_parameter(first.replace("0", "1", 1))
    assert not other.get_parameter(first).requires_grad
    assert torch.equal(other(x), fast(x))
    with torch.no_grad():
        other.kept.add_(1.0)
    assert not torch.equal(other(x), fast(x))
    other.r = 1
    other.train(not training)
    assert (fast.r, fast.training) == ([3, 1], training)


def test_a_shallow_copy_is_no_silent_trap() -> None:
    fast = tome_fx.transform(tiny(), 2)
    other = copy.copy(fast)
    other.r = 1
    assert other.schedule == (1, 1)


def test_what_cannot_be_pickled_says_why() -> None:
    fast = tome_fx.transform(parametrized(), 2)
    assert torch.equal(copy.deepcopy(fast)(images()), fast(images()))
    with pytest.raises(RuntimeError, match="parametrized"):
        pickle.dumps(fast)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(tome_fx.transform(Around(lambda m, x: m(x)), 2, example_inputs=images()))


def outputs(fast: Any, x: Tensor) -> tuple[Any, Any, list[list[float]]]:
    torch.set_num_threads(1)
    return fast.r, fast.schedule, fast(x).tolist()


def test_another_process() -> None:
    fast, x = tome_fx.transform(tiny(), [2, 1]), images()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        r, schedule, y = pool.apply(outputs, (fast, x))
    assert (r, schedule) == ([2, 1], (2, 1))
    assert torch.allclose(torch.tensor(y), fast(x), rtol=1e-5, atol=1e-6)


def test_threads_transform_and_run_at_once() -> None:
    models = [tiny(depth=depth) for depth in (1, 2, 3)]
    wanted = [tome_fx.transform(model, 2)(images()) for model in models]
    before = process_state()

    def job(model: nn.Module, capture: str) -> Tensor:
        fast = tome_fx.transform(model, 1, capture=capture)
        for r in (0, 2):
            fast.r = r
        return [fast(images()) for _ in range(10)][-1]

    doors = ("export", "symbolic_trace", "export")
    jobs = [lambda m=m, d=d: job(m, d) for m, d in zip(models, doors, strict=True)]
    for y, expected in zip(in_threads(jobs), wanted, strict=True):
        assert torch.equal(y, expected)
    assert process_state() == before


# --- sources that cannot be copied ---------------------------------------------------------------


def locked() -> nn.Module:
    model = tiny()
    model.lock = threading.Lock()
    return model


def with_a_computed_attribute() -> nn.Module:
    model = tiny()
    model.latest = model.head.weight * 2
    return model


def pruned() -> nn.Module:
    model = tiny()
    prune.l1_unstructured(model.blocks[0].mlp.fc1, "weight", amount=0.5)
    return model


# Pruning is a hook, which a warning names; torch.export warns of the attribute that it sets.
@pytest.mark.filterwarnings("ignore:Hooks on blocks.0.mlp.fc1", "ignore:The tensor attribute")
@pytest.mark.few(2)
@pytest.mark.parametrize("make", [locked, with_a_computed_attribute, pruned])
@pytest.mark.parametrize("capture", ["export", "symbolic_trace"])
def test_a_source_that_cannot_be_copied_stays_as_it_is(
    make: Callable[[], nn.Module], capture: str
) -> None:
    model, x = make(), images()
    before = world(model)
    fast = tome_fx.transform(model, 2, capture=capture)
    fast.train()
    fast.r = 1
    fast.eval()
    assert world(model) == before
    fast.r = 0
    assert torch.equal(fast(x), model(x))


def test_a_result_of_an_exported_program_is_pickled_as_one() -> None:
    x = images()
    program = torch.export.export(tiny(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    fast = tome_fx.transform(program, 2)
    again = by_pickle(fast)
    assert again.schedule == fast.schedule
    wide = images(batch=3)
    assert torch.equal(again(wide), fast(wide))
