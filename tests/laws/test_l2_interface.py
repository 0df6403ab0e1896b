"""L2: same inputs, same structure, shapes and dtypes of the outputs; dense outputs in order."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.architectures import Architecture, architectures, schedules
from tests.laws.common import (
    TINY,
    Subject,
    assert_differs,
    assert_merged,
    run,
    subjects_with_schedule,
    transform,
)
from tests.profiles import examples

pytestmark = TINY


@examples(6)
@given(
    subjects_with_schedule(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([1, 2, 3]),
)
def test_shapes_and_dtypes_at_every_batch_size(
    drawn: tuple[Subject, list[int]], dtype: torch.dtype, example_batch: int
) -> None:
    config, schedule = drawn
    model = config.build(dtype)
    fast = transform(model, config.images(dtype, example_batch), schedule)
    assert_merged(fast, schedule, config)
    for batch in (1, 2, 3, 5):
        x = config.images(dtype, batch)
        actual, expected = run(fast, x), run(model, x)
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        assert bool(actual.isfinite().all())


@examples(4)
@given(architectures(pools=("",), prefixes=("class", "none")), st.data())
def test_dense_outputs_come_back_in_order(config: Architecture, data: st.DataObject) -> None:
    schedule = data.draw(schedules(config.depth, config.stream))
    model, x = config.build(), config.images()
    fast = transform(model, x, schedule)
    assert_merged(fast, schedule, config)
    assert_differs(fast, model, x, config)
    out = run(fast, x)[:, config.protected :]
    assert out.shape[1] == config.stream
    for rows, slots in zip(out, fast.token_map(x)[-1], strict=True):
        same_slot = slots[:, None] == slots[None, :]
        same_row = (rows[:, None] - rows[None, :]).abs().amax(-1) < 1e-9
        assert torch.equal(same_row, same_slot)


class Reading(nn.Module):
    """A model that returns its features in a structure, and takes its input by any name."""

    def __init__(self, structure: str) -> None:
        super().__init__()
        self.body = Architecture(pool="", classes=0, registers=1).build()
        self.structure = structure

    def forward(self, pixels: Tensor, *, gain: Tensor | None = None) -> object:
        tokens = self.body(pixels if gain is None else pixels * gain)
        first, dense = tokens[:, 0], tokens[:, 2:]
        if self.structure == "tuple":
            return first, (dense, dense.mean(1))
        if self.structure == "list":
            return [first, dense]
        return OrderedDict(logits=first, hidden={"dense": dense, "mean": dense.mean(1)})


@pytest.mark.few(2)
@pytest.mark.parametrize("structure", ["tuple", "list", "dict"])
@pytest.mark.parametrize("keyword", [False, True])
def test_nested_outputs_and_keyword_inputs(structure: str, keyword: bool) -> None:
    model = Reading(structure).eval()
    x = Architecture(registers=1).images()
    kwargs = {"gain": torch.tensor(2.0, dtype=torch.float64)} if keyword else {}
    fast = transform(model, x, [2, 1], example_kwargs=kwargs)
    assert sum(fast.schedule) == 3
    with torch.no_grad():
        actual, expected = fast(x, **kwargs), model(x, **kwargs)
    leaves, structure_found = torch.utils._pytree.tree_flatten(actual)
    expected_leaves, expected_structure = torch.utils._pytree.tree_flatten(expected)
    assert structure_found == expected_structure
    for got, wanted in zip(leaves, expected_leaves, strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        assert not torch.equal(got, wanted)


@examples(4)
@given(subjects_with_schedule(max_depth=2))
def test_gradients_reach_every_parameter(drawn: tuple[Subject, list[int]]) -> None:
    config, schedule = drawn
    model, x = config.build(), config.images().requires_grad_()
    model(x).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    fast = transform(model, x.detach(), schedule)
    fast(x).square().sum().backward()
    assert reached == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
