"""The `evaluation_report` asset: every current student beside its teacher, as one HTML page and one file of metrics.

A version holds report.html (self-contained), metrics.json and samples.parquet (every text behind a figure, with its scores). Its
content hash counts the inputs, the texts and the figures; times and what follows from them are facts of it, not its identity.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from udrl_pipeline import corpus, dataset
from udrl_pipeline.errors import SettingsError, UdrlError
from udrl_pipeline.evaluation import gate
from udrl_pipeline.evaluation.metrics import METRICS
from udrl_pipeline.evaluation.page import render
from udrl_pipeline.evaluation.run import Evaluation, evaluate_students
from udrl_pipeline.store.names import REPORT, STUDENTS
from udrl_pipeline.store.workspace import Version, Workspace, in_role
from udrl_pipeline.student import recorded
from udrl_pipeline.student.channel import promoted, unusable
from udrl_pipeline.versioning import code_version, content_hash

logger = logging.getLogger(__name__)

ASSET = REPORT
SOURCES = (
    *(
        f"evaluation/{name}"
        for name in (
            "report.py", "run.py", "systems.py", "held_out.py", "measure.py", "figures.py", "calibration.py", "statistics.py",
            "gate.py", "judges.py", "rubric.py", "rounds.py", "latency.py", "claims.py", "headline.py", "plots.py", "page.py",
            "report.html.j2", "metrics/__init__.py",
        )
    ),
    *(f"evaluation/metrics/{name}.py" for name in METRICS),
    "rewards.py", "commands.py", "student/generation.py", "student/decoding.py", "student/lexicon.py",
)  # fmt: skip


def current_students(workspace: Workspace) -> dict[str, Version]:
    """The current version of every student that the ledger knows, by recipe.

    Raises:
        UdrlError: There is none yet.
    """
    with workspace.database.reader() as connection:
        found = connection.execute("SELECT DISTINCT asset FROM versions WHERE starts_with(asset, ?) ORDER BY asset", [STUDENTS]).fetchall()
    names = [asset for (asset,) in found if asset != recorded.ASSET]  # that one is a start, not a student of these rows
    students = {asset.removeprefix(STUDENTS): version for asset in names if (version := workspace.current(asset))}
    if not students:
        raise UdrlError("there is no student yet", where=str(workspace.folder), remedy="train one: `udrl run --select student/udrl`")
    return dict(sorted(students.items(), key=lambda item: (item[0] != "udrl", item[0])))


def build(workspace: Workspace) -> Version:
    """Evaluate the current students, or find that this very report is there already.

    Raises:
        UdrlError: There is no student, no dataset or no held-out answer of the teacher yet.
        SettingsError: A comparator takes the name of another system.
        CorruptArtifact: A parent's files are not what its manifest says.
    """
    started, settings = time.monotonic(), workspace.settings
    students = current_students(workspace)
    _check_names(students, [comparator.name for comparator in settings.evaluation.comparators])
    params: dict[str, Any] = {
        "evaluation": settings.evaluation.model_dump(mode="json"),
        "rewards": settings.rewards.model_dump(mode="json", exclude={"cluster"}),
        "teacher": settings.teacher.model_dump(
            mode="json", include={"model", "engine", "server", "temperature", "top_p", "repetition_penalty", "examples"}
        ),
    }
    code = code_version(SOURCES)
    newest = workspace.parents(dataset.ASSET, corpus.ASSET) | {version.asset: version.version for version in students.values()}

    def inputs(in_use: Mapping[str, Version]) -> tuple[dict[str, Any], dict[str, str]]:
        gated = {"promotion": settings.promotion.model_dump(mode="json")} if in_use else {}
        return params | gated, newest | {in_role(version.asset, gate.ROLE): version.version for version in in_use.values()}

    in_use = _in_use(workspace, students, lambda known: workspace.fingerprint(ASSET, code, *inputs(known)))
    params, parents = inputs(in_use)
    fingerprint = workspace.fingerprint(ASSET, code, params, parents)
    with workspace.lock(ASSET):
        if made := workspace.reuse(ASSET, fingerprint):
            return made
        evaluation = evaluate_students(workspace, parents, students, in_use)
        version = content_hash({"inputs": fingerprint, "content": evaluation.content()})
        html = render(workspace, evaluation, version=version, parents=parents, params=params, code=code)
        logger.info("report: %s", workspace.version_folder(ASSET, version) / "report.html")
        return workspace.record(
            ASSET,
            version=version,
            fingerprint=fingerprint,
            code_version=code,
            rows=len(evaluation.samples),
            params=params,
            parents=parents,
            facts=evaluation.metrics["headline"],
            write=lambda folder: _write(folder, evaluation, html),
            started=started,
            work={f"seconds/{phase}": seconds for phase, seconds in evaluation.seconds.items()},
        )


def _in_use(
    workspace: Workspace, students: Mapping[str, Version], fingerprint_of: Callable[[Mapping[str, Version]], str]
) -> dict[str, Version]:
    """The students in use that newer ones are to be compared with, by recipe.

    A student that has been promoted has taken the place of the one that its report compares it with. That report stays: it is
    looked for among those that compare all that is to be compared, and perhaps more.
    """
    found = {recipe: promoted(workspace, student.asset) for recipe, student in students.items()}
    due = {
        recipe: version
        for recipe, version in found.items()
        if version and version.version != students[recipe].version and not unusable(workspace, version)
    }
    for made in workspace.makings(ASSET):
        names = {recipe: made.parents.get(in_role(student.asset, gate.ROLE)) for recipe, student in students.items()}
        known = {recipe: version for recipe, name in names.items() if name and (version := workspace.find(students[recipe].asset, name))}
        if due.items() <= known.items() and made.fingerprint == fingerprint_of(known) and workspace.is_there(ASSET, made.version):
            return known
    return due


def _check_names(students: dict[str, Version], comparators: list[str]) -> None:
    taken = {*students, *(f"{recipe}_uncommanded" for recipe in students), *map(gate.key_of, students)}
    if wrong := sorted(taken.intersection(comparators)):
        raise SettingsError(
            f"the name {wrong[0]!r} is a student's", where="params.yaml: evaluation.comparators", remedy="give it another name"
        )


def _write(folder: Path, evaluation: Evaluation, html: str) -> None:
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(evaluation.metrics, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    evaluation.samples.to_parquet(folder / "samples.parquet", compression="zstd", index=False)
