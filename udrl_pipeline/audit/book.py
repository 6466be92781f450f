"""The whole ledger in memory, for questions that go from version to version. It is small: a row a making, not a row a text."""

from collections.abc import Iterator
from functools import cached_property

from udrl_pipeline.store.workspace import Version, Workspace

Key = tuple[str, str]


class Book:
    """Every version of the ledger by (asset, version), in the order in which they were first made, each as it was last made."""

    def __init__(self, workspace: Workspace) -> None:
        self.makings = workspace.ledger()
        self.versions: dict[Key, Version] = {}
        for made in self.makings:
            self.versions[made.asset, made.version] = made

    def place(self, version: Version) -> int:
        """Where in the ledger a version was last made, from 0."""
        return self._places[version.asset, version.version]

    @cached_property
    def _places(self) -> dict[Key, int]:
        return {(made.asset, made.version): place for place, made in enumerate(self.makings)}

    @cached_property
    def current(self) -> dict[str, Version]:
        """The newest version of each asset that passed its checks."""
        return {made.asset: made for made in self.makings if made.verdict == "PASS"}

    def is_current(self, version: Version) -> bool:
        return key_of(self.current.get(version.asset)) == key_of(version)

    def parents(self, version: Version) -> list[Version]:
        """What a version was made from, as far as the ledger knows it."""
        return [self.versions[key] for key in version.made_from if key in self.versions]

    def children(self, version: Version) -> list[Version]:
        """What was made directly from a version, in any of its makings; the oldest first."""
        return [self.versions[key] for key in self._children.get((version.asset, version.version), {})]

    def ancestors(self, version: Version) -> list[Version]:
        """What a version was made from, in whatever generation; each once, in the order of the ledger."""
        seen: set[Key] = set()
        waiting = self.parents(version)
        while waiting:
            found = waiting.pop()
            if (key := (found.asset, found.version)) not in seen:
                seen.add(key)
                waiting += self.parents(found)
        return [self.versions[key] for key in self.versions if key in seen]

    def descendants(self, version: Version) -> Iterator[Version]:
        """What was made from a version, in whatever generation; each once, a version after one that it was made from."""
        seen: set[Key] = set()
        waiting = self.children(version)
        while waiting:
            found = waiting.pop(0)
            if (key := (found.asset, found.version)) not in seen:
                seen.add(key)
                yield found
                waiting += self.children(found)

    @cached_property
    def _children(self) -> dict[Key, dict[Key, None]]:
        children: dict[Key, dict[Key, None]] = {}
        for made in self.makings:
            for parent in made.made_from:
                children.setdefault(parent, {})[made.asset, made.version] = None
        return children


def key_of(version: Version | None) -> Key | None:
    return (version.asset, version.version) if version else None
