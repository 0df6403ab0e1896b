"""L3: class, distillation and register tokens never merge and keep their place."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import duplicates, oracle
from tests.architectures import Architecture, architectures
from tests.laws.common import (
    TINY,
    Subject,
    assert_differs,
    assert_merged,
    distance,
    run,
    subjects,
    transform,
)
from tests.models import Plain
from tests.profiles import examples

pytestmark = TINY


@examples(6)
@given(subjects(max_depth=4), st.integers(1, 30))
def test_only_patches_merge(config: Subject, r: int) -> None:
    """All patches are alike and r is as large as can be: only a prefix that merges can be wrong."""
    schedule, left = [], config.stream
    for _ in range(config.depth):
        schedule.append(min(r, left // 2))
        left -= schedule[-1]
    labels = (0,) * config.stream
    model = config.build()
    duplicates.tie(model, config, labels)
    x = duplicates.images(config, labels)
    fast = transform(model, x, r)
    assert_merged(fast, schedule, config)
    assert distance(run(fast, x), run(model, x)) < 1e-9
    assert_differs(fast, model, config.images(), config)
    protected = fast.report.protected
    assert all(p.reason for p in protected)
    if getattr(config, "readout", "") == "patch":  # the patch that is read is protected as well
        assert sum(p.count for p in protected) > config.protected
        return
    where = "back" if getattr(config, "token", "") == "back" else "front"
    assert sum(p.count for p in protected) == config.protected
    assert {p.where for p in protected} == ({where} if config.protected else set())


@examples(4)
@given(architectures(min_depth=2), st.data())
def test_a_prefix_token_like_a_patch_stays(config: Architecture, data: st.DataObject) -> None:
    """The most tempting pair of all: one prefix token is nearly a copy of one patch."""
    config = dataclasses.replace(config, positions="none", registers=max(config.registers, 1))
    if config.prefix == "distilled":
        config = dataclasses.replace(config, registers=0, positions="learn")
    model, x = config.build(), config.images(batch=1)
    with torch.no_grad():
        if model.pos_embed is not None:
            model.pos_embed.zero_()
        patches = model.patch_embed(x).flatten(1, -2)
        names = [n for n in ("cls_token", "dist_token", "reg_token") if hasattr(model, n)]
        tokens = [getattr(model, n) for n in names if getattr(model, n) is not None]
        token = data.draw(st.sampled_from(tokens))
        row = data.draw(st.integers(0, config.stream - 1))
        token[0, -1] = 1.001 * patches[0, row]
    schedule = [1] * config.depth
    fast = transform(model, x, schedule)
    found = oracle.trace(model, x, fast.schedule)
    if found.margin > 1e-9:
        assert fast.token_map(x).tolist() == found.maps
        assert distance(run(fast, x), found.output) < 1e-9


@pytest.mark.parametrize("token", ["front", "back"])
@pytest.mark.parametrize("readout", ["token", "dense"])
def test_a_class_token_at_either_end(token: str, readout: str) -> None:
    """The dense output shows each token's own row: the class token differs from all patches."""
    config = Plain(token=token, readout=readout, depth=3)
    model, x = config.build(), config.images()
    fast = transform(model, x, [4, 2, 1])
    (protected,) = fast.report.protected
    assert (protected.count, protected.where) == (1, token)
    out = run(fast, x)
    if readout == "dense":
        place = 0 if token == "front" else -1
        others = out[:, 1:] if token == "front" else out[:, :-1]
        assert bool((out[:, place, None] != others).any(-1).all())
        assert len(torch.unique(others[0], dim=0)) == 2


def test_a_patch_that_is_read_by_its_index_does_not_merge() -> None:
    """The image is one patch repeated but for the one that the model reads."""
    config = Plain(token="none", readout="patch", positions="none", depth=3)
    labels = [0] * config.stream
    labels[config.stream // 2] = 1
    model = config.build()
    x = duplicates.images(config, tuple(labels))
    fast = transform(model, x, [4, 2, 1])
    assert sum(fast.schedule) > 0
    assert sum(p.count for p in fast.report.protected) >= 1
    assert distance(run(fast, x), run(model, x)) < 1e-9
