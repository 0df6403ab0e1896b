"""Make the table anew: ``python -m tests.zoo [PART_OF_A_NAME ...]``."""

from __future__ import annotations

import sys

from tests.zoo.sweep import main

if __name__ == "__main__":
    main(sys.argv[1:])
