"""The rewritten programs are the committed ones, node by node."""

from __future__ import annotations

import difflib
import re

import pytest

from tests.golden.cases import CASES, Case

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cases
def test_the_rewritten_program_is_the_committed_one(case: Case) -> None:
    committed = case.path.read_text(encoding="utf-8") if case.path.exists() else ""
    now = case.text()
    if now != committed:
        diff = difflib.unified_diff(
            committed.splitlines(), now.splitlines(), "committed", "now", lineterm=""
        )
        advice = "If this is meant: python -m tests.golden.regenerate, then read what has changed."
        pytest.fail("\n".join([f"{case.path.name} differs.", *diff, advice]), pytrace=False)


@pytest.mark.few(2)
@cases
def test_a_listing_does_not_depend_on_the_run(case: Case) -> None:
    text = case.text()
    assert text == case.text()
    assert "0x" not in text


@cases
def test_every_value_is_read_and_every_name_is_defined_before(case: Case) -> None:
    lines = case.path.read_text(encoding="utf-8").splitlines()
    known: set[str] = set()
    read: set[str] = set()
    for text in lines:
        name, _, call = text.rpartition(" : ")[0].partition(" = ")
        used = set(re.findall(r"[a-z_]\w*", call.partition("(")[2] if name else text))
        read |= used & known
        assert name not in known
        known.add(name)
    made = {text.partition(" = ")[0] for text in lines if "aten." in text or "ops." in text}
    assert made <= read


def test_no_listing_is_left_over() -> None:
    found = {path.name for path in CASES[0].path.parent.glob("*.txt")}
    assert found == {case.path.name for case in CASES}
