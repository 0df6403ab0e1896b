"""L1 whatever chooses the pairs: groups of any size, made by a function of the user."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests import duplicates
from tests.laws.common import (
    TINY,
    Subject,
    distance,
    groups_are_alike,
    run,
    subjects,
    tolerance,
    transform,
)
from tests.profiles import examples
from tome_fx.own_matching import Function

pytestmark = TINY


def alike(labels: tuple[int, ...]) -> Function:
    """Merges tokens of a class into its first one, any of the others, many at once."""

    def matching(position: Tensor, r: int) -> tuple[Tensor, Tensor]:
        label = torch.tensor(labels, device=position.device)[position]
        same = label[:, :, None] == label[:, None, :]
        first = same.long().argmax(-1)
        order = torch.arange(label.shape[1], device=label.device)
        # A choice without a pattern that is the same each time.
        wish = ((order + 1) * 0.618034 + position * 0.414214) % 1.0
        src = torch.where(first == order, -1.0, wish).topk(r, dim=-1).indices
        return src, first.gather(1, src)

    return matching


@examples(8)
@given(subjects(), st.data())
def test_pairs_of_duplicates_merge_without_a_trace(config: Subject, data: st.DataObject) -> None:
    assume(getattr(config, "readout", "") != "patch" and config.stream > 2)
    classes = data.draw(st.integers(1, config.stream - 1))
    each = st.lists(
        st.integers(0, classes - 1), min_size=config.stream, max_size=config.stream
    ).map(tuple)
    labels = data.draw(each)
    spare, left, schedule = config.stream - len(set(labels)), config.stream, []
    assume(spare)
    for layer in range(config.depth):
        most = min(spare, left // 2)
        schedule.append(data.draw(st.integers(min(1, most) if layer == 0 else 0, most)))
        spare, left = spare - schedule[-1], left - schedule[-1]
    model = config.build(torch.float64)
    duplicates.tie(model, config, labels)
    x = duplicates.images(config, labels)
    fast = transform(model, x, schedule, matching=alike(labels), min_ratio=0)
    assert tuple(fast.schedule) == tuple(schedule)
    assert groups_are_alike(fast, x, labels)
    assert distance(run(fast, x), run(model, x)) < tolerance(torch.float64)
