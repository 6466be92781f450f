"""How the pipeline stands: what is current, stale, running, failed, set aside and in use. Reads only, and waits for no run."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from udrl_pipeline.audit import quarantine
from udrl_pipeline.audit.pending import outlook
from udrl_pipeline.errors import StoreLocked
from udrl_pipeline.promotion import Standing, standings
from udrl_pipeline.steps import BUILDS, DEFAULT
from udrl_pipeline.store.workspace import Version, Workspace

#: How long a writer of the ledger is waited for; a transaction takes far less.
WAIT_S = 1.0


@dataclass(frozen=True)
class Running:
    """A run that is going on, or waits in a queue; `asset` is what it makes just now, where that is known."""

    run_id: str
    asset: str
    since: datetime | None
    state: Literal["running", "queued"] = "running"
    process: int | None = None


@dataclass(frozen=True)
class Failed:
    """Something that failed and was not made since."""

    asset: str
    at: datetime | None
    cause: str
    message: str
    run_id: str


@dataclass(frozen=True)
class Standard:
    """An asset: its current version (None: none yet), the verdict on its newest one, and why a run would make it anew."""

    asset: str
    current: Version | None
    verdict: str
    stale: str

    def as_dict(self) -> dict[str, Any]:
        made = self.current
        return {
            "asset": self.asset, "version": made.version if made else None, "created_at": made.created_at.isoformat() if made else None,
            "rows": made.rows if made else None, "verdict": self.verdict, "stale": self.stale or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Status:
    """The answer.

    Attributes:
        locked: Why the ledger could not be read just now; then only `running` and `failed` are told.
        quarantined: (asset, reason) -> rows that its newest version does without.
        students: Those that are in use, and the newest of each recipe.
    """

    at: datetime
    running: list[Running]
    failed: list[Failed]
    assets: list[Standard] = field(default_factory=list)
    quarantined: dict[tuple[str, str], int] = field(default_factory=dict)
    students: list[Standing] = field(default_factory=list)
    locked: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "at": self.at.isoformat(),
            "locked": self.locked or None,
            "assets": [standard.as_dict() for standard in self.assets],
            "running": [
                {"run_id": r.run_id, "asset": r.asset, "state": r.state, "since": r.since and r.since.isoformat(), "process": r.process}
                for r in self.running
            ],
            "failed": [
                {"asset": f.asset, "at": f.at and f.at.isoformat(), "cause": f.cause, "message": f.message, "run_id": f.run_id}
                for f in self.failed
            ],
            "quarantined": [{"asset": asset, "reason": reason, "rows": rows} for (asset, reason), rows in self.quarantined.items()],
            "students": [standing.as_dict() for standing in self.students],
        }


def status(workspace: Workspace, running: list[Running], failed: list[Failed]) -> Status:
    """How the pipeline stands.

    Args:
        running, failed: What a history of runs knows beyond the store.
    """
    workspace.database.wait_s = WAIT_S
    holders = workspace.holders()
    making = {holder.run_id: holder for holder in holders if holder.lives}
    running = [r if r.asset or r.run_id not in making else _of_holder(making[r.run_id]) for r in running]
    running += [_of_holder(holder) for run_id, holder in making.items() if run_id not in {r.run_id for r in running}]
    killed = [
        Failed(h.asset, h.since, "killed", "the process that made it was killed; the next run resumes", h.run_id)
        for h in holders
        if not h.lives
    ]
    failed = [*(f for f in failed if f.run_id not in {k.run_id for k in killed}), *killed]
    now = datetime.now(UTC)
    try:
        ledger = workspace.ledger()
        newest = {made.asset: made for made in ledger}
        current = {made.asset: made for made in ledger if made.verdict == "PASS"}
        shown = [asset for asset in BUILDS if asset in DEFAULT or asset in newest]
        stale = outlook(workspace, {asset: BUILDS[asset] for asset in shown})
        return Status(
            now, running, [*failed, *_failed_checks(workspace, newest, failed)],
            [Standard(a, current.get(a), newest[a].verdict if a in newest else "", stale.get(a, "")) for a in shown],
            dict(Counter((aside.asset, aside.row.reason) for aside in quarantine(workspace))),
            standings(workspace, latest=True),
        )  # fmt: skip
    except StoreLocked as error:
        return Status(now, running, failed, locked=error.what)


def _of_holder(holder: Any) -> Running:
    return Running(holder.run_id, holder.asset, holder.since, process=holder.process)


def _failed_checks(workspace: Workspace, newest: dict[str, Version], known: list[Failed]) -> list[Failed]:
    """The assets whose newest version did not pass, as far as no history has told of them."""
    told = {failure.asset for failure in known}
    found = []
    for asset, made in newest.items():
        if made.verdict == "FAIL" and asset not in told:
            broken = [e for e in workspace.expectations(asset, made.version) if e.blocking and not e.passed]
            message = ", ".join(f"{e.name} {e.observed}" for e in broken)
            found.append(Failed(asset, made.created_at, "check", message, made.run_id))
    return found
