"""What the library says of its options, as flags."""

from __future__ import annotations

import pytest

from tome_fx.cli.wording import as_flags

SAID = [
    ("every=0 is not a number of layers.", "--every 0 is not a number of layers."),
    ("capture='photo' is not one of 'auto'.", "--capture photo is not one of 'auto'."),
    ("and min_speedup=1.0. A larger", "and --min-speedup 1.0. A larger"),
    ("(every=3); min_speedup=0 applies it", "(--every 3); --min-speedup 0 applies it"),
    ("r=0.01, every=2, align=8 takes", "--r 0.01, --every 2, --align 8 takes"),
    ("r=(16, -5.0): inflect", "--r 16:-5: inflect"),
    ("state='/a/b.json' is no state of tome_fx.tune.",
     "--state /a/b.json is no state of tome-fx tune."),
    ("or raise measurements.", "or raise --measurements."),
    ("batch=-1 is not None or a number of images", "--batch -1 is not a number of images"),
    ("needs batch too: pass batch=.", "needs batch too: give --batch."),
    ("Lower r, or pass strict=False to clamp it.", "Lower r, or leave out --strict to clamp it."),
    ("state='/a b/tome_fx.tune.json' is of a run", "--state /a b/tome_fx.tune.json is of a run"),
    ("hardware='RTX 4090' is not one", "--hardware RTX 4090 is not one"),
    ("capture='' is not one", "--capture  is not one"),
    ('state="/a\'b.json" is', "--state /a'b.json is"),
    ("change the list r=[16, 16, 8] to", "change the list --r [16,16,8] to"),
    ("r=(16, 1e-05): is", "--r 16:1e-05: is"),
    # What is no option stays as it is.
    ("model.layer=3 and protect=(1, 0)", "model.layer=3 and protect=(1, 0)"),
    ("x.r=3 and over=4", "x.r=3 and over=4"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), SAID)
def test_options_are_told_as_flags(text: str, told: str) -> None:
    assert as_flags(text) == told
