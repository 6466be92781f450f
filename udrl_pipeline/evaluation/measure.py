"""Ask every system for the same held-out intents, and score what it wrote. Systems are given as callables, so fakes will do."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.corpus import sampling_of
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.evaluation.held_out import HeldOut
from udrl_pipeline.rewards import label, words
from udrl_pipeline.settings import EvaluationSettings, LlmComparator, RewardSettings, TeacherSettings
from udrl_pipeline.student.generation import Generated
from udrl_pipeline.tasks import Task
from udrl_pipeline.teacher import Engine, Refusal, Request
from udrl_pipeline.versioning import canonical, rows_hash

logger = logging.getLogger(__name__)

#: What a text was written for: the comparison of systems, or one of the two calibrations.
Part = Literal["compare", "quality", "length"]
COLUMNS = [
    "system",
    "part",
    "task",
    "intent",
    "intent_key",
    "commanded_words",
    "given_words",
    "commanded_quality",
    "text",
    "words",
    "tokens",
    "finished",
]
GIVEN = ["system", "part", "task", "intent_key", "commanded_words", "commanded_quality", "text", "finished"]

Generate = Callable[[Sequence[Command]], Sequence[Generated]]


class Scores(Protocol):
    """What is needed of `rewards.Scorer`."""

    def relevance(self, intents: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class System:
    """Something that writes texts. `key` names it in metrics.json; a `reason` says why it is not measured."""

    key: str
    label: str
    kind: Literal["teacher", "student", "comparator"]
    how: str
    reason: str = ""
    short_reason: str = ""


def teacher_samples(held: HeldOut) -> pd.DataFrame:
    """The teacher's answers as two systems: all of them, and those that the dataset kept."""
    rows = held.rows.assign(
        part="compare", commanded_words=held.rows.asked_words, given_words=held.rows.asked_words, commanded_quality=pd.NA
    )
    return _samples(pd.concat([rows.assign(system="teacher"), rows[rows.kept].assign(system="teacher_kept")], ignore_index=True))


def student_samples(
    name: str,
    generate: Generate,
    space: CommandSpace,
    commanded: bool,
    held: HeldOut,
    settings: EvaluationSettings,
    calibrated: bool = True,
) -> pd.DataFrame:
    """A student's texts. A commanded one is asked at its best quality without a length, uncommanded, and for both calibrations.

    Args:
        generate: Commands in, texts out, in order.
        commanded: Whether the student was trained to obey length and quality.
        calibrated: Otherwise a commanded student, too, is only asked at its best quality.
    """
    wanted: list[tuple[str, Part, pd.Series, Command]] = []
    for task in [task for task in space.tasks if task in set(held.rows.task)]:

        def ask(system: str, part: Part, count: int, length: int | None, quality: int | None, task: str = task) -> None:
            for _, row in held.first(task, count).iterrows():
                wanted.append((system, part, row, Command(task, row.intent, length, quality)))

        ask(name, "compare", settings.intents, None, best := space.best[task] if commanded else None)
        if commanded and calibrated:
            ask(f"{name}_uncommanded", "compare", settings.intents, None, None)
            for quality in range(1, space.quality_bins + 1):
                if quality != best:
                    ask(name, "quality", settings.quality_intents, None, quality)
            for length in settings.lengths:
                ask(name, "length", settings.length_intents, length, best)
    texts = generate([command for *_, command in wanted])
    rows = [
        (
            system, part, command.task, command.intent, row.intent_key, command.words, text.command.words, command.quality,
            text.text, text.words, text.tokens, text.finished,
        )
        for (system, part, row, command), text in zip(wanted, texts, strict=True)
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=COLUMNS)
    if commanded and calibrated:  # the texts at the best quality serve in the calibration too
        best_texts = frame[(frame.system == name) & (frame.part == "compare")]
        best_texts = best_texts.groupby("task", sort=False).head(settings.quality_intents)
        frame = pd.concat([frame, best_texts.assign(part="quality")], ignore_index=True)
    return _samples(frame)


def comparator_samples(
    comparator: LlmComparator, engine: Engine, tasks: dict[str, Task], held: HeldOut, teacher: TeacherSettings
) -> tuple[pd.DataFrame, int]:
    """What another model answers to the very chats that the teacher was given. Returns the texts, and how many it refused.

    Raises:
        TeacherError: The engine failed, or refused every request.
    """
    requests = []
    for row in held.rows.itertuples():
        task, asked = tasks[str(row.task)], int(row.asked_words)
        chat = task.messages(str(row.intent), asked, task.drawn_examples(asked, teacher.examples, str(row.intent_key), 0))
        requests.append(Request(messages=chat, **sampling_of(teacher, asked)))
    replies = engine.generate(requests)
    answered = [not isinstance(reply, Refusal) for reply in replies]
    if not any(answered):
        first = next(reply for reply in replies if isinstance(reply, Refusal))
        raise TeacherError(
            f"refused every request ({first.reason})", where=f"evaluation.comparators: {comparator.name}", remedy="check its model"
        )
    given = [reply for reply in replies if not isinstance(reply, Refusal)]
    rows = held.rows[answered].assign(
        system=comparator.name, part="compare", commanded_quality=pd.NA,
        text=[reply.text for reply in given], words=[words(reply.text) for reply in given],
        tokens=[reply.tokens for reply in given], finished=[reply.finish_reason == "stop" for reply in given],
    )  # fmt: skip
    return _samples(rows.assign(commanded_words=rows.asked_words, given_words=rows.asked_words)), len(replies) - len(given)


def _samples(frame: pd.DataFrame) -> pd.DataFrame:
    integers = dict.fromkeys(("commanded_words", "given_words", "commanded_quality"), "Int64")
    return frame[COLUMNS].astype({**integers, "words": "int64", "tokens": "int64", "finished": "bool"}).reset_index(drop=True)


def score(samples: pd.DataFrame, scorer: Scores, rewards: RewardSettings) -> pd.DataFrame:
    """Add relevance, fidelity, gain, repetition, reward (as the dataset has them), and what was copied from the intent."""
    from udrl_pipeline.evaluation.metrics import load_metric

    pairs = samples[["intent", "text"]].drop_duplicates(ignore_index=True)
    pairs["relevance"] = scorer.relevance(pairs.intent.tolist(), pairs.text.tolist())
    pairs = label(pairs, rewards)
    copying = load_metric("copying").compute(predictions=pairs.text.tolist(), references=pairs.intent.tolist())
    pairs = pairs.assign(copied=copying["copied_each"], copied_run=copying["copied_run_each"])
    return samples.merge(pairs, on=["intent", "text"], how="left", validate="many_to_one")


def embed(samples: pd.DataFrame, scorer: Scores) -> dict[str, NDArray[np.float32]]:
    """The embedding of every text that the systems are compared on."""
    texts = sorted(set(samples[samples.part == "compare"].text))
    return dict(zip(texts, scorer.embed(texts), strict=True))


def texts_hash(samples: pd.DataFrame) -> str:
    """The content hash of all texts with what was asked for, in any order."""
    rows = samples[GIVEN].astype(object).where(samples[GIVEN].notna(), None)
    return rows_hash(canonical([*map(_plain, row)]) for row in rows.itertuples(index=False, name=None))


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
