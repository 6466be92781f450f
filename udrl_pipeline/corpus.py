"""The teacher corpus: which rows are missing, and how they are made. Incremental by row; a killed run resumes.

Row identity is `hash(intent, task, source digest, template hash, sampling, asked length, sample index)`. Rows are
append-only. Generation fills only the keys that are missing, in chunks that are each committed.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import duckdb
import pandas as pd
from tqdm import tqdm

from udrl_pipeline import metrics
from udrl_pipeline.errors import CorruptArtifact, IntentsError, TeacherError, UdrlError
from udrl_pipeline.intents import Intent
from udrl_pipeline.intents.asset import read_intents
from udrl_pipeline.models import digest_of
from udrl_pipeline.recorded import recorded_rows
from udrl_pipeline.settings import Settings, TeacherSettings
from udrl_pipeline.store import tombstones
from udrl_pipeline.store.database import Connection, translate, typed_errors
from udrl_pipeline.store.names import CORPUS, ROW_COLUMNS
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Quarantined, Version, Workspace
from udrl_pipeline.tasks import Task
from udrl_pipeline.teacher import Engine, Refusal, Reply, Request, open_engine
from udrl_pipeline.versioning import ROW_KEY_DIGITS, canonical, code_version, content_hash, rows_hash

logger = logging.getLogger(__name__)

ASSET = CORPUS
#: A kill costs at most about this much of the teacher's work, whatever the engine's speed.
COMMIT_SECONDS = 45.0
FIRST_CHUNK = 32
SOURCES = ("corpus.py", "tasks/__init__.py", "teacher/__init__.py")
COLUMNS = ROW_COLUMNS
#: Why rows are set aside that no worker of the cluster could make.
SHARD_FAILED = "shard failed"
#: The columns that the content hash counts.
HASHED = ("row_key", "text", "finish_reason")


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row that the corpus shall hold: everything but what the teacher will write."""

    row_key: str
    task: str
    intent: str
    intent_key: str
    sample: int
    asked_words: int
    sampling: dict[str, Any]


def source_digest(settings: Settings) -> str:
    """What identifies the teacher: the digest of its weights, or the name that an endpoint without one serves it under."""
    teacher = settings.teacher
    if teacher.engine == "server" and teacher.model.sha256 is None:
        return content_hash({"served": teacher.server.model}, 64)
    return digest_of(teacher.model, settings)


def sampling_of(teacher: TeacherSettings, asked_words: int) -> dict[str, Any]:
    """How a row is sampled. 2.5 tokens a word leave room for the teacher to overshoot, and 20 for short rows."""
    return {
        "temperature": teacher.temperature,
        "top_p": teacher.top_p,
        "repetition_penalty": teacher.repetition_penalty,
        "max_tokens": round(2.5 * asked_words) + 20,
    }


def plan(intents: list[Intent], tasks: dict[str, Task], settings: Settings, source: str) -> list[PlannedRow]:
    """All rows that the corpus shall hold, every intent's first sample before any second one."""
    teacher = settings.teacher
    planned = []
    for sample in range(teacher.samples):
        for intent in intents:
            for name in intent.tasks:
                task = tasks[name]
                asked = task.asked_words(teacher.asked_words, intent.key, sample)
                sampling = sampling_of(teacher, asked)
                identity = {
                    "intent": intent.key, "task": name, "source": source, "template": task.template_hash,
                    "sampling": sampling, "asked_words": asked, "examples": teacher.examples, "sample": sample,
                }  # fmt: skip
                key = content_hash(identity, ROW_KEY_DIGITS)
                planned.append(PlannedRow(key, name, intent.text, intent.key, sample, asked, sampling))
    # rows that share a prompt prefix stand together, which an engine with a prefix cache repays
    return sorted(planned, key=lambda row: (row.sample, row.task, row.asked_words, row.row_key))


