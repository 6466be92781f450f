"""From a version up to the teacher's weights and the files of ideas, and down to the reports; from a row to all that it touched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from udrl_pipeline import corpus, dataset, exploration
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.workspace import Version, Workspace


@dataclass(frozen=True)
class Node:
    """A version, and those that it was made from (upwards) or that were made from it (downwards)."""

    version: Version
    next: list["Node"] = field(default_factory=list)

    def walk(self, depth: int = 0, seen: set[tuple[str, str]] | None = None) -> Iterator[tuple[int, Version, bool]]:
        """The version and all behind it: (depth, version, whether it stood before); what stood before is not followed again.

        Args:
            seen: What stood before, if anything did; grows.
        """
        seen = set() if seen is None else seen
        left = [(depth, self)]
        while left:
            depth, node = left.pop()
            key = (node.version.asset, node.version.version)
            yield depth, node.version, key in seen
            if key not in seen:
                seen.add(key)
                left += [(depth + 1, following) for following in reversed(node.next)]

    def as_dict(self, seen: set[tuple[str, str]] | None = None) -> dict[str, Any]:
        """The tree as JSON can hold it; what stands in it already has no `next`, as it would be the same."""
        seen = set() if seen is None else seen
        version = self.version
        again = (version.asset, version.version) in seen
        seen.add((version.asset, version.version))
        return {
            "asset": version.asset,
            "version": version.version,
            "rows": version.rows,
            "created_at": version.created_at.isoformat(),
            "run_id": version.run_id,
            "code_version": version.code_version,
            "origin": origin(version),
            **({} if again else {"next": [node.as_dict(seen) for node in self.next]}),
        }


def upwards(workspace: Workspace, version: Version) -> Node:
    """The version and everything that it was made from."""
    return _follow(version, lambda v: [found for parent in v.parents.items() if (found := workspace.find(*parent))])


def downwards(workspace: Workspace, version: Version) -> Node:
    """The version and everything that was made from it."""
    return _follow(version, lambda v: children(workspace, v))


def children(workspace: Workspace, version: Version) -> list[Version]:
    """What was made directly from a version, the oldest first."""
    with workspace.database.reader() as connection:
        found = connection.execute(
            "SELECT asset, version FROM parents WHERE parent_asset = ? AND parent_version = ? GROUP BY ALL ORDER BY min(rowid)",
            [version.asset, version.version],
        ).fetchall()
    return [made for key in found if (made := workspace.find(*key))]


def _follow(version: Version, step: Callable[[Version], list[Version]]) -> Node:
    """The version with what is behind it. However many ways lead to a version, it is one node."""
    first = Node(version)
    nodes, left = {(version.asset, version.version): first}, [first]
    while left:
        node = left.pop()
        for found in step(node.version):
            key = (found.asset, found.version)
            if key not in nodes:
                nodes[key] = Node(found)
                left.append(nodes[key])
            node.next.append(nodes[key])
    return first


def origin(version: Version) -> dict[str, Any]:
    """What a version took from outside of the ledger: ideas and the teacher."""
    if version.asset == "intents":
        return {"built-in ideas": version.params["builtin"], "files": version.params["sources"]}
    if version.asset == corpus.ASSET:
        return {"teacher": version.params["source"], "templates": version.params["templates"]}
    return {}


@dataclass(frozen=True)
class RowTrace:
    """Where a row came from, and what it touched.

    Attributes:
        row: The row as it was written: text, source, template, sampling, engine, run, time.
        places: Versions that hold it, or have set it aside: asset, version, and split, reward and quality, or the reason.
        touched: What was made from the datasets and pools that hold it, in whatever generation.
    """

    row: dict[str, Any]
    places: list[dict[str, Any]]
    touched: list[Version]


def trace_row(workspace: Workspace, key: str) -> RowTrace:
    """Follow one row.

    Raises:
        UdrlError: The store holds no row of this key.
    """
    found = corpus.find_rows(workspace, [key])
    if found.empty:
        raise UdrlError(
            f"there is no row {key!r}", where=str(workspace.database.path), remedy="row keys stand in the versions' rows.parquet"
        )
    places = list(_places(workspace, key))
    touched: dict[tuple[str, str], Version] = {}
    for place in places:
        version = workspace.find(place["asset"], place["version"])
        if version and version.asset != corpus.ASSET and "set aside" not in place:  # a student learns from datasets, not from the corpus
            for _, made, _ in list(downwards(workspace, version).walk())[1:]:
                touched[made.asset, made.version] = made
    return RowTrace({name: _plain(value) for name, value in found.iloc[0].items()}, places, list(touched.values()))


def _places(workspace: Workspace, key: str) -> Iterator[dict[str, Any]]:
    with workspace.database.reader() as connection:
        versions = connection.execute(
            "SELECT asset, version FROM versions WHERE list_contains(?, asset) AND verdict = 'PASS' GROUP BY ALL ORDER BY min(rowid)",
            [[corpus.ASSET, dataset.ASSET, exploration.ASSET]],
        ).fetchall()
        aside = connection.execute("SELECT asset, version, reason FROM quarantine WHERE item = ? ORDER BY rowid", [key]).fetchall()
        for asset, version in versions:
            file = workspace.version_folder(asset, version) / "rows.parquet"
            columns = ["split", "reward", "quality"] if asset != corpus.ASSET else ["asked_words"]
            if file.exists():
                rows = connection.execute(
                    f"SELECT {', '.join(columns)} FROM read_parquet(?) WHERE row_key = ?", [str(file), key]
                ).fetchall()
                yield from ({"asset": asset, "version": version, **dict(zip(columns, row, strict=True))} for row in rows)
        yield from ({"asset": asset, "version": version, "set aside": reason} for asset, version, reason in aside)


def _plain(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return value.item() if hasattr(value, "item") else value
