"""From what a request says to commands, and from commands to texts."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from udrl_pipeline.characters import quoted
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.intents import clean, problem
from udrl_pipeline.serving.batching import Batcher, Job, Knobs, Row, Written
from udrl_pipeline.serving.errors import Refused
from udrl_pipeline.serving.meters import Meters
from udrl_pipeline.serving.reload import Serving, Students
from udrl_pipeline.serving.schemas import Wish
from udrl_pipeline.settings import Settings

#: A seed that nobody has chosen; small enough for every JSON reader.
SEED_BITS = 32


@dataclass(frozen=True)
class Asking:
    """A request, understood."""

    serving: Serving
    rows: list[Row]
    knobs: Knobs
    seed: int
    warnings: list[str]


class Desk:
    """Takes requests in for the student that is asked now."""

    def __init__(self, settings: Settings, students: Students, batcher: Batcher, meters: Meters) -> None:
        self.settings, self.students, self.batcher, self.meters = settings, students, batcher, meters

    def serving(self) -> Serving:
        """The student to ask.

        Raises:
            Refused: There is none yet.
        """
        if now := self.students.now:
            return now
        problem = self.students.problem
        what, remedy = (problem.what, problem.remedy) if problem else ("the student is being loaded", "ask again")
        raise Refused("no_student", what, where="student", remedy=remedy, retry_after=max(1, round(self.settings.serve.reload_s)))

    def default_task(self, space: CommandSpace) -> str:
        return next((name for name in self.settings.tasks.names if name in space.tasks), space.tasks[0])

    def understand(self, ideas: Sequence[str], task: str | None, number: int, wish: Wish, max_tokens: int | None = None) -> Asking:
        """The rows that a request asks for, by the command space of the student that it came to.

        Raises:
            Refused: The student cannot be asked this.
        """
        serving, limits = self.serving(), self.settings.serve
        space = serving.space
        if len(ideas) * number > limits.max_texts:
            what = f"{len(ideas) * number} texts in one request"
            raise Refused("invalid_request", what, where="n", remedy=f"ask for at most {limits.max_texts} (ideas times n)")
        task = task or self.default_task(space)
        if task not in space.tasks:
            remedy = f"this student's tasks: {', '.join(space.tasks)}"
            raise Refused("invalid_request", f"unknown task {quoted(task)}", where="task", remedy=remedy)
        seed = secrets.randbits(SEED_BITS) if wish.seed is None else wish.seed
        words = self._words(wish.length, task, space)
        quality = None if wish.quality == "any" else space.best.get(task) if wish.quality == "best" else int(wish.quality)
        warnings: list[str] = []
        before: Counter[Command] = Counter()
        rows = []
        for idea in ideas:
            if reason := problem(idea, self.settings.intents.max_words):
                raise Refused("unusable_idea", f"{quoted(idea, 60)} is no usable idea: {reason}", where="idea", remedy=_PLAIN)
            command, told = _clamp(Command(task, clean(idea), words, quality), space, serving.recipe)
            warnings = told
            for _ in range(number):
                rows.append(Row(command, seed, before[command]))
                before[command] += 1
        return Asking(serving, rows, self._knobs(wish, max_tokens), seed, warnings)

    def _words(self, length: int | str | None, task: str, space: CommandSpace) -> int | None:
        if length is None or length == "any":
            return None
        if isinstance(length, str):
            return space.named_words[task][length]
        if length > self.settings.serve.max_words:
            remedy = f"ask for at most {self.settings.serve.max_words} words"
            raise Refused("invalid_request", f"a length of {length} words", where="length", remedy=remedy)
        return length

    def _knobs(self, wish: Wish, max_tokens: int | None) -> Knobs:
        sampling = self.settings.evaluation
        return Knobs(
            temperature=sampling.temperature if wish.temperature is None else wish.temperature,
            top_p=sampling.top_p if wish.top_p is None else wish.top_p,
            guidance=wish.guidance,
            length_guidance=wish.length_guidance,
            idea_guidance=wish.idea_guidance,
            max_tokens=max_tokens,
        )

    def submit(self, asking: Asking, piece: Callable[[str], None] | None = None) -> Job:
        return self.batcher.submit(asking.serving.student, asking.rows, asking.knobs, piece)

    async def texts(self, asking: Asking, request: Request) -> list[Written]:
        """The texts of a request.

        Raises:
            Refused: The queue is full, it took too long, or the client has left.
        """
        job = self.submit(asking)
        leaving = asyncio.create_task(_left(request))
        try:
            either: set[asyncio.Future[Any]] = {job.answer, leaving}
            await asyncio.wait(either, timeout=self.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if job.answer.done():
                return job.answer.result()
            if leaving.done():
                self.meters.left.inc()
                raise Refused("client_left", "the client has left", where="connection", remedy="wait for the answer")
            raise self.timeout()
        finally:
            leaving.cancel()
            self.batcher.cancel(job)

    @property
    def timeout_s(self) -> float:
        return self.settings.serve.timeout_s

    def timeout(self) -> Refused:
        self.meters.timeouts.inc()
        return Refused(
            "timeout", f"the texts were not written within {self.timeout_s:g} s", where="server", remedy="ask for less, or later"
        )


_PLAIN = "say it in a few plain words"


def _clamp(command: Command, space: CommandSpace, recipe: str) -> tuple[Command, list[str]]:
    """The command that will be given: equal texts must be equal rows (batching.Row)."""
    command, warnings = space.clamp(command)
    if not space.best and (command.words is not None or command.quality is not None):
        command = replace(command, words=None, quality=None)
        warnings = [f"a student of recipe {recipe} was trained without length and quality: both are left out"]
    return command, warnings


async def _left(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
