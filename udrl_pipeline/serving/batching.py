"""Requests that wait together go through the model together: a bounded queue, one worker thread, and no text that depends on the
others in its batch.

The model runs in a thread, not in a process: what it does is done by torch or another engine outside of Python's lock, commands
and texts need no copying, and a student that is loaded anew takes over within the same memory. One thread, because a model uses
all cores already.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from udrl_pipeline.commands import Command
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.serving.errors import SOON_S, Refused, internal, shutting_down
from udrl_pipeline.serving.meters import Meters
from udrl_pipeline.settings import ServeSettings
from udrl_pipeline.student.decoding import Guidance

logger = logging.getLogger(__name__)

#: How much a new measurement counts in the texts per second that waiting is estimated by.
NEWEST = 0.3
#: The share of a request's time that it may be expected to wait for its turn; one that would wait longer is refused at once.
MOST_WAITING = 0.25
#: The longest that a client is told to stay away (s).
LATEST_S = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One text to write: two equal rows are the same text."""

    command: Command
    seed: int
    #: which of the texts of the same command and seed
    number: int


@dataclass(frozen=True, slots=True)
class Knobs:
    """What the rows of one batch have in common."""

    temperature: float
    top_p: float
    guidance: float | None
    length_guidance: float
    idea_guidance: float | None
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Written:
    """A text, what it achieved, and the command that was really given."""

    command: Command
    guidance: Guidance
    text: str
    words: int
    tokens: int
    finished: bool
    reward: float | None = None


@dataclass(eq=False)
class Job:
    """A request's rows, bound to the student that was in use when it came: a new one takes over without anything being dropped.

    Attributes:
        answer: The texts of the rows.
        piece: Is called with each piece of a text as it comes; only where the job is a single row and goes alone.
    """

    student: Any
    rows: tuple[Row, ...]
    knobs: Knobs
    answer: asyncio.Future[list[Written]]
    piece: Callable[[str], None] | None
    arrived: float = field(default_factory=time.monotonic)

    @property
    def together(self) -> tuple[int, Knobs]:
        """Jobs with the same of these go through the model together."""
        return id(self.student), self.knobs


class Writer(Protocol):
    """What the worker thread calls."""

    def write(self, student: Any, rows: Sequence[Row], knobs: Knobs) -> list[Written]:
        """The texts of the rows, in order."""

    def stream(self, student: Any, row: Row, knobs: Knobs) -> Generator[str | Written]:
        """A text piece by piece, and at last the whole."""


