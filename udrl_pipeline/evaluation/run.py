"""One evaluation: ask, score, judge, time, compare. Everything that the report shows, as numbers and texts."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline import exploration
from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.evaluation import calibration, gate, measure
from udrl_pipeline.evaluation.claims import Base, judge_claims
from udrl_pipeline.evaluation.figures import MEAN, Grid, SystemTexts, comparison, lay_out, system_figures
from udrl_pipeline.evaluation.headline import headline
from udrl_pipeline.evaluation.held_out import HeldOut, held_out
from udrl_pipeline.evaluation.latency import Latency, machine
from udrl_pipeline.evaluation.measure import System
from udrl_pipeline.evaluation.rounds import rounds
from udrl_pipeline.evaluation.statistics import Bootstrap, Interval, median, ratio_of_medians
from udrl_pipeline.evaluation.systems import (
    Progress,
    ask_comparator,
    ask_promoted,
    ask_student,
    judge,
    judge_by_rubric,
    load_students,
    load_teacher,
    teacher_name,
    teacher_systems,
    time_student,
    time_teacher,
    timed_rows,
)
from udrl_pipeline.rewards import Scorer
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.versioning import content_hash

logger = logging.getLogger(__name__)

#: The parts of the metrics that depend on the inputs alone; the others hold times and what follows from them.
REPEATABLE = ("intents", "against", "choice", "quality", "length", "agreement", "teacher_length", "sizes", "promotion")
NO_TEXTS = "it has no text on these intents"


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        samples: Every text with its scores (columns of `measure.COLUMNS`, then relevance to copied_run, information, retrieval, preferred).
        systems: All systems, also those that could not be measured.
        metrics: Every figure, as it stands in metrics.json.
        spaces: The command space of each student.
        losses: The loss curve of each student.
        main: The student that headline and claims are about.
        seconds: Per phase.
    """

    samples: pd.DataFrame
    systems: list[System]
    metrics: dict[str, Any]
    spaces: dict[str, CommandSpace]
    losses: dict[str, list[dict[str, float]]]
    main: str
    seconds: dict[str, float]

    def content(self) -> str:
        """The content hash of the texts and of every figure that is not a time."""
        figures = {key: system.get("figures") for key, system in self.metrics["systems"].items()}
        repeatable = {name: self.metrics[name] for name in REPEATABLE}
        return content_hash({"texts": measure.texts_hash(self.samples), "figures": figures, "metrics": repeatable})


