"""Write the committed listings anew: ``python -m tests.golden.regenerate``, from the root."""

from __future__ import annotations

import sys

from tests.golden.cases import CASES


def main() -> None:
    for case in CASES:
        case.path.write_text(case.text(), encoding="utf-8", newline="\n")
        sys.stdout.write(f"{case.path.name}\n")


if __name__ == "__main__":
    main()
