"""The `promotion` asset: which student of each recipe is in use, as the gate and the users have decided.

The newest student of a recipe takes the place of the one in use if the report says that it is not worse (evaluation/gate.py); else
it stays a candidate. A user's word counts for more: `promote` and `rollback` stand until there is a newer student. Every decision
is an entry of the ledger (store/promotions.py). A version of the asset is named by what is in use.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udrl_pipeline.errors import CorruptArtifact, StudentError
from udrl_pipeline.evaluation import gate, report
from udrl_pipeline.store import promotions
from udrl_pipeline.store.names import STUDENTS, is_student
from udrl_pipeline.store.promotions import Action, Promotion, State
from udrl_pipeline.store.workspace import Version, Workspace, in_role
from udrl_pipeline.student.channel import promoted, unusable
from udrl_pipeline.versioning import code_version, content_hash

logger = logging.getLogger(__name__)

ASSET = "promotion"
FILE = "in_use.json"
SOURCES = ("promotion.py", "evaluation/gate.py", "student/channel.py", "store/promotions.py")


@dataclass(frozen=True)
class Decision:
    """What the gate says of a student that it has not judged before."""

    student: Version
    action: Action
    report: str
    reason: str
    figures: dict[str, Any]


def build(workspace: Workspace) -> Version:
    """Decide about every student that the current report is about, or find that everything is decided.

    Raises:
        UdrlError: There is no report yet.
        CorruptArtifact: The report's files are not what its manifest says.
    """
    options, code = workspace.settings.promotion, code_version(SOURCES)
    parents = workspace.parents(report.ASSET)
    with workspace.lock(ASSET):
        entries = workspace.promotions()
        decisions = list(decide(workspace, entries))
        in_use = promotions.in_use(entries) | {d.student.asset: d.student.version for d in decisions if d.action == "promoted"}
        parents |= in_use
        params = options.model_dump(mode="json")
        fingerprint = workspace.fingerprint(ASSET, code, params, parents)
        if made := workspace.reuse(ASSET, fingerprint):
            return made
        for decision in decisions:
            _enter(workspace, decision, promotions.in_use(workspace.promotions()))
        entries = workspace.promotions()
        return workspace.record(
            ASSET,
            version=content_of(in_use),
            fingerprint=fingerprint,
            code_version=code,
            rows=len(in_use),
            params=params,
            parents=parents,
            facts={"in_use": in_use, "promoted": sum(d.action == "promoted" for d in decisions), "refused": len(refused(workspace)),
                   "entries": entries[-1].number if entries else 0},
            write=lambda folder: _write(folder, in_use),
        )  # fmt: skip


def content_of(in_use: dict[str, str]) -> str:
    """The version of the asset in which these students are in use."""
    return content_hash(in_use)


def _write(folder: Path, in_use: dict[str, str]) -> None:
    (folder / FILE).write_text(json.dumps(in_use, indent=1), encoding="utf-8")


def decide(workspace: Workspace, entries: list[Promotion]) -> Iterator[Decision]:
    """What the gate says of the students of the current report, as far as it has a say and has not said the same before."""
    made = workspace.current(report.ASSET)
    students = report.current_students(workspace).values() if made else ()
    for student in students:
        of_asset = [entry for entry in entries if entry.asset == student.asset]
        if made and made.parents.get(student.asset) == student.version and not _is_settled(of_asset, student.version):
            decision = _judge(workspace, student, made)
            if decision and not any(_same(entry, decision) for entry in of_asset):
                yield decision


def _is_settled(entries: list[Promotion], newest: str) -> bool:
    """Whether the newest student of an asset is in use, or a user has decided when it was the newest already."""
    moved = [entry for entry in entries if entry.action != "refused"]
    if not moved:
        return False
    return moved[-1].in_use == newest or (moved[-1].decided_by == "user" and moved[-1].figures["newest"] == newest)


def _same(entry: Promotion, decision: Decision) -> bool:
    told = (decision.student.version, decision.action, decision.report, decision.figures)
    return decision.action == "refused" and (entry.version, entry.action, entry.report, entry.figures) == told


def _judge(workspace: Workspace, student: Version, made: Version) -> Decision | None:
    """The gate's decision; None where the report compares the student with another than the one in use."""
    current = promoted(workspace, student.asset)
    against = current.version if current else None

    def decision(action: Action, reason: str, **figures: Any) -> Decision:
        return Decision(student, action, made.version, reason, {"against": against, **figures})

    if fault := unusable(workspace, student):
        return decision("refused", fault)
    if current is None:
        return decision("promoted", "it is the first")
    if fault := unusable(workspace, current):
        return decision("promoted", f"of the one in use, {current.version}: {fault}")
    if missing := sorted(_tasks(current) - _tasks(student)):
        return decision("refused", f"it does not write {' and '.join(missing)}, which the student in use does")
    if made.parents.get(in_role(student.asset, gate.ROLE)) != against:
        return None
    metrics, options = _metrics(workspace, made), workspace.settings.promotion
    recipe = student.asset.removeprefix(STUDENTS)
    ratios = metrics["against"].get(recipe, {}).get(gate.key_of(recipe), {}).get("mean", {})
    verdict = gate.judge(ratios, options)
    reason = verdict.reason if ratios else metrics["promotion"][recipe]["reason"]
    return decision("promoted" if verdict.not_worse else "refused", reason, margin=options.margin, measures=verdict.measures)


