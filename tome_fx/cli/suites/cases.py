"""What each suite measures, by device. This file is the list to edit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tome_fx.cli.failure import CliError

EAGER = "eager"
INFERENCE, TRAINING = "inference", "training"
TI, S = "deit_tiny_patch16_224", "vit_small_patch16_224"
B, L = "vit_base_patch16_224", "vit_large_patch16_224"
L384, H = "vit_large_patch16_384", "vit_huge_patch14_224"
COMPILED = ("default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Case:
    """What a suite measures at once: a model, what is asked of it, and how long it is timed.

    ``mode`` is that of torch.compile, or ``eager``; ``grad`` is inference or training.
    """

    model: str
    r: str
    batch_size: int
    img_size: int = 224
    depth: int | None = None
    mode: str = "default"
    grad: str = INFERENCE
    rounds: int = 10

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the rows of a file apart, as text: KEYS in their order."""
        values = (getattr(self, name) for name in KEYS)
        return tuple("" if value is None else str(value) for value in values)

    def __str__(self) -> str:
        depth = f", depth {self.depth}" if self.depth else ""
        how = self.mode if self.grad == INFERENCE else f"{self.grad}, {self.mode}"
        size = f"{self.img_size} x {self.img_size}{depth}"
        return f"{self.model} r={self.r}, batch {self.batch_size}, {size}, {how}"


KEYS = ("model", "r", "batch_size", "img_size", "depth", "mode", "grad")


@dataclass(frozen=True)
class Suite:
    """Cases that one file and one plot show. ``kind`` is a key of `run.COLUMNS`."""

    name: str
    kind: str
    title: str
    cases: tuple[Case, ...]


def _suites(cases: Mapping[str, Sequence[Case]]) -> Mapping[str, Suite]:
    return MappingProxyType(
        {
            name: Suite(name, kind, title, tuple(cases[name]))
            for name, (kind, title) in {
                "targets": ("speed", "Share of the FLOP limit"),
                "families": ("speed", "Share of the FLOP limit by family"),
                "r": ("speed", "Throughput against r"),
                "batch": ("speed", "Speed-up against the batch size"),
                "tokens": ("speed", "Speed-up against the number of tokens"),
                "training": ("speed", "Share of the FLOP limit in training"),
                "memory": ("memory", "Peak memory"),
                "depth": ("transform", "Time of transform() against the depth"),
                "profile": ("steps", "Steps of a pass, eager, the original as 100 %"),
            }.items()
        }
    )


# Tables in the logits; angles and gates; registers and scales of layers; pooling by attention;
# mixed heads; attention between channels; windows that are pooled.
FAMILIES = (
    ("beit_base_patch16_224", "16", None), ("eva02_small_patch14_224", "16", None),
    ("vit_small_patch14_reg4_dinov2", "16", None), ("vit_base_patch16_siglip_224", "16", None),
    ("cait_xxs24_224", "8", 12), ("xcit_small_12_p16_224", "13", None),
    ("hiera_small_224", "8", None),
)  # fmt: skip
DEPTH = [Case(TI, "4", 2, depth=depth, mode=EAGER, rounds=3) for depth in (12, 24, 48)]

# Two cores: meant to take about an hour in all, compiling included.
CPU = _suites(
    {
        "targets": [
            Case(TI, "13", 16, rounds=24), Case(TI, "13", 64, rounds=10),
            Case(S, "13", 32, rounds=10), Case(S, "13", 16, rounds=16), Case(S, "13", 8, rounds=16),
            Case(B, "16", 16, rounds=8), Case(B, "16", 8, rounds=12), Case(B, "16", 4, rounds=12),
            Case(L, "8", 16, rounds=4), Case(L, "8", 8, rounds=5), Case(L, "8", 4, rounds=8),
        ],
        "families": [Case(model, r, 8, depth=depth) for model, r, depth in FAMILIES],
        "r": [Case(S, str(r), 8) for r in (2, 4, 8, 13, 16)],
        "batch": [Case(TI, "13", batch, rounds=rounds)
                  for batch, rounds in ((1, 20), (4, 16), (16, 12), (64, 6), (256, 3))],
        # r grows with the tokens, so that the same share of them is merged.
        "tokens": [Case(TI, r, 1, side, rounds=rounds)
                   for side, r, rounds in ((224, "13", 20), (448, "52", 10), (896, "208", 4),
                                           (2048, "1088", 1))],
        "training": [Case(TI, "13", 16, grad=TRAINING, rounds=12),
                     Case(S, "13", 16, grad=TRAINING, rounds=8),
                     Case(B, "16", 8, grad=TRAINING, rounds=6),
                     Case(L, "8", 4, grad=TRAINING, rounds=4)],
        "memory": [
            *(Case(model, r, batch, mode=mode, grad=grad)
              for grad, mode in ((INFERENCE, "default"), (TRAINING, EAGER))
              for model, r, batch in ((TI, "13", 16), (S, "13", 8), (B, "16", 8), (L, "8", 4))),
            Case(TI, "13", 16, grad=TRAINING),
        ],
        "depth": DEPTH,
        "profile": [Case(model, r, batch, mode=EAGER, rounds=rounds)
                    for model, r, each in ((S, "13", (20, 9, 5, 3)), (B, "16", (15, 7, 3, 2)),
                                           (L, "8", (9, 5, 2)))
                    for batch, rounds in zip((1, 8, 64, 256), each, strict=False)],
    }
)  # fmt: skip

# Forty rounds of the largest model would take minutes.
LARGE = ((B, "16", 224, 40), (L, "8", 224, 40), (L384, "23", 384, 20), (H, "40", 518, 6))

ACCELERATOR = _suites(
    {
        "targets": [Case(model, r, 256, side, mode=mode, rounds=rounds) for mode in COMPILED
                    for model, r, side, rounds in LARGE],
        "families": [Case(model, r, 256, depth=depth, rounds=20) for model, r, depth in FAMILIES],
        "r": [Case(B, str(r), 256, rounds=40) for r in (4, 8, 12, 16)],
        "batch": [Case(B, "16", batch, mode=mode, rounds=40) for mode in COMPILED[:2]
                  for batch in (1, 8, 64, 256)],
        "tokens": [Case(S, r, 8, side, rounds=20)
                   for side, r in ((224, "13"), (448, "52"), (896, "208"), (2048, "1088"))],
        "training": [Case(model, r, 64, grad=TRAINING, rounds=20)
                     for model, r in ((B, "16"), (L, "8"))],
        "memory": [Case(model, r, 64, side, mode=mode, grad=grad)
                   for grad, mode in ((INFERENCE, "default"), (TRAINING, EAGER))
                   for model, r, side in ((B, "16", 224), (L, "8", 224), (L384, "23", 384))],
        "depth": DEPTH,
        "profile": [Case(model, r, batch, mode=EAGER, rounds=20)
                    for model, r in ((S, "13"), (B, "16"), (L, "8"))
                    for batch in (1, 8, 64, 256)],
    }
)  # fmt: skip


def chosen(names: str, device: str) -> tuple[Suite, ...]:
    """Return the suites named, with commas between them, for a type of device; `all` is all.

    Raises CliError, with the closest names, for one that there is not.
    """
    known = CPU if device == "cpu" else ACCELERATOR
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=2, cutoff=0.4) or list(known)
            raise CliError(f"--suite {name}: no such suite; closest: {', '.join(close)}")
    return tuple(known[name] for name in wanted)
