"""Rounds of upside-down RL: explore -> score -> re-bin -> train.

A student is sampled at its best commands on training intents. Its texts are scored, judged and labelled exactly as the
teacher's were, and join them in one pool whose quality bins are cut anew, so that the highest quality means more than before.
The next student trains on the pool (recipes.py: `udrl-rounds`); the teacher's rows in it are the replay. That rounds are where
most of the gain lies is reported by Quark (arXiv 2205.13636), RiC (2402.10207) and SteerLM (2310.05344).

Round 1 samples `student/udrl`; round n samples the student of round n - 1 and keeps the texts of the rounds before.
"""

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd

from udrl_pipeline import audit, corpus, dataset, quality, rewards
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import StudentError
from udrl_pipeline.store.names import EXPLORED
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.versioning import ROW_KEY_DIGITS, canonical, code_version, content_hash, rows_hash, unit_draw

if TYPE_CHECKING:
    from udrl_pipeline.student.generation import Student

logger = logging.getLogger(__name__)

ASSET = EXPLORED
FIRST, LATER = "student/udrl", "student/udrl-rounds"
SOURCES = (
    "exploration.py", "dataset.py", "rewards.py", "quality.py", "characters.py", "commands.py", "student/generation.py",
    "student/sequences.py", "student/decoding.py", "student/lexicon.py",
)  # fmt: skip
COLUMNS = [*dataset.COLUMNS, "round"]
#: Texts between two commits.
CHUNK = 512


@dataclass(frozen=True, slots=True)
class PlannedText:
    """A text that a round shall hold: everything but what the student will write."""

    row_key: str
    command: Command
    intent_key: str
    sample: int


def build(workspace: Workspace) -> Version:
    """Sample the student of the round before, and publish its texts together with the dataset's rows.

    Raises:
        StudentError: The student of the round before is not there.
        QualityError, CorruptArtifact: The dataset or the student is not fit to be used.
    """
    started, settings = time.monotonic(), workspace.settings
    sampled = sampled_student(workspace)
    code, options = code_version(SOURCES), settings.rounds
    params = {
        "round": options.number,
        "intents": options.intents,
        "samples": options.samples,
        "sampling": settings.evaluation.sampling,
        "rewards": settings.rewards.model_dump(mode="json", exclude={"scorer", "cluster"}),
        "scorer": rewards.scorer_version(settings),
        "quality": settings.quality.model_dump(mode="json"),
        "quality_bins": settings.commands.quality_bins,
    }
    forgotten = workspace.forgotten().rows
    if forgotten:
        params["forgotten"] = rows_hash(forgotten)
    parents = workspace.parents(dataset.ASSET) | {sampled.asset: sampled.version}
    if earlier := sampled.parents.get(ASSET):
        parents[ASSET] = earlier
    fingerprint = workspace.fingerprint(ASSET, code, params, parents)
    with workspace.lock(ASSET):
        if made := workspace.reuse(ASSET, fingerprint):
            return made
        rows = dataset.read_dataset(workspace, parents[dataset.ASSET]).assign(round=0)
        before = read_pool(workspace, earlier) if earlier else rows.head(0)
        planned, left_out = corpus.divide(plan(workspace, sampled, rows), forgotten)
        written, work = _write_missing(workspace, sampled, planned)
        written = rewards.score_missing(workspace, written)[0].assign(split="train", round=options.number)
        pool = pd.concat([rows, before[before["round"] > 0], written], ignore_index=True)
        examined = rewards.label(quality.examine(pool, workspace.tasks, first="round"), settings.rewards)
        new = examined["round"] == options.number
        kept, expected, quarantined = quality.judge_rows(examined[new].reset_index(drop=True), settings.quality)
        pool = pd.concat([examined[~new], kept], ignore_index=True)
        edges = dataset.quality_edges(pool, settings.commands.quality_bins)
        pool = pool.assign(quality=dataset.quality_bins(pool, edges))[COLUMNS].sort_values("row_key", ignore_index=True)
        return workspace.record(
            ASSET,
            version=dataset.content_of(pool, edges),
            fingerprint=fingerprint,
            code_version=code,
            rows=len(pool),
            params=params,
            parents=parents,
            facts=_facts(pool, edges, len(written), sampled, options.number) | work,
            expectations=expected,
            quarantined=quarantined + left_out,
            write=lambda folder: write_table(pool, folder / "rows.parquet"),
            started=started,
            work=work,
        )


def sampled_student(workspace: Workspace) -> Version:
    """The student that this round samples.

    Raises:
        StudentError: It is not there, or obeys no commands.
    """
    number = workspace.settings.rounds.number
    if number == 1:
        return workspace.current(FIRST) or _missing_student("there is no student to sample yet", f"udrl run --select {FIRST}")
    found = audit.versions(workspace, LATER) if workspace.current(LATER) else []
    made = next((version for version in found if version.facts.get("round") == number - 1), None)
    return made or _missing_student(
        f"round {number - 1} has not been trained yet", f"udrl run --select {LATER} with rounds.number one less"
    )


def _missing_student(what: str, remedy: str) -> NoReturn:
    raise StudentError(what, where="params.yaml: rounds.number", remedy=f"run `{remedy}` first")


