"""A sweep over the zoo, two processes at a time."""

from __future__ import annotations

import functools
import gc
import logging
import multiprocessing
import time
from collections.abc import Iterator

import torch

from tests.zoo import table
from tests.zoo.row import Row, row_of

# Every name of every library: found once in each process.
_entries = functools.cache(lambda: list(table.entries()))


def _start() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    _entries()
    # Graphs are many small objects: else up to a fifth of the time goes into collecting garbage.
    gc.freeze()
    gc.set_threshold(200_000)


def _work(index: int) -> tuple[int, Row, float]:
    start = time.monotonic()
    return index, row_of(_entries()[index]), time.monotonic() - start


def _rows(chosen: list[int]) -> Iterator[tuple[int, Row]]:
    context = multiprocessing.get_context("spawn")
    # A process keeps what torch's compilers cache: a new one now and then.
    with context.Pool(2, _start, maxtasksperchild=80) as pool:
        done = pool.imap_unordered(_work, chosen)
        for count, (index, row, seconds) in enumerate(done, 1):
            print(f"{count}/{len(chosen)} {row.key} {seconds:.1f} s", flush=True)
            yield index, row


def main(parts: list[str]) -> None:
    """Sweep all models, or those with one of ``parts`` in their key, and write the table."""
    keys = [f"{entry.family}/{entry.name}" for entry in _entries()]
    chosen = [i for i, key in enumerate(keys) if not parts or any(part in key for part in parts)]
    known = table.load() if parts and table.DATA.exists() else {}
    start = time.monotonic()
    for index, row in _rows(chosen):
        # Saved one by one: a sweep that is stopped has not run for nothing.
        known[keys[index]] = row
        table.save(known[key] for key in keys if key in known)
    print(f"{len(chosen)} rows in {(time.monotonic() - start) / 60:.0f} minutes")
