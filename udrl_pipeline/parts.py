"""Work on a large table in several processes of this machine, part by part."""

import itertools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from types import ModuleType

import numpy as np
import pandas as pd

#: Rows of a part. A table of a few parts is worked on in this process: to start others takes some seconds.
PART_ROWS = 50_000
FEW_PARTS = 3


@contextmanager
def workers(rows: int, cores: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for `by_parts`, which start beside what is done before there is a table; None where one of so many rows needs none."""
    if rows <= FEW_PARTS * PART_ROWS or cores == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of DuckDB's and torch's threads
    pool = ProcessPoolExecutor(cores, context, initializer=_end_with_the_parent)
    try:
        with _no_program():
            for _ in range(cores):  # a task that finds no idle process starts one
                pool.submit(_ready)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def by_parts(
    frame: pd.DataFrame,
    together: str,
    work: Callable[[pd.DataFrame], pd.DataFrame],
    cores: int,
    meanwhile: Callable[[], object] = lambda: None,
    pool: ProcessPoolExecutor | None = None,
) -> pd.DataFrame:
    """`work` on all rows, in the order of the frame, whatever the number of cores.

    Args:
        together: Rows with one value in this column come to `work` together, in their order.
        work: Gives a table with the index of its rows; must be picklable, and not of the program that runs, which the
            others do not import.
        meanwhile: What this process does while others work, if they do.
        pool: Processes that were started before (`workers`); else some are, for a large table.
    """
    parts = _cut(frame, together)
    if len(parts) <= FEW_PARTS or cores == 1:
        return _joined([work(part) for part in parts], frame.index)
    with nullcontext(pool) if pool else workers(len(frame), cores) as found:
        assert found is not None, "so many parts are worth it"
        with _no_program():  # these may start one, too
            waited = [found.submit(work, part) for part in parts]
        meanwhile()
        return _joined([done.result() for done in waited], frame.index)


def _ready() -> None:
    """Work that is done as soon as a process has started."""


def _cut(frame: pd.DataFrame, together: str) -> Sequence[pd.DataFrame]:
    number = max(1, -(-len(frame) // PART_ROWS))
    codes, values = pd.factorize(frame[together])
    part_of = codes * number // max(len(values), 1)
    if (part_of[1:] >= part_of[:-1]).all():  # as most are: a slice copies nothing
        ends = np.searchsorted(part_of, range(number + 1))
        return [frame.iloc[start:end] for start, end in itertools.pairwise(ends) if start < end] or [frame]
    return [frame[part_of == part] for part in np.unique(part_of)]


def _joined(made: Sequence[pd.DataFrame], index: pd.Index) -> pd.DataFrame:
    joined = pd.concat(made)
    return joined if joined.index.equals(index) else joined.reindex(index)


@contextmanager
def _no_program() -> Iterator[None]:
    """Let processes that are started meanwhile not import the program that runs here: that of a run brings Dagster, which takes seconds."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _end_with_the_parent() -> None:
    """A killed run leaves no process behind: what waits for the next part would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a process of the pool"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
