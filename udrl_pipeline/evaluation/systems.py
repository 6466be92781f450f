"""The systems of an evaluation: loaded, asked, judged and timed. A comparator or judge that cannot be had is a reason, no error."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline import dataset
from udrl_pipeline.commands import Command
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.evaluation import gate, measure, rubric
from udrl_pipeline.evaluation.held_out import HeldOut
from udrl_pipeline.evaluation.judges import TeacherJudge
from udrl_pipeline.evaluation.latency import Latency, size, time_requests
from udrl_pipeline.evaluation.measure import System
from udrl_pipeline.models import resolve
from udrl_pipeline.settings import LlmComparator, ModelRef, Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.decoding import Guidance, variants
from udrl_pipeline.student.generation import Student
from udrl_pipeline.teacher import open_engine
from udrl_pipeline.teacher.transformers_engine import TransformersEngine

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What the phases leave behind for one another."""

    systems: list[System] = field(default_factory=list)
    samples: list[pd.DataFrame] = field(default_factory=list)
    latencies: dict[str, Latency] = field(default_factory=dict)
    not_timed: dict[str, str] = field(default_factory=dict)
    rubric: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        logger.info("%s", name)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)
        logger.info("%s: took %.1f s", name, self.seconds[name])


def model_name(ref: ModelRef) -> str:
    """A model's name for people: the last part of its file or reference."""
    return Path(ref.file).stem if ref.file else ref.ref.split("@")[0].rstrip("/").split("/")[-1].split(":")[-1]


def teacher_name(settings: Settings) -> str:
    """The teacher's name for people."""
    teacher = settings.teacher
    return teacher.server.model if teacher.engine == "server" else model_name(teacher.model)


def teacher_systems(settings: Settings) -> list[System]:
    """The teacher as two systems: see `held_out`."""
    how = f"every answer of {teacher_name(settings)} in the corpus, as it gave it, at the length that it was asked"
    return [
        System("teacher", "teacher", "teacher", how),
        System("teacher_kept", "teacher, kept rows", "teacher", "its answers that passed the dataset's expectations; fewer intents"),
    ]


def load_students(workspace: Workspace, versions: Mapping[str, Version]) -> dict[str, Student]:
    """The students by recipe, in the order of `versions`.

    Raises:
        CorruptArtifact: A student's files are not what its manifest says.
    """
    students = {}
    for recipe, version in versions.items():
        workspace.check_files(version.asset, version.version)
        students[recipe] = Student.load(workspace.version_folder(version.asset, version.version))
    return students


def ask_student(
    done: Progress, workspace: Workspace, student: Student, version: Version, held: HeldOut, parents: Mapping[str, str]
) -> None:
    """Texts and size of a student."""
    options, recipe = workspace.settings.evaluation, student.recipe
    generate = partial(student.generate, **options.sampling)
    samples = measure.student_samples(recipe, generate, student.space, student.commanded, held, options)
    logger.info("%d texts of %d tokens", len(samples), samples.tokens.sum())
    done.samples.append(samples)
    done.sizes[recipe] = size(workspace.version_folder(version.asset, version.version), student.parameters)
    dataset_version = version.parents.get(dataset.ASSET, "unknown")
    trained_on = f"trained on dataset {dataset_version}"
    if dataset_version != parents[dataset.ASSET]:
        trained_on += f", which is not the current one ({parents[dataset.ASSET]})"
    space = student.space
    drawn = f"idea guidance {space.idea_guidance:g}; {trained_on}"
    if student.commanded:
        best = ", ".join(f"{task} {quality}, guidance {space.guidance[task]:g}" for task, quality in space.best.items())
        how = f"commanded its best quality ({best}), no length; {drawn}"
        done.systems.append(System(recipe, f"{recipe}, best quality", "student", how))
        done.systems.append(System(f"{recipe}_uncommanded", f"{recipe}, uncommanded", "student", f"given the task alone; {drawn}"))
    else:
        done.systems.append(System(recipe, recipe, "student", f"given the task alone; {drawn}"))