def build(workspace: Workspace) -> Version:
    """Bring the corpus up to date with the current intents: import what is recorded, generate what is missing, publish.

    Raises:
        ModelError, TeacherError: The teacher cannot be had, or refuses every row. What was committed before is kept.
        StoreLocked, StoreFull: The store cannot be written.
    """
    started, settings = time.monotonic(), workspace.settings
    source, code = source_digest(settings), code_version(SOURCES)
    params = {
        **settings.teacher.model_dump(
            mode="json", include={"samples", "asked_words", "examples", "temperature", "top_p", "repetition_penalty"}
        ),
        "source": source,
        "templates": {name: task.template_hash for name, task in workspace.tasks.items()},
    }
    forgotten = workspace.forgotten().rows
    if forgotten:
        params["forgotten"] = rows_hash(forgotten)
    parents = workspace.parents("intents")
    fingerprint = workspace.fingerprint(ASSET, code, params, parents)
    with workspace.lock(ASSET):
        if made := workspace.reuse(ASSET, fingerprint):
            return made
        intents = read_intents(workspace, parents["intents"])
        if gone := sorted({task for intent in intents for task in intent.tasks} - workspace.tasks.keys()):
            raise IntentsError(
                f"the intents name tasks that are no longer there: {', '.join(gone)}",
                where=f"intents {parents['intents']}",
                remedy="run `udrl run --select intents` first",
            )
        planned, left_out = divide(plan(intents, workspace.tasks, settings, source), forgotten)
        missing = missing_rows(workspace, planned)
        imported = _import_recorded(workspace, missing) if settings.teacher.recorded and missing else 0
        missing = missing_rows(workspace, missing) if imported else missing
        refused, work = _generate(workspace, missing, source)
        if failed := [row.item for row in refused if row.reason == SHARD_FAILED]:
            logger.warning("%d rows of shards that failed are set aside; the next run asks for them again", len(failed))
            # not what these inputs make: the next run shall not take it for that, but ask again
            params["failed"] = rows_hash(failed)
            fingerprint = workspace.fingerprint(ASSET, code, params, parents)
        return _publish(
            workspace, planned, refused + left_out, fingerprint=fingerprint, code_version=code, params=params, parents=parents,
            facts={"imported": imported}, started=started, work=work,
        )  # fmt: skip


class _Keyed(Protocol):
    """Something that a row is planned for."""

    @property
    def row_key(self) -> str: ...


Planned = TypeVar("Planned", bound=_Keyed)


def divide(planned: Sequence[Planned], forgotten: frozenset[str]) -> tuple[list[Planned], list[Quarantined]]:
    """The planned rows, less those that were forgotten, which are set aside without their text."""
    left_out = [Quarantined(row.row_key, "forgotten", "", "") for row in planned if row.row_key in forgotten]
    return [row for row in planned if row.row_key not in forgotten], left_out


def missing_rows(workspace: Workspace, planned: Sequence[Planned]) -> list[Planned]:
    """The planned rows that nobody has written yet."""
    with workspace.database.reader() as connection:
        have = {key for (key,) in connection.execute("SELECT row_key FROM rows").fetchall()}
    return [row for row in planned if row.row_key not in have]


def _import_recorded(workspace: Workspace, missing: list[PlannedRow]) -> int:
    """Copy recorded rows, and their scores, for the keys that are missing. Returns how many."""
    wanted = {row.row_key for row in missing}
    return sum(import_rows(workspace, file, wanted) for file in recorded_rows())


