"""What changed between two versions of an asset, and why: rows by what happened to them; settings, code and parents, theirs and of
what they come from."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.changes import Change, changed_settings, in_yaml
from udrl_pipeline.audit.damage import damage_named
from udrl_pipeline.audit.losses import Losses, losses
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.tombstones import Tombstone
from udrl_pipeline.store.workspace import Version, Workspace

#: The table of each asset that has one, and the column that identifies a row.
TABLES = {"intents": ("intents.parquet", "intent_key"), "teacher_corpus": ("rows.parquet", "row_key"),
          "labeled_dataset": ("rows.parquet", "row_key"), "explored_rows": ("rows.parquet", "row_key")}  # fmt: skip
#: What can happen to a row that both versions hold: name -> the columns that tell.
HAPPENED = {
    "rewritten": ("text", "intent"),
    "moved": ("split",),
    "relabelled": ("relevance", "fidelity", "gain", "repetition", "reward"),
    "re-binned": ("quality",),
}
#: What stands for the source where it is more than the column: the line of a file of ideas is no source of its own.
SOURCE = {"intents": "regexp_replace(source, ':[0-9]+$', '')"}
SAMPLES = 3


@dataclass(frozen=True)
class Reasons:
    """Why version `b` of an asset is another than version `a`, as far as what they were made with and from tells.

    Attributes:
        settings: Settings that differ.
        files: Files of ideas that differ: their sha256 before and after.
        code: The two code versions, if they differ.
        parents: Parents that differ: name -> (version before, version after); None where there was none.
    """

    a: Version
    b: Version
    settings: list[Change]
    files: list[Change]
    code: tuple[str, str] | None
    parents: dict[str, tuple[str | None, str | None]]

    @staticmethod
    def between(a: Version, b: Version) -> "Reasons":
        parents = {name: (a.parents.get(name), b.parents.get(name)) for name in sorted(a.parents.keys() | b.parents.keys())}
        digests = a.facts.get("digests"), b.facts.get("digests")
        return Reasons(
            a, b,
            settings=list(changed_settings(a.params, b.params)),
            files=[] if None in digests else list(changed_settings(*digests)),
            code=(a.code_version, b.code_version) if a.code_version != b.code_version else None,
            parents={name: versions for name, versions in parents.items() if versions[0] != versions[1]},
        )  # fmt: skip

    def lines(self, of: str = "") -> list[tuple[str, str, str]]:
        """(parent, setting, file or code; its name; before -> after). `of` stands behind the first."""
        parents = [(f"parent{of}", name, f"{a or 'none'} -> {b or 'none'}") for name, (a, b) in self.parents.items()]
        settings = [(f"setting{of}", change.name, f"{in_yaml(change.before)} -> {in_yaml(change.after)}") for change in self.settings]
        files = [
            (f"file{of}", change.name, f"{(change.before or 'none')[:16]} -> {(change.after or 'none')[:16]}") for change in self.files
        ]
        return parents + settings + files + ([(f"code{of}", "", " -> ".join(self.code))] if self.code else [])

    def as_dict(self) -> dict[str, Any]:
        return {
            "before": self.a.version, "after": self.b.version, "settings": [asdict(change) for change in self.settings],
            "files": [asdict(change) for change in self.files], "code": self.code, "parents": self.parents,
        }  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Version `b` against version `a`.

    Attributes:
        rows: Added, removed and what else happened -> {(task, source): number of rows}; empty for an asset without a table.
        samples: The same names -> some rows, each with what it was and is.
        reasons: Settings, code and parents that differ.
        behind: The same of each asset that they come from and of which the two have another version; the nearest first.
        facts: Single figures that differ, such as a loss.
        lost: What tombstones have taken out of the two since they were made. Those rows are compared no more.
    """

    a: Version
    b: Version
    rows: dict[str, dict[tuple[str, str], int]]
    samples: dict[str, list[dict[str, Any]]]
    reasons: Reasons
    behind: list[Reasons] = field(default_factory=list)
    facts: list[Change] = field(default_factory=list)
    lost: Losses = field(default_factory=dict)

    def causes(self) -> list[tuple[str, str, str]]:
        """Why they differ: (parent, setting, file, code or tombstone; its name; before -> after), then why their origins do."""
        behind = [line for reasons in self.behind for line in reasons.lines(of=f" of {reasons.a.asset}")]
        return self.reasons.lines() + behind + [("tombstone", str(stone.number), told) for stone, told in self._taken_out()]

    def _taken_out(self) -> Iterator[tuple[Tombstone, str]]:
        """Each tombstone that touched one of the two, and what it took out of which, when and why."""
        lost = [self.lost.get((version.asset, version.version), ()) for version in (self.a, self.b)]
        stones = {loss.stone.number: loss.stone for of_it in lost for loss in of_it}
        for number, stone in sorted(stones.items()):
            taken = [
                f"{_rows_told(loss.rows)} out of {version.version}"
                for version, of_it in zip((self.a, self.b), lost, strict=True)
                for loss in of_it
                if loss.stone.number == number
            ]
            yield stone, f"took {' and '.join(taken)}, {stone.created_at.astimezone():%Y-%m-%d %H:%M}: {stone.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "asset": self.a.asset,
            "before": self.a.version,
            "after": self.b.version,
            "rows": {
                what: [{"task": task, "source": source, "rows": count} for (task, source), count in of_them.items()]
                for what, of_them in self.rows.items()
            },
            "samples": self.samples,
            **{name: told for name, told in self.reasons.as_dict().items() if name not in ("before", "after")},
            "behind": {reasons.a.asset: reasons.as_dict() for reasons in self.behind},
            "facts": [asdict(change) for change in self.facts],
            "forgotten": [
                {"tombstone": loss.stone.number, "version": version, "rows": loss.rows, "reason": loss.stone.reason}
                for (_, version), of_it in self.lost.items()
                for loss in of_it
            ],
        }