def _tasks(student: Version) -> set[str]:
    return set(student.facts.get("covered_words", ()))


def _metrics(workspace: Workspace, made: Version) -> dict[str, Any]:
    workspace.check_files(made.asset, made.version)
    file = workspace.version_folder(made.asset, made.version) / "metrics.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _enter(workspace: Workspace, decision: Decision, in_use: dict[str, str]) -> None:
    asset, version = decision.student.asset, decision.student.version
    after = version if decision.action == "promoted" else in_use.get(asset)
    with workspace.database.writer() as connection:
        promotions.enter(
            connection, asset, version, decision.action, by="gate", in_use=after, report=decision.report, reason=decision.reason,
            figures=decision.figures, run_id=workspace.run_id,
        )  # fmt: skip
    if decision.action == "promoted":
        logger.info("%s %s is in use from now on: %s", asset, version, decision.reason)
    else:
        logger.warning("%s %s stays a candidate: %s", asset, version, decision.reason)


def refused(workspace: Workspace) -> dict[str, Promotion]:
    """The newest students that are not in use because they were refused, by asset, each with its refusal."""
    last = {entry.asset: entry for entry in workspace.promotions()}
    newest = {asset: workspace.current(asset) for asset in last}
    return {
        asset: entry
        for asset, entry in last.items()
        if entry.action == "refused" and (found := newest[asset]) and found.version == entry.version != entry.in_use
    }


# -- a user's word ------------------------------------------------------------------------------------------------------------


def promote(workspace: Workspace, student: Version, reason: str) -> Promotion:
    """Put a student into use, whatever the gate says of it.

    Raises:
        StudentError: It is no student, is in use already, or cannot be used any more.
        StoreLocked: The gate is at work.
    """
    where = "udrl students promote"
    if not is_student(student.asset):
        raise StudentError(f"{student.asset} {student.version} is no student", where=where, remedy="`udrl students list` names them")
    if student.verdict != "PASS":
        raise StudentError(f"{student.asset} {student.version} did not pass its checks", where=where, remedy="name another")
    return _say(workspace, student, "promoted", student, reason, where)


def rollback(workspace: Workspace, recipe: str, reason: str) -> Promotion:
    """Put the student back into use that was in use before the one that is.

    Raises:
        StudentError: There was none before, or it cannot be used any more.
        StoreLocked: The gate is at work.
    """
    where, asset = "udrl students rollback", f"{STUDENTS}{recipe}"
    back = promotions.ways_back([entry for entry in workspace.promotions() if entry.asset == asset])
    found = [version for name in back[-2:] if (version := workspace.find(asset, name))]
    if len(found) < 2:
        what = f"no student of recipe {recipe} was in use before the one that is" if back else f"no student of recipe {recipe} is in use"
        raise StudentError(what, where=where, remedy="`udrl students promote VERSION` puts any student into use")
    return _say(workspace, found[1], "rolled back", found[0], reason, where)


def _say(workspace: Workspace, about: Version, action: Action, after: Version, reason: str, where: str) -> Promotion:
    if fault := unusable(workspace, after):
        raise StudentError(
            f"{after.asset} {after.version} cannot be used: {fault}", where=where, remedy="`udrl students promote VERSION` with another"
        )
    workspace.check_files(after.asset, after.version)
    with workspace.lock(ASSET):
        current, newest = promoted(workspace, after.asset), workspace.current(after.asset)
        if current and current.version == after.version:
            raise StudentError(f"{after.asset} {after.version} is in use already", where=where, remedy="`udrl students list` shows all")
        workspace.begin_run()
        with workspace.database.writer() as connection:
            return promotions.enter(
                connection, about.asset, about.version, action, by="user", in_use=after.version, report=None, reason=reason,
                figures={"newest": newest.version if newest else None, "against": current.version if current else None},
                run_id=workspace.run_id,
            )  # fmt: skip


