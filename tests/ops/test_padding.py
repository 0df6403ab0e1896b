"""What a mask with a row for each query says of the tokens of an image."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from tests.drawing import seeded
from tests.profiles import examples
from tome_fx import ops


def draw(rng: random.Random) -> Tensor:
    """Pairs ``[2, n, n]``: few different rows, so that some are equal."""
    n, torch_seed = rng.randint(1, 9), rng.randrange(1 << 30)
    generator = torch.Generator().manual_seed(torch_seed)
    group = torch.randint(0, 3, (2, n), generator=generator)
    sees = torch.rand(2, 3, 3, generator=generator) < 0.5
    return torch.stack([s[g][:, g] for s, g in zip(sees, group, strict=True)])


@examples(60)
@given(seeded(draw))
def test_kinds_are_equal_rows_and_columns(pairs: Tensor) -> None:
    n = pairs.shape[1]
    whole = pairs | torch.eye(n, dtype=torch.bool)
    for image, own in zip(whole, ops.kinds(pairs), strict=True):
        for i, j in itertools.product(range(n), repeat=2):
            same = bool((image[i] == image[j]).all() and (image[:, i] == image[:, j]).all())
            assert (own[i] == own[j]) == same


def test_many_rows_are_told_apart() -> None:
    """All intervals of 60 places, and the same as columns."""
    place, ends = torch.arange(60), torch.combinations(torch.arange(61))
    rows = (place >= ends[:, :1]) & (place < ends[:, 1:])
    whole = torch.zeros(len(ends), 60, 60, dtype=torch.bool)
    whole[:, 0] = rows
    different = len({tuple(row) for row in rows[:, 1:].tolist()})
    for pairs in (whole, whole.mT):
        assert len(set(ops.kinds(pairs)[:, 0].tolist())) == different


def test_padding_is_what_no_other_token_sees() -> None:
    real = torch.tensor([[True, True, False], [True, False, False]])
    both, itself = real[:, None] & real[..., None], torch.eye(3, dtype=torch.bool)
    assert ops.seen(both).equal(real)
    # A diagonal that is visible for padding as well says nothing.
    assert ops.seen(both | itself)[0].tolist() == [True, True, False]
    assert ops.seen(torch.ones(1, 3, 3, dtype=torch.bool)).all()
    assert ops.seen(~itself[None]).all()


def test_what_a_part_of_the_tokens_does_not_see_is_no_padding() -> None:
    """The first sees but one other, and these see everything; but for what they all do not see."""
    pairs = torch.ones(1, 4, 4, dtype=torch.bool)
    pairs[:, 0] = torch.tensor([True, True, False, False])
    assert ops.seen(pairs).all()
    # Rows of padding, whole so that none is empty: nobody else sees those.
    pairs[:, 1] = torch.tensor([True, True, True, False])
    pairs[:, 2] = torch.tensor([True, True, True, False])
    assert ops.seen(pairs).tolist() == [[True, True, True, False]]


def test_padding_merges_with_what_is_like_it() -> None:
    scores = torch.tensor([[[0.5, 1.0], [0.9, 0.2], [-2.0, 0.3]]])
    visible = torch.tensor([[True, False, False, False, False]])
    kept = ops.keep_apart(scores, visible)
    assert kept[0, 0].isneginf().all()
    assert kept[0, 1:].argmax(-1).tolist() == [0, 1]
    assert float(kept[0, 1:].max()) < -2.0, "behind all that is visible"
    apart = ops.keep_apart(scores, torch.ones(1, 5, dtype=torch.bool), kinds=torch.arange(5)[None])
    assert float(kept[0, 1:].min()) > float(apart.max()), "before all that a mask tells apart"


def test_another_runtime_finds_the_same_kinds() -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")

    class Kinds(nn.Module):
        def forward(self, pairs: Tensor) -> Tensor:
            return ops.kinds(pairs)

    number = torch.tensor([[0] * 9 + [1] * 15, [0] * 11 + [1] * 7 + [2] * 6])
    pairs = number[:, None] == number[..., None]
    exported = torch.onnx.export(Kinds().eval(), (pairs,), dynamo=True, verbose=False)
    session = runtime.InferenceSession(exported.model_proto.SerializeToString())
    [found] = session.run(None, {session.get_inputs()[0].name: pairs.numpy()})
    assert torch.from_numpy(found).equal(ops.kinds(pairs))


def test_what_a_mask_tells_apart_comes_in_order() -> None:
    """Alike, unlike that see each other, padding, unlike that do not see each other."""
    scores = torch.zeros(1, 4, 4)
    kinds = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 5]])
    visible = torch.tensor([[True] * 6 + [False] * 2])
    pairs = torch.eye(8, dtype=torch.bool)[None].clone()
    pairs[0, 3, 2] = True  # one way is enough
    found = ops.keep_apart(scores, visible, kinds=kinds, pairs=pairs)
    alike, seeing, unseen, padding = (found[0, i, i].item() for i in range(4))
    assert 1 > alike > seeing + 3 > padding + 3 > unseen + 3 > float("-inf")
    assert torch.isinf(found[0, :3, 3]).all()
    assert torch.isinf(found[0, 3, :3]).all()
    ends = torch.nn.functional.pad(pairs, (1, 2, 1, 2))  # one protected token in front, two behind
    kinds, visible = (torch.nn.functional.pad(each, (1, 2)) for each in (kinds, visible))
    told = ops.keep_apart(scores, visible, 0, 1, 2, kinds, ends)
    assert torch.equal(told, found)