def difference(workspace: Workspace, a: Version, b: Version, book: Book | None = None) -> Difference:
    """Compare two versions of one asset. `book` is the ledger, where it was read already.

    Raises:
        UdrlError: They are versions of different assets, or the files of one are gone.
        CorruptArtifact: A table cannot be read.
    """
    if a.asset != b.asset:
        raise UdrlError(
            f"{a.asset} {a.version} and {b.asset} {b.version} cannot be compared",
            where="udrl audit diff",
            remedy="name two versions of one asset; `udrl audit trace` shows what each was made from",
        )
    with damage_named(workspace, [(a.asset, a.version), (b.asset, b.version)]):
        rows, samples = _rows(workspace, a, b) if a.asset in TABLES else ({}, {})
    book = book or Book(workspace)
    lost = losses(book, workspace.tombstones())
    return Difference(
        a, b, rows, samples, Reasons.between(a, b), _behind(book, a, b),
        facts=[change for change in changed_settings(_figures(a.facts), _figures(b.facts)) if change.name not in ("seconds",)],
        lost={key: lost[key] for key in dict.fromkeys(((a.asset, a.version), (b.asset, b.version))) if key in lost},
    )  # fmt: skip


def _behind(book: Book, a: Version, b: Version) -> list[Reasons]:
    """Why the versions that the two come from differ. An asset counts once, where it stands nearest; an earlier student, from which
    training went on, has a history of its own."""
    found: dict[str, Reasons | None] = {a.asset: None}
    left = [(a, b)]
    while left:
        pair = left.pop(0)
        before, after = ({parent.asset: parent for parent in book.parents(version)} for version in pair)
        for asset in sorted((before.keys() & after.keys()) - found.keys()):
            found[asset] = Reasons.between(before[asset], after[asset])
            left.append((before[asset], after[asset]))
    return [reasons for reasons in found.values() if reasons and reasons.a.version != reasons.b.version]


def _rows_told(rows: int | None) -> str:
    return "some rows" if rows is None else f"{rows:,} row{'s' if rows != 1 else ''}"


def _figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if isinstance(value, int | float | str)}


