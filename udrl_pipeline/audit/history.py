"""Each version with the run that made it and what it was made differently from the one before it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.changes import Change, changed_settings
from udrl_pipeline.audit.losses import Losses, losses, lost_rows
from udrl_pipeline.store import promotions
from udrl_pipeline.store.names import is_student
from udrl_pipeline.store.promotions import Promotion, State
from udrl_pipeline.store.workspace import Version, Workspace


@dataclass(frozen=True)
class Entry:
    """A version in the history of its asset.

    Attributes:
        git_sha: The commit at which the run stood that last made it, or found it again; empty outside of git, or where the run is
            not in the ledger.
        git_dirty: Whether tracked files differed from that commit.
        first: The making that wrote its files, of which its manifest tells.
        first_git: The commit and whether files differed, of that making.
        before: The version of the asset that was made before it; None for the first.
        changes: Settings that differ from that version's, and `code` where its code does.
        state: How a student stands (current: in use); None of other assets.
        lost: What tombstones have taken out of versions since they were made.
    """

    version: Version
    current: bool
    git_sha: str
    git_dirty: bool
    first: Version
    first_git: tuple[str, bool]
    before: str | None
    changes: list[Change]
    state: State | None = None
    lost: Losses = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        v = self.version
        return {
            "asset": v.asset, "version": v.version, "created_at": v.created_at.isoformat(), "rows": v.rows, "verdict": v.verdict,
            "parents": v.parents, "run_id": v.run_id, "git_sha": self.git_sha, "git_dirty": self.git_dirty, "params": v.params,
            "first_made": {
                "run_id": self.first.run_id, "created_at": self.first.created_at.isoformat(),
                "git_sha": self.first_git[0], "git_dirty": self.first_git[1], "parents": self.first.parents,
            },
            "code_version": v.code_version, "facts": v.facts, "files": v.files, "current": self.current, "before": self.before,
            **({"state": self.state} if self.state else {}),
            **({"forgotten": lost_rows(v, self.lost)} if (v.asset, v.version) in self.lost else {}),
            "changes": [{"name": c.name, "before": c.before, "after": c.after} for c in self.changes],
        }  # fmt: skip


def history(workspace: Workspace, versions: list[Version], book: Book | None = None) -> list[Entry]:
    """The entries of versions, in their order. `book` is the ledger, where it was read already."""
    book, states = book or Book(workspace), promotions.states(workspace.promotions())
    lost = losses(book, workspace.tombstones())
    with workspace.database.reader() as connection:
        runs = {run: (sha, dirty) for run, sha, dirty in connection.execute("SELECT run_id, git_sha, git_dirty FROM runs").fetchall()}
    before: dict[tuple[str, str], Version] = {}
    last: dict[str, Version] = {}
    first: dict[tuple[str, str, str], Version] = {}
    for made in book.makings:
        first.setdefault((made.asset, made.version, made.manifest), made)
        if made.asset in last and last[made.asset].version != made.version:
            before[made.asset, made.version] = last[made.asset]
        last[made.asset] = made
    return [
        Entry(
            version, book.is_current(version), *runs.get(version.run_id, ("", False)),
            (wrote := first[version.asset, version.version, version.manifest]), runs.get(wrote.run_id, ("", False)),
            earlier.version if (earlier := before.get((version.asset, version.version))) else None,
            _changes(earlier, version) if earlier else [],
            state_of(version, states),
            lost,
        )
        for version in versions
    ]  # fmt: skip


def state_of(version: Version, states: Mapping[tuple[str, str], tuple[State, Promotion]]) -> State | None:
    """How a student stands; None of a version of another asset, or one that did not pass."""
    if not is_student(version.asset) or version.verdict != "PASS":
        return None
    return states[version.asset, version.version][0] if (version.asset, version.version) in states else "candidate"


def _changes(before: Version, after: Version) -> list[Change]:
    changed = list(changed_settings(before.params, after.params))
    if before.code_version != after.code_version:
        changed.append(Change("code", before.code_version, after.code_version))
    return changed
