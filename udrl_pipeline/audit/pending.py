"""Would a run make anything anew, and why?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from udrl_pipeline.audit.changes import changed_settings
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.versioning import canonical


@dataclass(frozen=True, slots=True)
class News:
    """The first asset that a run would make anew, and why."""

    asset: str
    reason: str
    #: what it comes from: missing | code | settings | parents | input
    kind: str = field(default="", compare=False)


def pending(workspace: Workspace, builds: Sequence[Callable[[Workspace], Version]]) -> News | None:
    """What a run of these builds, in their order, would make first; None if it would find everything made.

    The builds themselves answer: they run against a workspace that stops them where they would begin to work. Nothing is
    generated, trained or written.

    Raises:
        UdrlError: An input is broken, as it would be in the run.
    """
    return next(iter(all_news(workspace, builds)), None)


def all_news(workspace: Workspace, builds: Sequence[Callable[[Workspace], Version]]) -> Iterator[News]:
    """What is new at each of these builds, in their order. Below one that would make a new version the others answer for the
    versions that are there now; below one that has none nothing is told.

    Raises:
        UdrlError: An input is broken, as it would be in the run.
    """
    rehearsal = _Rehearsal(workspace)
    for build in builds:
        try:
            build(rehearsal)
        except _WouldWork as would:
            yield would.news
            if would.news.kind == "missing":
                return


def outlook(workspace: Workspace, builds: Mapping[str, Callable[[Workspace], Version]]) -> dict[str, str]:
    """Why a run would make each of these assets anew, or cannot; those that it would leave alone are not in it.

    Args:
        builds: By asset, in their order: an asset stands after those that it is made from.
    """
    rehearsal = _Rehearsal(workspace)
    found: dict[str, str] = {}
    for asset, build in builds.items():
        try:
            build(rehearsal)
        except _WouldWork as would:
            found[asset] = would.news.reason if would.news.asset == asset else f"{would.news.asset} {would.news.reason}"
        except UdrlError as error:
            waits = found and rehearsal.current(asset) is None
            found[asset] = "has no version yet" if waits else f"cannot be made: {error.what}"
        else:
            made = rehearsal.current(asset)
            parents = {parent for parent, _ in made.made_from} if made else set()
            if stale := [parent for parent in found if parent in parents]:
                found[asset] = f"{' and '.join(stale)} will have changed"
    return found


class _WouldWork(Exception):
    def __init__(self, news: News) -> None:
        super().__init__(news.asset)
        self.news = news


class _Rehearsal(Workspace):
    """A workspace in which every build ends where it has found its version, or would have to make it. What it has read once it
    reads no more."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace.settings, workspace.run_id)
        self.database = workspace.database
        self._known: dict[str, list[Version]] = {}

    @contextmanager
    def lock(self, asset: str, wait_s: float = 30.0) -> Iterator[None]:
        yield  # nothing is made, so nobody has to wait

    def drop_scratch(self, asset: str, name: str = "") -> None:
        """Leave it: without a lock, a run may be at work there."""

    def fingerprint(self, asset: str, code_version: str, params: Any, parents: Mapping[str, str]) -> str:
        self._inputs = {"code_version": code_version, "params": params, "parents": dict(parents)}
        return super().fingerprint(asset, code_version, params, parents)

    def parents(self, *assets: str) -> dict[str, str]:
        for asset in assets:
            if self.current(asset) is None:
                raise _WouldWork(News(asset, "has no version yet", "missing"))
        return super().parents(*assets)

    def reuse(self, asset: str, fingerprint: str) -> Version:
        current = self.current(asset)
        if current is None:
            raise _WouldWork(News(asset, "has no version yet", "missing"))
        if current.fingerprint != fingerprint:
            raise _WouldWork(self._difference(current))
        if not self.is_there(asset, current.version):
            raise _WouldWork(News(asset, f"the files of version {current.version} are gone", "missing"))
        return current

    def record(self, asset: str, **_: Any) -> Version:
        raise AssertionError(f"{asset}: a build recorded a version without asking for one that is there already")

    def _read(self, condition: str, values: list[Any]) -> list[Version]:
        question = canonical([condition, values])
        if question not in self._known:
            self._known[question] = super()._read(condition, values)
        return self._known[question]

    def _difference(self, current: Version) -> News:
        if current.code_version != self._inputs["code_version"]:
            return News(current.asset, "its code has changed", "code")
        parents = self._inputs["parents"]
        if changed := [name for name, version in parents.items() if current.parents.get(name) != version]:
            return News(current.asset, f"{' and '.join(changed)} changed", "parents")
        params = {name: value for name, value in self._inputs["params"].items() if name in current.params}  # the others are no settings
        if changed := [change.name for change in changed_settings(current.params, params)]:
            return News(current.asset, f"settings have changed: {', '.join(changed)}", "settings")
        return News(current.asset, "its input has changed", "input")
