"""What changed between two versions of an asset, and why: rows by what happened to them, settings, code and parents."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from udrl_pipeline.audit.changes import Change, changed_settings
from udrl_pipeline.errors import UdrlError
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
SAMPLES = 3


@dataclass(frozen=True)
class Difference:
    """Version `b` against version `a`.

    Attributes:
        rows: Added, removed and what else happened -> {(task, source): number of rows}; empty for an asset without a table.
        samples: The same names -> some rows, each with what it was and is.
        settings: Settings that differ.
        code: The two code versions, if they differ.
        parents: Parents that differ: name -> (version before, version after); None where there was none.
        facts: Single figures that differ, such as a loss.
    """

    a: Version
    b: Version
    rows: dict[str, dict[tuple[str, str], int]]
    samples: dict[str, list[dict[str, Any]]]
    settings: list[Change]
    code: tuple[str, str] | None
    parents: dict[str, tuple[str | None, str | None]]
    facts: list[Change] = field(default_factory=list)

    def causes(self) -> list[tuple[str, str, str]]:
        """Why they differ: (parent, setting or code; its name; before -> after)."""
        parents = [("parent", name, f"{a or 'none'} -> {b or 'none'}") for name, (a, b) in self.parents.items()]
        settings = [("setting", change.name, f"{change.before} -> {change.after}") for change in self.settings]
        return parents + settings + ([("code", "", " -> ".join(self.code))] if self.code else [])

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
            "settings": [asdict(change) for change in self.settings],
            "code": self.code,
            "parents": self.parents,
            "facts": [asdict(change) for change in self.facts],
        }


def difference(workspace: Workspace, a: Version, b: Version) -> Difference:
    """Compare two versions of one asset.

    Raises:
        UdrlError: They are versions of different assets, or the files of one are gone.
    """
    if a.asset != b.asset:
        raise UdrlError(
            f"{a.asset} {a.version} and {b.asset} {b.version} cannot be compared",
            where="udrl audit diff",
            remedy="name two versions of one asset; `udrl audit trace` shows what each was made from",
        )
    rows, samples = _rows(workspace, a, b) if a.asset in TABLES else ({}, {})
    names = sorted(a.parents.keys() | b.parents.keys())
    parents = {name: (a.parents.get(name), b.parents.get(name)) for name in names}
    return Difference(
        a, b, rows, samples,
        settings=list(changed_settings(a.params, b.params)),
        code=(a.code_version, b.code_version) if a.code_version != b.code_version else None,
        parents={name: versions for name, versions in parents.items() if versions[0] != versions[1]},
        facts=[change for change in changed_settings(_figures(a.facts), _figures(b.facts)) if change.name not in ("seconds",)],
    )  # fmt: skip


def _figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if isinstance(value, int | float | str)}


def _rows(workspace: Workspace, a: Version, b: Version) -> tuple[dict[str, dict[tuple[str, str], int]], dict[str, list[dict[str, Any]]]]:
    file, key = TABLES[a.asset]
    with duckdb.connect() as connection:
        for name, version in (("a", a), ("b", b)):
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_quoted(_file(workspace, version, file))})")
        columns = {column for column, *_ in connection.execute("DESCRIBE a").fetchall()}
        told = {what: [c for c in of_them if c in columns] for what, of_them in HAPPENED.items()}
        both = f"a.{key} IS NOT NULL AND b.{key} IS NOT NULL"
        conditions = {"added": f"a.{key} IS NULL", "removed": f"b.{key} IS NULL"} | {
            what: f"{both} AND ({' OR '.join(f'a.{c} IS DISTINCT FROM b.{c}' for c in of_them)})"
            for what, of_them in told.items()
            if of_them
        }
        counted = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in conditions.values())
        task = "tasks" if "tasks" in columns else "task"
        found = connection.execute(
            f"""SELECT coalesce(b.{task}, a.{task}), regexp_replace(coalesce(b.source, a.source), ':[0-9]+$', ''), {counted}
                FROM a FULL JOIN b USING ({key}) GROUP BY ALL ORDER BY ALL"""
        ).fetchall()
        rows = {what: {(task, source): counts[n] for task, source, *counts in found if counts[n]} for n, what in enumerate(conditions)}
        rows = {what: of_them for what, of_them in rows.items() if of_them}
        return rows, {what: _samples(connection, key, conditions[what], told.get(what, [])) for what in rows}


def _file(workspace: Workspace, version: Version, name: str) -> Path:
    file = workspace.version_folder(version.asset, version.version) / name
    if not file.exists():
        raise UdrlError(f"the files of {version.asset} {version.version} are gone", where=str(file), remedy="restore them, or run again")
    return file


def _samples(connection: duckdb.DuckDBPyConnection, key: str, condition: str, told: list[str]) -> list[dict[str, Any]]:
    """A few rows to which it happened: who they are, and the columns that changed, before and after."""
    changed = "".join(f", a.{c} AS {c}_before, b.{c} AS {c}_after" for c in told)
    text = "" if key == "intent_key" else ", coalesce(b.text, a.text) AS text"
    found = connection.execute(
        f"""SELECT coalesce(a.{key}, b.{key}) AS {key}, coalesce(b.intent, a.intent) AS intent{text}{changed}
            FROM a FULL JOIN b USING ({key}) WHERE {condition} ORDER BY 1 LIMIT {SAMPLES}"""
    )
    names = [column for column, *_ in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _quoted(file: Path) -> str:
    return "'" + str(file).replace("'", "''") + "'"