def _rows(workspace: Workspace, a: Version, b: Version) -> tuple[dict[str, dict[tuple[str, str], int]], dict[str, list[dict[str, Any]]]]:
    """What happened to how many rows, and samples of them; each table is read once, and once more for the samples alone."""
    file, key = TABLES[a.asset]
    files = {"a": _file(workspace, a, file), "b": _file(workspace, b, file)}
    with duckdb.connect() as connection:
        columns = {column for column, *_ in connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(files["a"])]).fetchall()}
        told = {what: there for what, of_them in HAPPENED.items() if (there := [c for c in of_them if c in columns])}
        conditions = {"added": f"a.{key} IS NULL", "removed": f"b.{key} IS NULL"}
        conditions |= {what: f'a."{what}" <> b."{what}"' for what in told}
        # hashed before the join, which then carries a few numbers in place of texts: of 10^19 changes one is not seen
        hashes = ", ".join(f'hash({", ".join(of_them)}) AS "{what}"' for what, of_them in told.items())
        origin = f"{'tasks' if 'tasks' in columns else 'task'}, {SOURCE.get(a.asset, 'source')}"
        side = f"SELECT {key}, {hashes}, hash({origin}) AS origin FROM read_parquet(?)"
        counted = ", ".join(f"count(*) FILTER ({c}), min({key}, {SAMPLES}) FILTER ({c})" for c in conditions.values())
        counts = connection.execute(
            f"SELECT coalesce(b.origin, a.origin), {counted} FROM ({side}) a FULL JOIN ({side}) b USING ({key}) GROUP BY ALL",
            [str(file) for file in files.values()],
        ).fetchall()
        origins = connection.execute(f"SELECT DISTINCT hash({origin}), {origin} FROM read_parquet(?)", [[*map(str, files.values())]])
        named = {hashed: (task, source) for hashed, task, source in origins.fetchall()}
        found = sorted((*named[hashed], *of_them) for hashed, *of_them in counts)
        rows: dict[str, dict[tuple[str, str], int]] = {}
        first: dict[str, list[str]] = {}  # the rows to show, by their keys
        for n, what in enumerate(conditions):
            if happened := [(of_task, source, counts[2 * n], counts[2 * n + 1]) for of_task, source, *counts in found if counts[2 * n]]:
                rows[what] = {(of_task, source): count for of_task, source, count, _ in happened}
                first[what] = sorted(k for *_, keys in happened for k in keys)[:SAMPLES]
        wanted = sorted({k for keys in first.values() for k in keys})
        shown = [column for column in ("intent", "text") if column in columns]
        compared = [column for of_them in told.values() for column in of_them]
        before, after = (_read(connection, file, [key, *shown, *compared], wanted) for file in files.values())
    samples = {
        what: [_sample(before.get(k, {}), after.get(k, {}), [key, *shown], told.get(what, [])) for k in keys]
        for what, keys in first.items()
    }
    return rows, samples


def _file(workspace: Workspace, version: Version, name: str) -> Path:
    file = workspace.version_folder(version.asset, version.version) / name
    if not file.exists():
        raise UdrlError(f"the files of {version.asset} {version.version} are gone", where=str(file), remedy="restore them, or run again")
    return file


def _read(connection: duckdb.DuckDBPyConnection, file: Path, columns: list[str], keys: list[str]) -> dict[str, dict[str, Any]]:
    """Columns of the rows of some keys, by key, which is the first column."""
    names = list(dict.fromkeys(columns))
    found = connection.execute(
        f"SELECT {', '.join(names)} FROM read_parquet(?) WHERE {names[0]} IN (SELECT unnest(?))", [str(file), keys]
    ).fetchall()
    return {row[0]: dict(zip(names, row, strict=True)) for row in found}


def _sample(before: dict[str, Any], after: dict[str, Any], shown: list[str], told: list[str]) -> dict[str, Any]:
    """A row to which something happened: who it is, and the columns that changed, before and after."""
    differing = [column for column in told if before[column] != after[column]]
    changed = {f"{column}_{when}": row[column] for column in differing for when, row in (("before", before), ("after", after))}
    return {column: (after or before)[column] for column in shown} | changed
