"""From a version up to the teacher's weights and the files of ideas, and down to the reports; from a row to all that it touched."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from udrl_pipeline.audit.book import Book, Key
from udrl_pipeline.audit.impact import Touched, touched_by
from udrl_pipeline.audit.losses import Losses, lost_rows
from udrl_pipeline.audit.rows import as_written, set_aside, standing
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.names import CORPUS, DATASET, INTENTS, RECORDED_STUDENT
from udrl_pipeline.store.promotions import Promotion
from udrl_pipeline.store.tombstones import about
from udrl_pipeline.store.workspace import Version, Workspace

WHERE_KEYS_STAND = "row keys stand in the versions' rows.parquet"


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

    def as_dict(self, decided: Mapping[Key, Sequence[Promotion]] = {}, lost: Losses = {}, seen: set[Key] | None = None) -> dict[str, Any]:
        """The tree as JSON can hold it; what stands in it already has no `next`, as it would be the same.

        Args:
            decided: What was decided about students.
            lost: What tombstones have taken out of versions.
        """
        seen = set() if seen is None else seen
        version = self.version
        again = (version.asset, version.version) in seen
        seen.add((version.asset, version.version))
        return {
            "asset": version.asset,
            "version": version.version,
            "rows": version.rows,
            **({"forgotten": lost_rows(version, lost)} if (version.asset, version.version) in lost else {}),
            "created_at": version.created_at.isoformat(),
            "run_id": version.run_id,
            "code_version": version.code_version,
            "origin": origin(version),
            **({"decisions": [entry.as_dict() for entry in told]} if (told := decided.get((version.asset, version.version))) else {}),
            **({} if again else {"next": [node.as_dict(decided, lost, seen) for node in self.next]}),
        }


def upwards(book: Book, version: Version) -> Node:
    """The version and everything that it was made from."""
    return _follow(version, book.parents)


def downwards(book: Book, version: Version) -> Node:
    """The version and everything that was made from it."""
    return _follow(version, book.children)


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


def decisions(workspace: Workspace) -> dict[Key, list[Promotion]]:
    """What was decided about each student: by which it was refused, put into use or taken out of it."""
    found: dict[Key, list[Promotion]] = {}
    for entry in workspace.promotions():
        concerned = [entry.version] if entry.action == "refused" else [entry.version, entry.in_use, entry.figures["against"]]
        for version in dict.fromkeys(concerned):
            if version:
                found.setdefault((entry.asset, version), []).append(entry)
    return found


def origin(version: Version) -> dict[str, Any]:
    """What a version took from outside of the ledger: ideas, the teacher and the scorer."""
    if version.asset == INTENTS:
        return {"built-in ideas": version.params["builtin"], "files": version.facts.get("digests", version.params["sources"])}
    if version.asset == CORPUS:
        return {"teacher": version.params["source"], "templates": version.params["templates"]}
    if version.asset == DATASET and "scorer" in version.params:
        return {"scorer": version.params["scorer"]}
    if version.asset == RECORDED_STUDENT:
        return {"trained elsewhere on": {ancestor["asset"]: ancestor["version"] for ancestor in version.facts["ancestors"]}}
    return {}


@dataclass(frozen=True)
class RowTrace:
    """Where a row came from, and what it touched.

    Attributes:
        row: The row as it was written: text, source, template, sampling, engine, run, time.
        places: Versions that hold it, or have set it aside: asset, version, and split, reward and quality, or the reason.
        touched: What was made from the versions that hold it, and how each has to do with it.
    """

    row: dict[str, Any]
    places: list[dict[str, Any]]
    touched: list[Touched]


def trace_row(workspace: Workspace, book: Book, key: str) -> RowTrace:
    """Follow one row.

    Raises:
        UdrlError: The store holds no row of this key.
    """
    found = as_written(workspace, key)
    if found is None:
        gone = "".join(f" any more: tombstone {s.number}, {s.reason}" for s in about(workspace.tombstones(), key)[-1:])
        raise UdrlError(
            f"there is no row {key!r}{gone}", where=workspace.database.where, remedy="row keys stand in the versions' rows.parquet"
        )
    where = standing(workspace, book, {key: found["intent_key"]})
    stands = [
        {"asset": asset, "version": version, **{name: value for name, value in rows[0].items() if name != "row_key"}}
        for (asset, version), rows in where.tables.items()
    ]
    aside = [{"asset": asset, "version": version, "set aside": reason} for asset, version, _, reason in set_aside(workspace, [key])]
    row = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in found.items()}
    return RowTrace(row, stands + aside, touched_by(workspace, book, where))
