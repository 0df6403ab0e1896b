"""A sweep over the zoo, two processes at a time.

Each name is built; those that are one model to the last bit once they are small are checked once.
"""

from __future__ import annotations

import functools
import gc
import logging
import multiprocessing
import time
import warnings
from collections.abc import Iterator, MutableMapping
from dataclasses import replace

import torch

from tests.zoo import table
from tests.zoo.entry import Entry, randomise
from tests.zoo.row import Row, row_of
from tests.zoo.same import fingerprint

# Every name of every library: found once in each process.
_entries = functools.cache(lambda: list(table.entries()))


# The rows of all processes so far, by the digest of the model.
_Rows = MutableMapping[str, Row]
_seen: _Rows = {}


def _start(seen: _Rows) -> None:
    global _seen
    _seen = seen
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    _entries()
    # Graphs are many small objects: else up to a fifth of the time goes into collecting garbage.
    gc.freeze()
    gc.set_threshold(200_000)


def _work(index: int) -> tuple[int, Row, float]:
    start = time.monotonic()
    return index, _row(_entries()[index]), time.monotonic() - start


def _row(entry: Entry) -> Row:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = entry.build()
    except Exception:
        return row_of(entry)  # which says why it is not built
    randomise(model)
    digest = fingerprint(model, entry)
    if digest is not None and digest in _seen:
        return replace(_seen[digest], family=entry.family, name=entry.name)
    row = row_of(replace(entry, build=lambda: model))
    if digest is not None:
        _seen[digest] = row
    return row


def _rows(chosen: list[int]) -> Iterator[tuple[int, Row]]:
    context = multiprocessing.get_context("spawn")
    # A process keeps what torch's compilers cache: a new one now and then.
    with context.Manager() as manager:
        shared = (manager.dict(),)
        with context.Pool(2, _start, shared, maxtasksperchild=80) as pool:
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
