"""The result under torch.compile and torch.export: one graph, for every batch size."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, seeded, tiny

pytestmark = TINY


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No compiled code from another test, and none left for the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A backend that runs the graph as it is and counts the graphs."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward


def dynamic(x: Tensor) -> Tensor:
    torch._dynamo.mark_dynamic(x, 0)
    return x


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "global_pool": "avg"}], ids=str)
def test_one_graph_for_all_batches(options: dict[str, Any]) -> None:
    fast, counter = tome_fx.transform(tiny(**options), 2), Counter()
    compiled = torch.compile(fast, fullgraph=True, backend=counter)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3, 5, 2):
            x = images(batch)
            assert torch.equal(compiled(dynamic(x)), fast(x))
    assert len(counter.graphs) == 1


def test_no_graph_break() -> None:
    fast = tome_fx.transform(tiny(), 2)
    found = torch._dynamo.explain(fast)(images())
    assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_a_new_r_is_compiled_anew() -> None:
    fast, counter = tome_fx.transform(tiny(), 2), Counter()
    compiled = torch.compile(fast, fullgraph=True, backend=counter)
    x = images()
    with torch.no_grad():
        outputs = []
        for r in (2, 1, 0):
            fast.r = r
            assert torch.equal(compiled(x), fast(x))
            outputs.append(compiled(x))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_the_mode_is_compiled_anew() -> None:
    model = tiny(proj_drop_rate=0.5)
    fast, counter = tome_fx.transform(model, 2), Counter()
    compiled = torch.compile(fast, fullgraph=True, backend=counter)
    x = images()
    for training in (False, True, False):
        fast.train(training)
        assert torch.equal(seeded(compiled, x), seeded(fast, x))
        varies = not torch.equal(seeded(compiled, x, seed=1), seeded(compiled, x, seed=2))
        assert varies is training


def test_training_through_aot_autograd() -> None:
    model, x = tiny(init_values=0.5), images(3)
    fast = tome_fx.transform(model.train(), 2)
    fast(x).square().sum().backward()
    wanted = [parameter.grad.clone() for parameter in fast.parameters()]
    fast.zero_grad()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    compiled(dynamic(x)).square().sum().backward()
    for parameter, grad in zip(fast.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.compiler
def test_inductor() -> None:
    fast = tome_fx.transform(tiny(), 2)
    compiled = torch.compile(fast, fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3, 5):
            x = images(batch)
            torch.testing.assert_close(compiled(dynamic(x)), fast(x), rtol=1e-4, atol=1e-5)


PARTLY_COMPILED = """
import torch, tome_fx
from tests.tiny import images, tiny
model, x = tiny(), images()
wanted = tome_fx.transform(model, [4, 2])(x)
model.blocks[0] = torch.compile(model.blocks[0], dynamic=False)
assert torch.equal(tome_fx.transform(model, [4, 2])(x), wanted)
assert isinstance(model.blocks[0], torch._dynamo.OptimizedModule)
"""


@pytest.mark.slow
@pytest.mark.compiler
def test_a_model_with_a_compiled_block() -> None:
    """In a process of its own: compiled code that gets fake tensors ends the whole process."""
    command = [sys.executable, "-W", "ignore", "-c", PARTLY_COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# --- torch.export --------------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch(strict: bool) -> None:
    fast = tome_fx.transform(tiny(), 2)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(fast, (images(),), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (1, 2, 3, 5):
        assert torch.equal(loaded(images(batch)), fast(images(batch)))
    assert sorted(program.state_dict) == sorted(fast.state_dict())


def test_make_fx_of_the_result() -> None:
    fast, x = tome_fx.transform(tiny(), 2), images()
    traced = torch.fx.experimental.proxy_tensor.make_fx(fast)(x)
    assert torch.equal(traced(x), fast(x))