def ask_promoted(done: Progress, workspace: Workspace, recipe: str, version: Version, held: HeldOut) -> None:
    """Texts of the student in use, for the comparison alone; one that cannot be loaded is not measured."""
    key, options = gate.key_of(recipe), workspace.settings.evaluation
    label = f"{recipe}, in use ({version.version[:8]})"
    how = f"{version.asset} {version.version}, which is in use, asked as its newest fellow is"
    try:
        student = load_students(workspace, {recipe: version})[recipe]
    except UdrlError as error:
        logger.warning("%s %s is not measured: %s", version.asset, version.version, error)
        done.systems.append(System(key, label, "student", how, " ".join(str(error).split()), error.what))
        return
    generate = partial(student.generate, **options.sampling)
    done.samples.append(measure.student_samples(key, generate, student.space, student.commanded, held, options, calibrated=False))
    done.systems.append(System(key, label, "student", how))


def ask_comparator(done: Progress, comparator: LlmComparator, held: HeldOut, timed: pd.DataFrame, workspace: Workspace) -> None:
    """Texts, size and, where it runs through transformers, times of a comparator; one that cannot be had is not measured."""
    settings, key = workspace.settings, comparator.name
    done.not_timed[key] = "only a comparator that runs through the transformers engine is timed"
    how = "the teacher's very chats, once each"
    try:
        engine = open_engine(settings, comparator.model, comparator.engine, comparator.server)
        try:
            samples, refused = measure.comparator_samples(comparator, engine, workspace.tasks, held, settings.teacher)
            if isinstance(engine, TransformersEngine):
                done.latencies[key] = _time_chats(engine, timed, workspace, settings.teacher.examples)
        finally:
            engine.close()
        if comparator.engine != "server":
            folder = resolve(comparator.model, settings).folder
            done.sizes[key] = size(folder, count_parameters(folder))
    except UdrlError as error:
        logger.warning("%s is not measured: %s", key, error)
        reason = " ".join(str(error).split())
        done.systems.append(System(key, key, "comparator", how, reason, f"it cannot be had here: {error.what}"))
        return
    done.samples.append(samples)
    done.systems.append(System(key, key, "comparator", how + (f"; it refused {refused}" if refused else "")))


def count_parameters(folder: Path) -> int:
    """The number of weights in a folder's safetensors files, read from their headers."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            total += sum(int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys())  # noqa: SIM118
    return total


def load_teacher(settings: Settings) -> TransformersEngine | str:
    """The teacher in transformers, for the second judge and the times; or why it cannot be had here."""
    if settings.teacher.engine == "server":
        return "the teacher is behind an endpoint, its weights are not here"
    try:
        return TransformersEngine(resolve(settings.teacher.model, settings).folder, settings.teacher)
    except UdrlError as error:
        return " ".join(str(error).split())


def judge(samples: pd.DataFrame, teacher: TransformersEngine | str, rows_per_task: int) -> pd.DataFrame:
    """Add `information` and `retrieval` to the first `rows_per_task` intents of each system and task of the comparison."""
    if isinstance(teacher, str):
        logger.warning("the second judge is not measured: %s", teacher)
        return samples.assign(information=np.nan, retrieval=np.nan)
    judged = samples[samples.part == "compare"].groupby(["system", "task"], sort=False).head(rows_per_task)
    pairs = judged[["intent", "text"]].drop_duplicates(ignore_index=True)
    judge = TeacherJudge(teacher.model, teacher.tokenizer)
    pairs["information"] = judge.information(pairs.intent.tolist(), pairs.text.tolist()).round(4)
    pairs["retrieval"] = judge.reciprocal_ranks(pairs.intent.tolist(), pairs.text.tolist(), samples.intent.unique().tolist()).round(4)
    informed = judged[["system", "task", "intent", "text"]].merge(pairs, on=["intent", "text"]).assign(part="compare")
    return samples.merge(informed, on=["system", "part", "task", "intent", "text"], how="left", validate="many_to_one")


def judge_by_rubric(done: Progress, samples: pd.DataFrame, workspace: Workspace) -> pd.DataFrame:
    """Add `preferred`: how the judge of params.yaml finds a text beside the teacher's, on the intents that `judge` takes too."""
    options = workspace.settings.evaluation
    if options.rubric_judge is None:
        return samples.assign(preferred=np.nan)
    chosen = samples[samples.part == "compare"].groupby(["system", "task"], sort=False).head(options.judge_rows)
    teacher = chosen[chosen.system == "teacher"].set_index(["task", "intent_key"]).text.rename("teacher_text")
    others = chosen[~chosen.system.isin(["teacher", "teacher_kept"])].join(teacher, on=["task", "intent_key"], how="inner")
    pairs = others[["task", "intent", "intent_key", "text", "teacher_text"]].drop_duplicates(ignore_index=True)
    named = options.rubric_judge
    done.rubric = {"judge": named.name}
    try:
        engine = open_engine(workspace.settings, named.model, named.engine, named.server)
        try:
            pairs["preferred"], tally = rubric.compare(pairs, workspace.tasks, engine)
        finally:
            engine.close()
    except UdrlError as error:
        logger.warning("the rubric judge %s is not measured: %s", named.name, error)
        done.rubric["not_measured"] = " ".join(str(error).split())
        return samples.assign(preferred=np.nan)
    done.rubric |= tally
    found = others[["system", "task", "intent_key", "text"]].merge(pairs, on=["task", "intent_key", "text"]).assign(part="compare")
    columns = ["system", "part", "task", "intent_key", "preferred"]
    return samples.merge(found[columns], on=columns[:-1], how="left", validate="many_to_one")


