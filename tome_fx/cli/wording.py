"""What the library says of its options, in the words of the command line."""

from __future__ import annotations

import re

from tome_fx.schedule import FORMS

# Options of the library that have a flag of the same name.
_NAMES = (
    "r", "strict", "every", "align", "capture", "rounding", "remerge", "attention",
    "batch", "hardware", "min_speedup", "target_speedup", "max_drift", "measurements", "budget",
    "batch_size", "state",
)  # fmt: skip
_PHRASES = (
    (FORMS, "a number such as 16, one with a slope such as 16:-1 (from -1 to 1), a list such as "
            "[16,16,8], or a share of the tokens such as 0.05"),
    ("pass strict=False to clamp it", "leave out --strict to clamp it"),
    ("and strict=True takes", "and --strict takes"),
    ("pass strict=False", "leave out --strict"),
    ("None or a number of images", "a number of images"),
    ("pass batch=.", "give --batch."),
    (", nor a tome_fx.DeviceModel. DeviceModel.measure(device) makes one of this machine.", "."),
    (", or tome_fx.DeviceModel.measure('cpu')", ""),
    ("Pass hardware=, one of", "Give --hardware, one of"),
    ("raise measurements", "raise --measurements"),
    ("(every=3)", "(--every 3)"),
    ("no state of tome_fx.tune", "no state of tome-fx tune"),
    ("below min_ratio=", "below "),
    ("; min_ratio=0 applies it all the same", "; all other commands apply it all the same"),
)  # fmt: skip
_PAIR = re.compile(r"(?<![\w.-])r=\((\d+), ([\d.e+-]+)\)")
_LIST = re.compile(r"(?<![\w.-])r=(\[[\d, -]*\])")
_VALUE = r"""(?:'([^']*)'|"([^"]*)"|([^\s'"]+?))(?=[\s,;:)]|\.?\s|\.?$)"""
_OPTION = re.compile(rf"(?<![\w.-])({'|'.join(_NAMES)})={_VALUE}")
_MENTION = re.compile(r"(?<![\w.-])(r)(?= is a number such)")


def as_flags(text: str) -> str:
    """Return the text of an error or a warning with flags in place of keyword arguments."""
    for ours, theirs in _PHRASES:
        text = text.replace(ours, theirs)
    text = _PAIR.sub(lambda found: f"--r {found[1]}:{float(found[2]):g}", text)
    text = _LIST.sub(lambda found: f"--r {found[1].replace(' ', '')}", text)
    text = _OPTION.sub(
        lambda found: f"{_flag(found[1])} {next(filter(None, found.groups()[1:]), '')}", text
    )
    return _MENTION.sub(lambda found: _flag(found[1]), text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