def import_rows(workspace: Workspace, file: Path, wanted: set[str] | None = None) -> int:
    """Import rows and scores from a Parquet file that `udrl corpus export` wrote; all of them, or only `wanted` keys.

    A key that is already there keeps its row; what was forgotten is left out. Returns the number of rows that are new.
    """
    columns = ", ".join(COLUMNS[:-1])
    with workspace.database.writer() as connection:
        forgotten = tombstones.forgotten(tombstones.read(connection))
        before = _count(connection)
        try:
            with duckdb.connect() as reading:
                if wanted is not None:
                    reading.register("wanted", pd.DataFrame({"row_key": pd.Series(sorted(wanted), dtype="str")}))
                chosen = "WHERE row_key IN (SELECT row_key FROM wanted)" if wanted is not None else ""
                frame = reading.execute(f"SELECT {columns}, scorer_version, relevance FROM read_parquet(?) {chosen}", [str(file)]).df()
            if forgotten:
                frame = frame[~(frame.row_key.isin(forgotten.rows) | frame.intent_key.map(forgotten.holds_intent).astype(bool))]
            connection.register("imported", frame)
            connection.execute(f"INSERT INTO rows ({columns}, recorded) SELECT {columns}, true FROM imported ON CONFLICT DO NOTHING")
            connection.execute(
                """INSERT INTO scores (row_key, scorer_version, relevance) SELECT row_key, scorer_version, relevance FROM imported
                   WHERE scorer_version IS NOT NULL ON CONFLICT DO NOTHING"""
            )
        except Exception as error:  # of either database
            if isinstance(translate(error, file), UdrlError) and not isinstance(translate(error, file), CorruptArtifact):
                raise  # the store's fault, not the file's
            raise CorruptArtifact(
                f"is no file of rows ({str(error).splitlines()[0]})", where=str(file), remedy="write it with `udrl corpus export`"
            ) from error
        return _count(connection) - before