def plan(workspace: Workspace, sampled: Version, rows: pd.DataFrame) -> list[PlannedText]:
    """What the student is asked for: its best quality, at lengths drawn from those that the task's training rows have.

    Which intents a round takes is drawn by their own keys, so that rounds see different ones where there are more than enough.
    """
    options, sampling = workspace.settings.rounds, workspace.settings.evaluation.sampling
    space = CommandSpace.load(workspace.version_folder(sampled.asset, sampled.version))
    planned = []
    for task, of_task in rows[rows.split == "train"].groupby("task", sort=True):
        low, high = space.covered[str(task)]
        lengths = of_task.words[of_task.words.between(low, high)].sort_values().tolist()
        intents = of_task.drop_duplicates("intent_key")[["intent_key", "intent"]].itertuples(index=False, name=None)
        drawn = sorted(intents, key=lambda intent: unit_draw("explore", options.number, intent[0]))[: options.intents]
        for key, intent in drawn:
            for sample in range(options.samples):
                words = lengths[int(unit_draw("length", options.number, sample, task, key) * len(lengths))]
                command = Command(str(task), intent, words, space.best[str(task)])
                identity = {
                    "intent": key, "task": task, "source": source_of(sampled), "words": words, "quality": command.quality,
                    "guidance": space.guidance[str(task)], "sampling": sampling, "round": options.number, "sample": sample,
                }  # fmt: skip
                planned.append(PlannedText(content_hash(identity, ROW_KEY_DIGITS), command, key, sample))
    return planned


def source_of(student: Version) -> str:
    """What stands as the source of a text that a student wrote."""
    return f"{student.asset}@{student.version}"


def _write_missing(workspace: Workspace, sampled: Version, planned: list[PlannedText]) -> tuple[pd.DataFrame, dict[str, float]]:
    """Sample what is missing, chunk by chunk, each committed. Returns all planned texts, and the work done."""
    began = time.monotonic()
    missing = corpus.missing_rows(workspace, planned)
    if missing:
        from udrl_pipeline.student.generation import Student

        workspace.check_files(sampled.asset, sampled.version)
        student = Student.load(workspace.version_folder(sampled.asset, sampled.version))
        done = 0
        for chunk in _chunks(missing):
            corpus.commit_rows(workspace, _sample(workspace, student, sampled, chunk))
            done += len(chunk)
            rate = done / (time.monotonic() - began)
            logger.info("%d of %d texts, %.1f texts/s, %.0f s left", done, len(missing), rate, (len(missing) - done) / rate)
    seconds = round(time.monotonic() - began, 1)
    return corpus.find_rows(workspace, [text.row_key for text in planned]), {"sampled_texts": len(missing), "sampling_seconds": seconds}


def _chunks(missing: list[PlannedText]) -> Iterator[list[PlannedText]]:
    """Chunks of one sample index each: what is drawn for a text then depends on that alone, not on where a killed round stopped."""
    ordered = sorted(missing, key=lambda text: (text.sample, text.command.words or 0))  # texts of one length end together
    for _, of_sample in itertools.groupby(ordered, key=lambda text: text.sample):
        texts = list(of_sample)
        yield from (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))


def _sample(workspace: Workspace, student: "Student", sampled: Version, chunk: list[PlannedText]) -> list[tuple[Any, ...]]:
    import transformers

    sampling = workspace.settings.evaluation.sampling
    texts = student.generate([text.command for text in chunk], **sampling | {"seed": sampling["seed"] + chunk[0].sample})
    now, rendering = datetime.now(UTC), code_version(["commands.py"])
    drawn = {**sampling, "idea_guidance": student.space.idea_guidance}
    return [
        (
            text.row_key, text.command.task, text.command.intent, text.intent_key, made.text, made.tokens,
            "stop" if made.finished else "length", "student", transformers.__version__, source_of(sampled), rendering,
            canonical({**drawn, "quality": text.command.quality, "guidance": made.guidance.quality}),
            text.command.words, "[]", text.sample, workspace.run_id, now, False,
        )
        for text, made in zip(chunk, texts, strict=True)
    ]  # fmt: skip


def _facts(pool: pd.DataFrame, edges: dict[str, list[float]], sampled: int, student: Version, number: int) -> dict[str, Any]:
    new = pool[pool["round"] == number]
    return {
        "edges": edges,
        "round": number,
        "sampled_from": source_of(student),
        "sampled": sampled,
        "kept": len(new),
        "rows": {f"round {n}": int(count) for n, count in pool["round"].value_counts().sort_index().items()},
        "mean_reward": {str(task): round(float(value), 4) for task, value in new.groupby("task").reward.mean().items()},
        "mean_reward_before": {
            str(task): round(float(value), 4) for task, value in pool[pool["round"] < number].groupby("task").reward.mean().items()
        },
    }


def read_pool(workspace: Workspace, version: str) -> pd.DataFrame:
    """The rows of a pool: those of the dataset (round 0) and the students' (columns as in `COLUMNS`), checked against its manifest."""
    workspace.check_files(ASSET, version)
    return pd.read_parquet(workspace.version_folder(ASSET, version) / "rows.parquet")
