"""Where Hopper's matrix products read shared memory, from the machine code of a kernel.

A product (``HGMMA``) takes an operand by a descriptor in two uniform registers: an address, and how
rows lie there. Compilers add small numbers to an address that was cut to the bits of one, by
``USGXT`` or a mask, and have a constant above it. This follows uniform registers in the order of
the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

# How rows of 128, 64 and 32 bytes lie: bytes between groups of eight, and how parts are swapped.
LAYOUTS = (0x40000040, 0x80000020, 0xC0000010)
WORD = 0xFFFFFFFF
Value = tuple[str, int]  # what it was made of, and a number that was added
ZERO: Value = ("number", 0)
ADDRESS, THROUGH_VECTORS = "address", "R2UR"
AND, OR = "0xc0", "0xfc"  # tables of truth
LINE = re.compile(r"^(?:\S*\t)?(?:@!?U?P\w+\s+)?([A-Z]\S*)\s*(.*?);?$")


def wrong_descriptors(sass: str) -> tuple[int, list[str]]:
    """How many descriptors the products of a kernel read, and the lines of those that are none.

    What came back from vector registers is not followed, and believed.
    """
    held: dict[int, Value] = {}
    count, wrong = 0, []
    for line in sass.splitlines():
        found = LINE.match(line.strip())
        if not found:
            continue
        op, text = found.groups()
        arguments = [part.strip() for part in text.split(",")]
        if not op.startswith("HGMMA"):
            _follow(held, op, arguments)
            continue
        for register in _operands(text):
            count += 1
            if not _is_descriptor(held.get(register), held.get(register + 1)):
                wrong.append(line.strip())
    return count, wrong


def _operands(text: str) -> Iterator[int]:
    first = re.search(r"gdesc\[UR(\d+)\]", text)
    assert first is not None, text
    if re.match(r"R\w+, gdesc", text):  # both operands are in shared memory
        yield int(first[1])
    yield int(first[1]) + 2


def _is_descriptor(low: Value | None, high: Value | None) -> bool:
    if THROUGH_VECTORS in (low or ZERO)[0] or THROUGH_VECTORS in (high or ZERO)[0]:
        return True
    return low is not None and low[0] == ADDRESS and high in [("number", bits) for bits in LAYOUTS]


def _follow(held: dict[int, Value], op: str, arguments: list[str]) -> None:
    target = re.fullmatch(r"UR(\d+)", arguments[0])
    if not target:
        return
    number, kind = int(target[1]), op.split(".")[0]
    sources = [part for part in arguments[1:] if not re.match(r"!?UP", part)]
    mask, logic = (sources[1], sources[3]) if kind == "ULOP3" else ("", "")
    if kind == "USGXT" or (logic == AND and mask in ("0x3fff", "0x7fff")):
        held[number] = (ADDRESS, 0)
    elif logic == OR:  # bits that the address has not
        held[number] = _sum(_read(held, sources[0]), _read(held, mask))
    elif op == "UIADD3.64":
        held[number], held[number + 1] = _wide_sum(held, sources[:2])
    elif kind in ("UIADD3", "UMOV"):
        held[number] = functools.reduce(_sum, [_read(held, source) for source in sources])
    else:
        held[number] = (op, 0)
        if "WIDE" in op or ".64" in op:
            held[number + 1] = (op, 0)


def _read(held: dict[int, Value], source: str) -> Value:
    register = re.fullmatch(r"UR(\d+)", source)
    if register:
        return held.get(int(register[1]), ("nothing", 0))
    if source in ("URZ", "SRZ"):
        return ZERO
    if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", source):
        return ("number", int(source, 0) & WORD)
    return (source, 0)


def _wide_sum(held: dict[int, Value], sources: list[str]) -> tuple[Value, Value]:
    """Of two pairs of registers, or a pair and a number; nothing is carried to an address."""
    low, high = ZERO, ZERO
    for source in sources:
        register = re.fullmatch(r"(-?)UR(\d+)", source)
        first = _read(held, f"UR{register[2]}") if register else _read(held, source)
        second = _read(held, f"UR{int(register[2]) + 1}") if register else ZERO
        if register and register[1]:
            if {first[0], second[0]} != {"number"}:
                first, second = (source, 0), (source, 0)
            number = -(second[1] << 32 | first[1])
            first, second = (first[0], number & WORD), (second[0], number >> 32 & WORD)
        low, high = _sum(low, first), _sum(high, second)
    return low, high


def _sum(a: Value, b: Value) -> Value:
    kind = b[0] if a[0] == "number" else a[0] if b[0] == "number" else f"{a[0]} + {b[0]}"
    return (kind, (a[1] + b[1]) & WORD)
