"""What a piece of work may take and takes: its cores, its seconds, and the most memory that this process and all that it starts held."""

import contextlib
import os
import threading
import time
from types import TracebackType

#: Seconds between two looks. One costs some milliseconds for each gigabyte that a process holds.
EVERY_S = 2.0


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(process: int | None = None) -> int:
    """Bytes of a process (its id; default: this one) and its descendants; pages that they share count once, where the system tells."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        of = psutil.Process(process)
        for member in [of, *of.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                found = member.memory_full_info()
                total += getattr(found, "pss", found.rss)
    return total


class Usage:
    """Watches what happens in its `with` block from a thread of its own.

    Attributes:
        seconds: How long the block has taken (so far).
        peak: The most bytes that were seen at one look (so far).
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every, self._ended = every_s, threading.Event()
        self._began, self._seconds = time.monotonic(), None  # type: float, float | None
        self._peak = 0

    def __enter__(self) -> "Usage":
        self._began = time.monotonic()
        self._watcher = threading.Thread(target=self._watch, name="usage", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._seconds = self.seconds
        self._ended.set()
        self._watcher.join()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began if self._seconds is None else self._seconds

    @property
    def peak(self) -> int:
        self._look()
        return self._peak

    def _look(self) -> None:
        self._peak = max(self._peak, memory())

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self._look()