def evaluate_students(
    workspace: Workspace, parents: dict[str, str], versions: Mapping[str, Version], in_use: Mapping[str, Version]
) -> Evaluation:
    """Evaluate every student beside the teacher and the comparators of params.yaml.

    Args:
        parents: The versions of the corpus and the dataset.
        versions: The newest students, by recipe.
        in_use: The students that some of them are to replace, by recipe.

    Raises:
        UdrlError: The teacher has no held-out answers, a parent is damaged, or a student cannot be loaded. A comparator or a
            judge that cannot be loaded is no error: it is shown as not measured, with the reason.
    """
    settings, options, done = workspace.settings, workspace.settings.evaluation, Progress()
    held = held_out(workspace, parents, options.intents)
    students = load_students(workspace, versions)
    main = next((recipe for recipe, student in students.items() if student.commanded), next(iter(students)))
    samples, vectors = _ask_and_score(done, workspace, parents, versions, in_use, students, held)
    with done.phase("statistics"):
        grid = Grid.of(held.rows)
        bootstrap = Bootstrap(len(grid.intents), options.bootstrap, options.seed)
        texts = lay_out(samples, grid, vectors)
        done.systems = [
            system if system.reason or system.key in texts else replace(system, reason=NO_TEXTS, short_reason=NO_TEXTS)
            for system in done.systems
        ]
        figures = {key: system_figures(of_system, grid, vectors, bootstrap) for key, of_system in texts.items()}
        compared = _compare(texts, grid, bootstrap, [comparator.name for comparator in options.comparators], main, in_use)
        metrics: dict[str, Any] = {
            "intents": {task: len(held.first(task, options.intents)) for task in grid.tasks},
            "systems": {system.key: _described(system, figures) for system in done.systems},
            "against": {
                key: {base: {scope: _as_dicts(found) for scope, found in scopes.items()} for base, scopes in bases.items()}
                for key, bases in compared.items()
            },
            "choice": {
                recipe: {
                    "best": student.space.best,
                    "guidance": student.space.guidance,
                    "idea_guidance": student.space.idea_guidance,
                    "sweep": versions[recipe].facts.get("sweep", {}),
                }
                for recipe, student in students.items()
                if student.commanded
            },
            "promotion": {recipe: _verdict(recipe, version, versions, compared, done, settings) for recipe, version in in_use.items()},
            "rounds": rounds(workspace, versions),
            "quality": _calibrate(samples, "quality", students, partial(calibration.quality, grid=grid, bootstrap=bootstrap)),
            "length": _calibrate(samples, "length", students, partial(calibration.length, grid=grid, bootstrap=bootstrap)),
            "agreement": calibration.agreement(samples),
            "rubric": done.rubric,
            "teacher_length": calibration.asked(held.all_rows),
            "sizes": done.sizes,
            "latency": {key: latency.as_dict() for key, latency in done.latencies.items()},
            "machine": machine(),
        }
        bases = _bases(done, compared.get(main, {}), main, settings)
        speed = _tokens_per_s(done.latencies[main], settings)
        claims = judge_claims(bases, int(done.sizes[main]["parameters"]), speed, str(metrics["machine"]))
        metrics["claims"] = {claim.key: claim.as_dict() for claim in claims}
        metrics["headline"] = headline(metrics, main)
    return Evaluation(
        samples=samples,
        systems=done.systems,
        metrics=metrics,
        spaces={recipe: student.space for recipe, student in students.items()},
        losses={recipe: _losses(workspace.version_folder(version.asset, version.version)) for recipe, version in versions.items()},
        main=main,
        seconds=done.seconds,
    )