class Batcher:
    """The queue before the model.

    Args:
        writer: Writes the texts; is called in the worker thread alone.
    """

    def __init__(self, options: ServeSettings, writer: Writer, meters: Meters) -> None:
        self._options, self._writer, self._meters = options, writer, meters
        self._queue: deque[Job] = deque()
        self._writing: list[Job] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._texts_per_s = 0.0
        self.draining = False
        meters.watch_queue(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return sum(len(job.rows) for job in self._queue)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._writing

    # -- for requests ---------------------------------------------------------------------------------------------------------

    def submit(self, student: Any, rows: Sequence[Row], knobs: Knobs, piece: Callable[[str], None] | None = None) -> Job:
        """Queue rows; the job's `answer` brings their texts. `piece` is called in the event loop.

        Raises:
            Refused: The queue is full, or would not be through in time; or the server is about to end.
        """
        if self.draining:
            raise shutting_down()
        job = Job(student, tuple(rows), knobs, asyncio.get_running_loop().create_future(), piece)
        ahead = self.waiting + sum(len(writing.rows) for writing in self._writing)
        seconds = ahead / self._texts_per_s if self._texts_per_s else 0.0
        if self.waiting + len(rows) > self._options.queue_texts or seconds > MOST_WAITING * self._options.timeout_s:
            self._meters.refused.inc()
            later = min(max(math.ceil(seconds), SOON_S), LATEST_S)
            remedy = f"ask again in {later} s"
            raise Refused("overloaded", f"{ahead} texts are waiting already", where="queue", remedy=remedy, retry_after=later)
        self._queue.append(job)
        self._arrived.set()
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more: it leaves the queue. A text that is streamed stops, a batch is written to its end."""
        job.answer.cancel()
        if job in self._queue:
            self._queue.remove(job)

    def abort(self) -> None:
        """Answer everything that is still there with the end of the server."""
        self.draining = True
        for job in [*self._queue, *self._writing]:
            _settle(job, shutting_down())
        self._queue.clear()

    # -- the work -------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write batch after batch until cancelled."""
        try:
            while True:
                while not self._queue:
                    self._arrived.clear()
                    await self._arrived.wait()
                await self._collect()
                self._writing = list(self._take())
                if self._writing:
                    await self._answer(self._writing)
                self._writing = []
        finally:
            self.abort()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _collect(self) -> None:
        """Wait for company, until the oldest has waited long enough or a batch is full."""
        until = self._queue[0].arrived + self._options.max_wait_ms / 1000
        while self.waiting < self._options.batch_texts and (left := until - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> Iterator[Job]:
        """The oldest job and what can go with it, as many texts as a batch holds; a larger job goes alone."""
        together, texts = self._queue[0].together if self._queue else None, 0
        for job in list(self._queue):
            if job.together == together and (not texts or texts + len(job.rows) <= self._options.batch_texts):
                texts += len(job.rows)
                self._queue.remove(job)
                self._meters.waited.observe(time.monotonic() - job.arrived)
                yield job

    async def _answer(self, jobs: list[Job]) -> None:
        """Write a batch. Where it fails each of its jobs is tried alone, so that one costs the others nothing."""
        rows = list(dict.fromkeys(row for job in jobs for row in job.rows))
        began = time.monotonic()
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._thread, self._work(jobs, rows))
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._answer([job])
                return
            if not isinstance(error, UdrlError):
                logger.exception("a batch could not be written")
            _settle(jobs[0], error if isinstance(error, Refused) else _told(error))
            return
        seconds = time.monotonic() - began
        self._meters.batch(len(rows), seconds)
        self._learn(len(rows), seconds)
        self._meters.tokens.inc(sum(written.tokens for written in made))
        texts = dict(zip(rows, made, strict=False))  # a stream that was left has none
        for job in jobs:
            _settle(job, [texts[row] for row in job.rows] if made else internal())

    def _work(self, jobs: list[Job], rows: list[Row]) -> Callable[[], list[Written]]:
        """What the worker thread has to do."""
        first, loop = jobs[0], asyncio.get_running_loop()
        if len(jobs) > 1 or len(rows) > 1 or first.piece is None:
            return partial(self._writer.write, first.student, rows, first.knobs)
        tell = first.piece

        def stream() -> list[Written]:
            with closing(self._writer.stream(first.student, rows[0], first.knobs)) as pieces:
                for piece in pieces:
                    if isinstance(piece, Written):
                        return [piece]
                    if first.answer.done():
                        return []
                    loop.call_soon_threadsafe(tell, piece)
            raise RuntimeError("a stream ended without its text")

        return stream

    def _learn(self, rows: int, seconds: float) -> None:
        """How many texts the model writes in a second: rising at once, falling slowly, for a batch that is not full says little."""
        rate = rows / max(seconds, 1e-6)
        known = self._texts_per_s or rate
        self._texts_per_s = known + NEWEST * (rate - known) if rows >= self._options.batch_texts else max(rate, known)


def _told(error: Exception) -> Refused:
    if isinstance(error, UdrlError):
        return Refused("invalid_request", error.what, where=error.where, remedy=error.remedy)
    return internal()


def _settle(job: Job, result: list[Written] | Refused) -> None:
    if job.answer.done():  # its client has left, or it has taken too long
        return
    if isinstance(result, Refused):
        job.answer.set_exception(result)
        job.answer.exception()  # nobody may be waiting any more, which is no mistake
    else:
        job.answer.set_result(result)