def timed_rows(held: HeldOut, count: int) -> pd.DataFrame:
    """The held-out rows that are timed: the tasks in turn."""
    turn = held.rows.assign(turn=held.rows.groupby("task").cumcount())
    return turn.sort_values(["turn", "task"], ignore_index=True).head(count)


def time_student(student: Student, rows: pd.DataFrame, settings: Settings) -> Latency:
    """A student's times, with its own guidance, and at its best quality if it is commanded."""
    space, requests = student.space, []
    for row in rows.itertuples():
        command = Command(row.task, row.intent, quality=space.best[row.task] if student.commanded else None)
        beside = variants([command], [Guidance(quality=space.guidance[row.task], idea=space.idea_guidance)])
        requests.append([space.render(c) for c in (command, *(c for variant in beside for c in variant.commands))])
    return _time(student.model, student.tokenizer, requests, settings)


def time_teacher(done: Progress, teacher: TransformersEngine | str, rows: pd.DataFrame, workspace: Workspace) -> None:
    """The teacher's size, and its times with and without example pairs."""
    if isinstance(teacher, str):
        done.not_timed["teacher"] = teacher
        return
    examples = workspace.settings.teacher.examples
    done.latencies["teacher"] = _time_chats(teacher, rows, workspace, examples)
    if examples:
        done.latencies["teacher_without_examples"] = _time_chats(teacher, rows, workspace, 0)
    folder = resolve(workspace.settings.teacher.model, workspace.settings).folder
    done.sizes["teacher"] = size(folder, count_parameters(folder))


def _time_chats(engine: TransformersEngine, rows: pd.DataFrame, workspace: Workspace, examples: int) -> Latency:
    prompts = []
    for row in rows.itertuples():
        task = workspace.tasks[str(row.task)]
        drawn = task.drawn_examples(int(row.asked_words), examples, str(row.intent_key), 0) if examples else []
        chat = task.messages(str(row.intent), int(row.asked_words), drawn)
        prompts.append(engine.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return _time(engine.model, engine.tokenizer, [[prompt] for prompt in prompts], workspace.settings)


def _time(model: Any, tokenizer: Any, requests: Sequence[Sequence[str]], settings: Settings) -> Latency:
    options = settings.evaluation
    return time_requests(model, tokenizer, requests, new_tokens=options.latency_tokens, batch_rows=options.latency_batch)
