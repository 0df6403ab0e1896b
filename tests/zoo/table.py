"""The table of the zoo: as data in docs/zoo.json, and to be read in docs/zoo.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.zoo import hugging_face, others, timm_models
from tests.zoo.entry import Entry
from tests.zoo.row import Row

DOCS = Path(__file__).parents[2] / "docs"
DATA, PAGE = DOCS / "zoo.json", DOCS / "zoo.md"

HEAD = """# The zoo

Every model below is built small (two layers or so, narrow, its own image size; those under "full
size" as they are, three of them on smaller images), filled with random weights, transformed with
`r=0.1` (a tenth of the tokens at each block) and `min_ratio=0` (also where that saves less than
the 2 % that `transform` asks for by default) and checked. Names that are one model to the last bit
once they are small are checked once. `make zoo` makes this page and
`docs/zoo.json` anew; the tests hold a fixed part to what is written here.

- **captured**: by `torch.export` or by symbolic tracing; `-` where a model is refused.
- **blocks**: attention blocks behind which tokens merge; **merged**: tokens that they remove.
- **unmerged**: ops that get all tokens back; **averaged**: places where what such an op told apart
  is averaged again in each group (`remerge="never"` avoids that, at a cost), or tokens from before
  a merge are.
- **ratio**: MACs of the original over those of the result. Models of two layers save little.
- **share**: of the ratio that the arithmetic allows: every op on what merging leaves of its tokens,
  and nothing spent on matching. Convolutions over tokens and what is not on tokens count in full.
  `-` where it was not counted.
- **r=0**: is the result bit-identical to the model?
- **law**: with an image of one colour, positions that are the same everywhere and padding that goes
  round, all tokens are duplicates, and the program with merges computes what the one without does:
  `exact` to 1e-9 with all of both in float64, also what a model asks float32 for. A number: the
  model rounds in fifty convolutions before it has any tokens, which are then not equal to the last
  bit.
- **alone**: two images have the same results with a third beside them and without. `-` where the
  model's own code fixes the batch, or its result is one for all images.
- **graph**: one graph for `torch.compile`, without a break.

"""
COLUMNS = (
    "model",
    "captured",
    "blocks",
    "merged",
    "unmerged",
    "averaged",
    "ratio",
    "share",
    "r=0",
    "law",
    "alone",
    "graph",
    "why",
)


def entries() -> Iterator[Entry]:
    """Every model of the zoo."""
    yield from timm_models.entries()
    yield from others.entries()
    yield from hugging_face.entries()


def load() -> dict[str, Row]:
    """The committed rows by key."""
    return {row.key: row for row in (Row(**data) for data in json.loads(DATA.read_text()))}


def save(rows: Iterable[Row]) -> None:
    """Write the data and the page."""
    found = list(rows)
    DATA.write_text(json.dumps([row.as_dict() for row in found], indent=1) + "\n")
    PAGE.write_text(page(found))


def page(rows: list[Row]) -> str:
    """The page as Markdown."""
    families = list(dict.fromkeys(row.family for row in rows))
    merged = sum(row.merged > 0 for row in rows)
    text = [HEAD, f"{merged} of {len(rows)} models merge tokens.\n"]
    for family in families:
        own = [row for row in rows if row.family == family]
        count = sum(row.merged > 0 for row in own)
        text.append(f"\n## {family}: {count} of {len(own)}\n")
        text.append("| " + " | ".join(COLUMNS) + " |")
        text.append("|" + "---|" * len(COLUMNS))
        text.extend(_line(row) for row in own)
    return "\n".join(text) + "\n"


def _line(row: Row) -> str:
    share = f"{row.share:.0%}" if row.share else "-"
    why = row.reason.replace("|", "+")
    cells = (
        row.name, row.captured, row.blocks, row.merged, row.unmerges, row.averaged,
        f"{row.ratio:.2f}", share, row.identical, row.law, row.alone, row.compiled,
        why,
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"