def _ask_and_score(
    done: Progress,
    workspace: Workspace,
    parents: dict[str, str],
    versions: Mapping[str, Version],
    in_use: Mapping[str, Version],
    students: Mapping[str, Student],
    held: HeldOut,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Everything that needs a model: all texts with their scores, and the embeddings of those that systems are compared on."""
    settings = workspace.settings
    timed = timed_rows(held, settings.evaluation.latency_repeats)
    done.systems += teacher_systems(settings)
    done.samples.append(measure.teacher_samples(held))
    for recipe, student in students.items():
        with done.phase(f"texts of {recipe}"):
            ask_student(done, workspace, student, versions[recipe], held, parents)
    for recipe, version in in_use.items():
        with done.phase(f"texts of {recipe} in use"):
            ask_promoted(done, workspace, recipe, version, held)
    for comparator in settings.evaluation.comparators:
        with done.phase(f"texts of {comparator.name}"):
            ask_comparator(done, comparator, held, timed, workspace)
    with done.phase("scores"):
        scorer = Scorer(settings)
        samples = measure.score(pd.concat(done.samples, ignore_index=True), scorer, settings.rewards)
        vectors = measure.embed(samples, scorer)
    teacher = load_teacher(settings)
    with done.phase("second judge"):
        samples = judge(samples, teacher, settings.evaluation.judge_rows)
    with done.phase("rubric"):
        samples = judge_by_rubric(done, samples, workspace)
    with done.phase("latency"):
        for recipe, student in students.items():
            done.latencies[recipe] = time_student(student, timed, settings)
        time_teacher(done, teacher, timed, workspace)
    return samples, vectors


def _described(system: System, figures: Mapping[str, Any]) -> dict[str, Any]:
    found = {"not_measured": system.reason} if system.reason else {"figures": figures[system.key]}
    return {"label": system.label, "kind": system.kind, **found}


def _compare(
    texts: Mapping[str, SystemTexts], grid: Grid, bootstrap: Bootstrap, comparators: Sequence[str], main: str, in_use: Iterable[str]
) -> dict[str, dict[str, dict[str, dict[str, Interval]]]]:
    """Every student against the teacher, its kept rows and each comparator, and the main one against every other student too;
    a student of rounds against the main one, from which it came; a new student against the one in use; every comparator against
    the teacher."""
    given = ["teacher", "teacher_kept", *comparators]
    replaced = {recipe: gate.key_of(recipe) for recipe in in_use}
    students = [key for key in texts if key not in given and key not in replaced.values()]
    bases = {key: ["teacher"] if key in comparators else given for key in [*students, *comparators]}
    bases[main] = [*given, *(key for key in students if key != main)]
    for key in students:
        if key != main and key in RECIPES and RECIPES[key].data == exploration.ASSET:
            bases[key] = [*given, main]
    for recipe, key in replaced.items():
        bases[recipe] = [*bases[recipe], key]
    return {
        key: {base: comparison(texts[key], texts[base], grid, bootstrap) for base in bases[key] if base in texts and base != key}
        for key in texts
        if key in bases
    }


def _verdict(
    recipe: str,
    in_use: Version,
    versions: Mapping[str, Version],
    compared: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Interval]]]],
    done: Progress,
    settings: Settings,
) -> dict[str, Any]:
    """Whether the newest student of a recipe is worse than the one in use."""
    key = gate.key_of(recipe)
    ratios = compared.get(recipe, {}).get(key, {}).get(MEAN, {})
    verdict = gate.judge(_as_dicts(ratios), settings.promotion).as_dict()
    if reason := next((system.reason for system in done.systems if system.key == key), ""):
        verdict["reason"] = f"the student in use could not be measured: {reason}"
    return {"candidate": versions[recipe].version, "in_use": in_use.version, "margin": settings.promotion.margin, **verdict}


def _calibrate(
    samples: pd.DataFrame, part: str, students: Mapping[str, Student], calibrate: Callable[[pd.DataFrame], dict[str, Any]]
) -> dict[str, Any]:
    chosen = samples[samples.part == part]
    return {recipe: calibrate(chosen[chosen.system == recipe]) for recipe, student in students.items() if student.commanded}


def _bases(done: Progress, ratios: Mapping[str, Mapping[str, Mapping[str, Interval]]], main: str, settings: Settings) -> list[Base]:
    named = {"teacher": settings.teacher.model} | {comparator.name: comparator.model for comparator in settings.evaluation.comparators}
    bases = []
    for system in [s for s in done.systems if s.key in named]:
        timed = done.latencies.get(system.key)
        bases.append(
            Base(
                key=system.key,
                label=f"teacher ({teacher_name(settings)})" if system.key == "teacher" else system.label,
                names=f"{system.label} {named[system.key].ref} {named[system.key].file}",
                ratios=ratios.get(system.key, {}).get(MEAN, {}),
                reason=system.short_reason,
                parameters=int(done.sizes[system.key]["parameters"]) if system.key in done.sizes else None,
                faster=_faster(timed, done.latencies[main], settings) if timed else None,
                not_timed=done.not_timed.get(system.key, ""),
            )
        )
    return bases


def _faster(base: Latency, student: Latency, settings: Settings) -> Interval:
    options = settings.evaluation
    return ratio_of_medians(np.array(base.seconds), np.array(student.seconds), options.bootstrap, options.seed)


def _tokens_per_s(latency: Latency, settings: Settings) -> Interval:
    """Tokens per second of single requests: the new tokens over the median seconds, and so the interval the other way round."""
    seconds = median(np.array(latency.seconds), settings.evaluation.bootstrap, settings.evaluation.seed)
    return Interval(latency.new_tokens / seconds.value, latency.new_tokens / seconds.high, latency.new_tokens / seconds.low, seconds.n)


def _as_dicts(found: Mapping[str, Interval]) -> dict[str, dict[str, float | int]]:
    return {name: interval.as_dict() for name, interval in found.items()}


def _losses(folder: Path) -> list[dict[str, float]]:
    file = folder / "loss.json"
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []
