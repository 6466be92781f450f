"""Questions to the ledger: which versions there are, what was set aside, and whether anything is new."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.workspace import Quarantined, Version, Workspace
from udrl_pipeline.versioning import canonical


def versions(workspace: Workspace, asset: str | None = None) -> list[Version]:
    """Every version of an asset (default: of all), the newest first. One that was made again counts from then on.

    Raises:
        UdrlError: The asset has no version.
    """
    with workspace.database.reader() as connection:
        found = connection.execute(
            """SELECT asset, version FROM versions WHERE asset = ? OR ? IS NULL
               GROUP BY asset, version ORDER BY max(created_at) DESC, asset, version""",
            [asset, asset],
        ).fetchall()
        known = [name for (name,) in connection.execute("SELECT DISTINCT asset FROM versions ORDER BY asset").fetchall()]
    if asset and not found:
        raise UdrlError(
            f"no version of {asset!r}", where=str(workspace.folder), remedy=f"assets with versions: {', '.join(known) or 'none'}"
        )
    return [version for name, text in found if (version := workspace.find(name, text))]


@dataclass(frozen=True, slots=True)
class SetAside:
    """One row or line in quarantine, and the version that does without it."""

    asset: str
    version: str
    row: Quarantined


def quarantine(workspace: Workspace) -> list[SetAside]:
    """What the newest version of each asset does without, whether that version passed or not; sorted by asset, reason and item."""
    with workspace.database.reader() as connection:
        found = connection.execute(
            """WITH newest AS (
                   SELECT asset, version FROM versions
                   QUALIFY row_number() OVER (PARTITION BY asset ORDER BY created_at DESC, rowid DESC) = 1
               )
               SELECT asset, version, item, reason, detail, text FROM quarantine JOIN newest USING (asset, version)
               ORDER BY asset, reason, item"""
        ).fetchall()
    return [SetAside(asset, version, Quarantined(*row)) for asset, version, *row in found]


@dataclass(frozen=True, slots=True)
class News:
    """The first asset that a run would make anew, and why."""

    asset: str
    reason: str


def pending(workspace: Workspace, builds: Sequence[Callable[[Workspace], Version]]) -> News | None:
    """What a run of these builds, in their order, would make first; None if it would find everything made.

    The builds themselves answer: they run against a workspace that stops them where they would begin to work. Nothing is
    generated, trained or written.

    Raises:
        UdrlError: An input is broken, as it would be in the run.
    """
    rehearsal = _Rehearsal(workspace.settings, workspace.run_id)
    for build in builds:
        try:
            build(rehearsal)
        except _WouldWork as would:
            return would.news
    return None


class _WouldWork(Exception):
    def __init__(self, news: News) -> None:
        super().__init__(news.asset)
        self.news = news


class _Rehearsal(Workspace):
    """A workspace in which every build ends where it has found its version, or would have to make it."""

    @contextmanager
    def lock(self, asset: str, wait_s: float = 30.0) -> Iterator[None]:
        yield  # nothing is made, so nobody has to wait

    def fingerprint(self, asset: str, code_version: str, params: Any, parents: Mapping[str, str]) -> str:
        self._inputs = {"code_version": code_version, "params": params, "parents": dict(parents)}
        return super().fingerprint(asset, code_version, params, parents)

    def parents(self, *assets: str) -> dict[str, str]:
        for asset in assets:
            if self.current(asset) is None:
                raise _WouldWork(News(asset, "has no version yet"))
        return super().parents(*assets)

    def reuse(self, asset: str, fingerprint: str) -> Version:
        current = self.current(asset)
        if current is None:
            raise _WouldWork(News(asset, "has no version yet"))
        if current.fingerprint != fingerprint:
            raise _WouldWork(News(asset, self._difference(current)))
        if not (self.version_folder(asset, current.version) / "manifest.json").exists():
            raise _WouldWork(News(asset, f"the files of version {current.version} are gone"))
        return current

    def record(self, asset: str, **_: Any) -> Version:
        raise AssertionError(f"{asset}: a build recorded a version without asking for one that is there already")

    def _difference(self, current: Version) -> str:
        if current.code_version != self._inputs["code_version"]:
            return "its code has changed"
        parents = self._inputs["parents"]
        if changed := [name for name, version in parents.items() if current.parents.get(name) != version]:
            return f"{' and '.join(changed)} changed"
        if changed := sorted(_changed(current.params, self._inputs["params"])):
            return f"settings have changed: {', '.join(changed)}"
        return "its input has changed"


def _changed(before: Any, after: Any, name: str = "") -> Iterator[str]:
    """The dotted names of the settings that differ; `before` comes from the ledger's JSON."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() & after.keys():
            yield from _changed(before[key], after[key], f"{name}.{key}" if name else key)
    elif canonical(before) != canonical(after):
        yield name
