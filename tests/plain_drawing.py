"""Drawn hand-written Vision Transformers: every dialect that `PlainViT` knows, small."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from tests.drawing import seeded, widths
from tests.models import Plain

READOUTS = ("mean", "patches", "max", "sum", "dense", "flatten", "grid", "patch")

# Attention without logits of tokens by tokens: nothing there to bias or to mask.
NO_LOGITS = ["linear", "covariance"]


def plain_models(
    min_depth: int = 1,
    max_depth: int = 3,
    kinds: tuple[str, ...] = ("own", "own", "own", "mha", "encoder"),
) -> st.SearchStrategy[Plain]:
    """Any hand-written dialect that `PlainViT` knows, small."""
    return seeded(lambda rng: _plain(rng, min_depth, max_depth, kinds))


def _plain(rng: random.Random, min_depth: int, max_depth: int, kinds: tuple[str, ...]) -> Plain:
    kind, token = rng.choice(kinds), rng.choice(["front", "back", "none"])
    own, grid = kind == "own", (rng.randint(2, 5), rng.randint(2, 4))
    form = rng.choice(["row", "row", "row", "grid", "image"]) if own else "row"
    token = token if form == "row" else "none"
    stream = grid[0] * grid[1]
    heads, head_dim, batch = widths(rng, (stream, stream + (token != "none")))
    positions = rng.choice(["add", "rope", "bias", "indexed", "none"] if own else ["add", "none"])
    if positions == "rope":
        head_dim += head_dim % 2
    biased = positions in ("bias", "indexed")
    norms = ["pre", "post"] if kind == "encoder" else ["pre", "post", "parallel", "sandwich"]
    readouts = READOUTS if token == "none" else ("token", "token", "token", *READOUTS)
    readout = rng.choice(readouts)
    # nn.TransformerEncoder's fast path answers NaN to a mask of floats.
    masks = ["none", "none", "bool"] if kind == "encoder" else ["none", "none", "float", "bool"]
    kernels = ["sdpa", "matmul", "einsum", "einsum_bnhd", "bmm", "baddbmm"]
    if own and positions in ("add", "none"):
        kernels += NO_LOGITS
    kernel = rng.choice(kernels)
    return Plain(
        depth=rng.randint(max(min_depth, 2 if readout in ("token", "patch") else 1), max_depth),
        heads=heads,
        head_dim=head_dim,
        grid=grid,
        stem=rng.choice(["conv", "linear"]),
        token=token,
        kind=kind,
        projection=rng.choice(["packed", "heads", "chunk", "three", "split"]),
        kernel=kernel,
        positions=positions,
        mask="none" if biased or kernel in NO_LOGITS else rng.choice(masks),
        tables=rng.choice(["parameter", "buffer", "attribute"]),
        norm=rng.choice(norms),
        form=form,
        sequence_first=rng.random() < 0.5 and form == "row",
        residual_last=rng.random() < 0.5,
        weights=kind == "mha" and rng.random() < 0.5,
        readout=readout,
        classes=rng.choice([5, stream]),
        batch=batch,
        seed=rng.randrange(100),
    )