# -- what there is ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """A student and how it stands.

    Attributes:
        since: The decision that says so; None of a candidate.
        unusable: Why it can be used no more; empty where it can.
        reward, relevance: Its means over the held-out intents, of its newest report; None where there is none.
    """

    student: Version
    state: State
    since: Promotion | None
    unusable: str
    report: str | None
    reward: float | None
    relevance: float | None

    @property
    def why(self) -> str:
        entry = self.since
        if entry is None:
            told = "not judged yet"
        elif self.state == "former" and entry.version != self.student.version:
            told = f"{entry.in_use} took its place: {entry.reason}"
        elif entry.decided_by == "gate":
            told = entry.reason
        else:
            done = "put back into use" if entry.in_use == self.student.version and entry.action == "rolled back" else entry.action
            told = f"{done} by a user: {entry.reason}"
        return f"{told}; {self.unusable}" if self.unusable else told

    def as_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.student.asset.removeprefix(STUDENTS), "asset": self.student.asset, "version": self.student.version,
            "created_at": self.student.created_at.isoformat(), "made_from": self.student.parents, "state": self.state,
            "since": self.since.created_at.isoformat() if self.since else None, "by": self.since.decided_by if self.since else None,
            "why": self.why, "unusable": self.unusable, "report": self.report, "reward": self.reward, "relevance": self.relevance,
        }  # fmt: skip


def standings(workspace: Workspace, recipe: str | None = None, latest: bool = False) -> list[Standing]:
    """Every student, the newest of each recipe first.

    Args:
        recipe: Of this recipe alone.
        latest: Only those in use and the newest of each recipe.

    Raises:
        StudentError: There is none of that recipe.
    """
    ledger = [made for made in workspace.ledger() if made.verdict == "PASS"]
    students: dict[tuple[str, str], Version] = {}
    for made in reversed(ledger):
        if is_student(made.asset):
            students.setdefault((made.asset, made.version), made)
    wanted = [student for student in students.values() if recipe in (None, student.asset.removeprefix(STUDENTS))]
    if recipe and not wanted:
        known = ", ".join(sorted({asset.removeprefix(STUDENTS) for asset, _ in students})) or "none"
        remedy = f"recipes with students: {known}"
        raise StudentError(f"there is no student of recipe {recipe!r}", where="udrl students list", remedy=remedy)
    reports = {
        (name, version): made.version for made in ledger if made.asset == report.ASSET for name, version in made.parents.items()
    }  # the newest of each, for the ledger is in its order; names with a role stand for another student
    decided, metrics = promotions.states(workspace.promotions()), _Metrics(workspace)
    found: list[Standing] = []
    for student in sorted(wanted, key=lambda s: (s.asset != f"{STUDENTS}udrl", s.asset)):
        key = (student.asset, student.version)
        newest = not found or found[-1].student.asset != student.asset
        undecided: tuple[State, Promotion | None] = ("candidate", None)
        state, since = decided.get(key, undecided)
        if latest and not newest and state != "current":
            continue
        means = metrics.means(reports.get(key), student.asset.removeprefix(STUDENTS))
        found.append(
            Standing(student, state, since, unusable(workspace, student), reports.get(key), means.get("reward"), means.get("relevance"))
        )
    return found


class _Metrics:
    """The figures of reports, each read once."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._read: dict[str, Any] = {}

    def means(self, version: str | None, recipe: str) -> dict[str, float]:
        """The mean of each measure of a recipe's student; empty where the report is gone.

        Raises:
            CorruptArtifact: The report's figures cannot be read.
        """
        if version is None:
            return {}
        if version not in self._read:
            self._read[version] = self._figures(self._workspace.version_folder(report.ASSET, version) / "metrics.json")
        figures = self._read[version].get("systems", {}).get(recipe, {}).get("figures", {}).get("mean", {})
        return {name: figure["value"] for name, figure in figures.items()}

    @staticmethod
    def _figures(file: Path) -> Any:
        if not file.exists():
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CorruptArtifact(
                f"is not valid JSON ({error})", where=str(file), remedy="`udrl audit verify` names what was changed"
            ) from error