def export_rows(workspace: Workspace, file: Path, keys: set[str] | None = None) -> int:
    """Write rows with their scores to a compressed Parquet file, in the order of their keys. Returns their number."""
    with workspace.database.reader() as connection:
        frame = connection.execute(
            f"""SELECT {", ".join("r." + c for c in COLUMNS[:-1])}, s.scorer_version, s.relevance
                FROM rows r LEFT JOIN scores s USING (row_key) ORDER BY row_key, scorer_version"""
        ).df()
    if keys is not None:
        frame = frame[frame.row_key.isin(keys)]
    staged = file.with_name(f".{file.name}")
    with typed_errors(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(staged, compression="zstd", compression_level=19, index=False)
            staged.replace(file)
        finally:
            staged.unlink(missing_ok=True)
    return int(frame.row_key.nunique())


def _count(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM rows").fetchall()[0][0])


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of a planned row, and which engine it was asked."""

    row: PlannedRow
    reply: Reply | Refusal
    engine: str
    engine_version: str


def _generate(workspace: Workspace, missing: list[PlannedRow], source: str) -> tuple[list[Quarantined], dict[str, float]]:
    """Ask the teacher for the missing rows, chunk by chunk, each committed. Returns what it refused, and the work done."""
    if not missing:
        return [], {"teacher_rows": 0, "teacher_tokens": 0}
    refused, tokens, done = list[Quarantined](), 0, 0
    logger.info("%d rows are missing; starting the teacher", len(missing))
    started = time.monotonic()
    ask = _ask_on_ray if workspace.settings.teacher.cluster == "ray" else _ask_here
    with tqdm(total=len(missing), unit="row", desc="teacher", disable=None) as bar, closing(ask(workspace, missing)) as chunks:
        for chunk in chunks:
            rows, written = [], Counter[str]()
            for answered in chunk:
                row, reply = answered.row, answered.reply
                if isinstance(reply, Refusal):
                    refused.append(Quarantined(row.row_key, reply.kind, reply.reason, row.intent))
                else:
                    tokens += reply.tokens
                    written[row.task] += reply.tokens
                    rows.append(_record(workspace, row, reply, answered.engine, answered.engine_version, source))
            commit_rows(workspace, rows)
            _count_written(rows, written)
            bar.update(len(chunk))
            done += len(chunk)
            rate = done / (time.monotonic() - started)
            logger.info("%d of %d rows, %.1f rows/s, %.0f s left", done, len(missing), rate, (len(missing) - done) / rate)
    seconds = time.monotonic() - started
    written_rows = len(missing) - len(refused)
    speed = {"rows_per_s": round(written_rows / seconds, 2), "tokens_per_s": round(tokens / seconds, 1)}
    return refused, {"teacher_rows": written_rows, "teacher_tokens": tokens, "teacher_seconds": round(seconds, 2), **speed}


def _ask_here(workspace: Workspace, missing: list[PlannedRow]) -> Generator[list[Answered]]:
    teacher, done = workspace.settings.teacher, 0
    engine = open_engine(workspace.settings)
    try:
        size = min(FIRST_CHUNK, teacher.chunk_rows)
        while done < len(missing):
            began, chunk = time.monotonic(), missing[done : done + size]
            replies = engine.generate([request(workspace.tasks[row.task], row, teacher) for row in chunk])
            yield [Answered(row, reply, engine.name, engine.version) for row, reply in zip(chunk, replies, strict=True)]
            size = next_chunk(size, time.monotonic() - began, teacher.chunk_rows)
            done += len(chunk)
    finally:
        engine.close()


def _ask_on_ray(workspace: Workspace, missing: list[PlannedRow]) -> Generator[list[Answered]]:
    """Each chunk is what came of a shard. Rows of one that failed too often are set aside; the next run asks for them again."""
    from udrl_pipeline import cluster

    settings, planned = workspace.settings, {row.row_key: row for row in missing}
    most = cluster.shard_rows(len(missing), settings.teacher.chunk_rows, settings.ray)
    columns = ["row_key", "task", "intent", "intent_key", "sample", "asked_words"]
    work = cluster.work_on(
        workspace,
        ASSET,
        pd.DataFrame([[getattr(row, column) for column in columns] for row in missing], columns=columns),
        partial(_Teacher, settings, workspace.tasks, open_engine),
        cluster.Sizes(most, min(FIRST_CHUNK, most), partial(next_chunk, most=most)),
        gpus=settings.ray.gpus * settings.teacher.tensor_parallel,
    )
    for made in work:
        answered = {key: Answered(planned[key], Refusal(made.reason, SHARD_FAILED), "", "") for key in made.left}
        for key, text, tokens, finish, refusal, *engine in [] if made.rows is None else made.rows[ANSWER].itertuples(index=False):
            if key in planned:  # what a run with other intents left behind is nobody's
                answered[key] = Answered(planned[key], Refusal(refusal) if refusal else Reply(text, int(tokens), finish), *engine)
        yield list(answered.values())


#: What a worker of the cluster hands back of a row.
ANSWER = ["row_key", "text", "tokens", "finish_reason", "refusal", "engine", "engine_version"]


class _Teacher:
    """The teacher on a worker of the cluster."""

    def __init__(self, settings: Settings, tasks: Mapping[str, Task], start: Callable[[Settings], Engine]) -> None:
        self._teacher, self._tasks, self._engine = settings.teacher, tasks, start(settings)

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        planned = [PlannedRow(**row, sampling=sampling_of(self._teacher, row["asked_words"])) for row in rows.to_dict("records")]
        replies = self._engine.generate([request(self._tasks[row.task], row, self._teacher) for row in planned])
        engine = (self._engine.name, self._engine.version)
        return pd.DataFrame(
            [
                (row.row_key, "", 0, "", reply.reason, *engine)
                if isinstance(reply, Refusal)
                else (row.row_key, reply.text, reply.tokens, reply.finish_reason, "", *engine)
                for row, reply in zip(planned, replies, strict=True)
            ],
            columns=ANSWER,
        )

    def close(self) -> None:
        self._engine.close()


def _count_written(rows: list[tuple[Any, ...]], tokens: Counter[str]) -> None:
    for task, number in Counter(row[COLUMNS.index("task")] for row in rows).items():
        metrics.TEACHER_ROWS.add(number, asset=ASSET, task=task)
        metrics.TEACHER_TOKENS.add(tokens[task], asset=ASSET, task=task)


def next_chunk(size: int, seconds: float, most: int) -> int:
    """Rows of the next chunk, so that it takes about COMMIT_SECONDS: after one of `size` rows in `seconds`, at most four times as many."""
    return max(1, min(most, 4 * size, round(size * COMMIT_SECONDS / max(seconds, 0.001))))


def request(task: Task, row: PlannedRow, teacher: TeacherSettings) -> Request:
    """What the teacher is asked for a planned row."""
    examples = task.drawn_examples(row.asked_words, teacher.examples, row.intent_key, row.sample)
    return Request(messages=task.messages(row.intent, row.asked_words, examples), **row.sampling)


def _record(workspace: Workspace, row: PlannedRow, reply: Reply, engine: str, version: str, source: str) -> tuple[Any, ...]:
    task, teacher = workspace.tasks[row.task], workspace.settings.teacher
    examples = [e.intent for e in task.drawn_examples(row.asked_words, teacher.examples, row.intent_key, row.sample)]
    return (
        row.row_key, row.task, row.intent, row.intent_key, reply.text, reply.tokens, reply.finish_reason, engine, version, source,
        task.template_hash, canonical(row.sampling), row.asked_words, canonical(examples), row.sample, workspace.run_id,
        datetime.now(UTC), False,
    )  # fmt: skip


def commit_rows(workspace: Workspace, rows: list[tuple[Any, ...]]) -> None:
    """Write rows (columns as in `COLUMNS`); a key that is already there keeps its row."""
    if not rows:
        return
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    with workspace.database.writer() as connection:
        connection.register("frame", frame)
        connection.execute(f"INSERT INTO rows ({', '.join(COLUMNS)}) SELECT {', '.join(COLUMNS)} FROM frame ON CONFLICT DO NOTHING")


def _publish(
    workspace: Workspace, planned: list[PlannedRow], refused: list[Quarantined], *, facts: dict[str, Any], **record: Any
) -> Version:
    frame = find_rows(workspace, [row.row_key for row in planned])
    if frame.empty:
        raise TeacherError(
            f"the teacher refused all of its {len(refused)} rows; the first one: {refused[0].detail}",
            where="params.yaml: teacher",
            remedy="correct what it names, or ask another teacher",
        )
    words = frame.text.str.split().str.len()
    facts |= {
        "rows_per_task": {str(k): int(v) for k, v in frame.task.value_counts().sort_index().items()},
        "engines": sorted({f"{engine} {version}" for engine, version in zip(frame.engine, frame.engine_version, strict=True)}),
        "unfinished": int((frame.finish_reason == "length").sum()),
        "refused": len(refused),
        "mean_words": {str(k): round(float(v), 2) for k, v in words.groupby(frame.task).mean().items()},
        "tokens": int(frame.tokens.sum()),
    }
    return workspace.record(
        ASSET,
        version=content_of(frame),
        rows=len(frame),
        facts=facts,
        quarantined=refused,
        write=lambda folder: write_table(frame, folder / "rows.parquet"),
        **record,
    )


def content_of(frame: pd.DataFrame) -> str:
    """The content hash of a corpus: its keys with what was written, in any order."""
    columns = (frame[name].tolist() for name in HASHED)  # lists: a column hands its values out slowly
    return rows_hash(f"{key}\t{content_hash(text, 32)}\t{finish}" for key, text, finish in zip(*columns, strict=True))


def find_rows(workspace: Workspace, keys: Sequence[str]) -> pd.DataFrame:
    """The rows of these keys, as far as they have been written, in the order of their keys. Columns as in `COLUMNS`."""
    with workspace.database.reader() as connection:
        connection.register("planned", pd.DataFrame({"row_key": pd.Series(keys, dtype="str")}))
        return connection.execute(f"SELECT {', '.join(COLUMNS)} FROM rows JOIN planned USING (row_key) ORDER BY row_key").df()


def read_rows(workspace: Workspace, version: str) -> pd.DataFrame:
    """The rows of a corpus version, checked against its manifest, in the order of intents and keys. Columns as in `COLUMNS`."""
    workspace.check_files(ASSET, version)
    return pd.read_parquet(workspace.version_folder(ASSET, version) / "rows.parquet")
