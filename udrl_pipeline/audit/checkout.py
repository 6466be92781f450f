"""An old version with all that it was made from, in a folder of its own: a project in which it is the current one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.losses import Losses, losses
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.settings import Settings, load
from udrl_pipeline.store.database import Connection, typed_errors
from udrl_pipeline.store.names import ROWS_FILE
from udrl_pipeline.store.seals import COLUMNS, last_seal, seal
from udrl_pipeline.store.workspace import Version, Workspace

#: The tables whose rows go along where they belong to one of the versions.
OF_VERSIONS = ("parents", "quality_results", "quarantine", "holdings")


@dataclass(frozen=True)
class Checkout:
    """A folder with params.yaml and a store of its own.

    Attributes:
        versions: What it holds, in the order of the ledger; the last one was asked for.
        lost: What tombstones have taken out of them; they come as they are now.
        git_sha: The commit at which the version was made; empty where it was made outside of git.
    """

    folder: Path
    versions: list[Version]
    lost: Losses
    git_sha: str
    git_dirty: bool


def checkout(workspace: Workspace, version: Version, to: Path) -> Checkout:
    """Write a version, everything that it was made from, and the settings of its run to an empty folder.

    A run there builds on these versions, not on the newest: the lineage of what it trains is theirs.

    Raises:
        UdrlError: The folder is not empty, or the version did not pass its checks.
        CorruptArtifact: A file is not what its manifest says.
    """
    if version.verdict != "PASS":
        raise UdrlError(
            f"{version.asset} {version.version} did not pass its checks, so it has no files",
            where="udrl audit checkout",
            remedy="`udrl audit versions` shows each version's verdict",
        )
    with _new_folder(to):
        return _check_out(workspace, version, to)


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """A folder that is as it was before where the block does not come to its end."""
    there = folder.exists()
    with typed_errors(folder):
        if there and (not folder.is_dir() or any(folder.iterdir())):
            raise UdrlError("is not empty", where=str(folder), remedy="name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for left in folder.iterdir():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        if not there:
            folder.rmdir()
        raise


def _check_out(workspace: Workspace, version: Version, to: Path) -> Checkout:
    book = Book(workspace)
    chosen = [*book.ancestors(version), book.versions[version.asset, version.version]]
    with workspace.database.reader() as connection:
        run = connection.execute("SELECT params, git_sha, git_dirty FROM runs WHERE run_id = ?", [version.run_id]).fetchone()
    params, sha, dirty = run or (workspace.settings.model_dump_json(), "", False)
    with typed_errors(to):
        (to / "params.yaml").write_text(_params(json.loads(params), workspace.settings, version), encoding="utf-8")
        there = Workspace(load(to / "params.yaml", preset=""), run_id=version.run_id)
        for found in chosen:
            workspace.check_files(found.asset, found.version)
            shutil.copytree(workspace.version_folder(found.asset, found.version), there.version_folder(found.asset, found.version))
    _copy_ledger(workspace, there, chosen)
    return Checkout(to, chosen, losses(book, workspace.tombstones()), sha, dirty)


def _params(values: dict[str, Any], settings: Settings, version: Version) -> str:
    """The settings of a run as params.yaml; its relative paths still lead to where they led."""
    values["artifacts"], values["store"] = "artifacts", None
    values["intents"]["sources"] = [str(settings.path(source)) for source in values["intents"]["sources"]]
    if folder := values["intents"].get("folder", settings.intents.folder):  # runs from before there was one do not name it
        values["intents"]["folder"] = str(settings.path(folder))
    if folder := values["tasks"]["folder"]:
        values["tasks"]["folder"] = str(settings.path(folder))
    told = f"# The settings with which {version.asset} {version.version} was made. `udrl run` in this folder builds on that version.\n"
    return told + yaml.safe_dump(_rooted(values, settings), sort_keys=False, allow_unicode=True)


def _rooted(value: Any, settings: Settings) -> Any:
    if isinstance(value, dict):
        return {key: _rooted(of_it, settings) for key, of_it in value.items()}
    if isinstance(value, list):
        return [_rooted(of_it, settings) for of_it in value]
    if isinstance(value, str) and value.startswith("path:"):
        return f"path:{settings.path(value.removeprefix('path:'))}"
    return value


def _copy_ledger(workspace: Workspace, there: Workspace, chosen: list[Version]) -> None:
    with there.database.writer() as new, workspace.database.reader() as old:
        _copy(old, new, "runs", "WHERE run_id = ANY(CAST(? AS VARCHAR[])) ORDER BY rowid", [[v.run_id for v in chosen]])
        _copy(old, new, "tombstones", "ORDER BY number", [])
        for version in chosen:
            for table in OF_VERSIONS:
                _copy(old, new, table, "WHERE asset = ? AND version = ? ORDER BY rowid", [version.asset, version.version])
            row = old.execute(
                f"SELECT {COLUMNS} FROM versions WHERE asset = ? AND version = ? ORDER BY rowid DESC LIMIT 1",
                [version.asset, version.version],
            ).fetchall()[0]
            sealed = seal(new, row, last_seal(new))
            new.execute(f"INSERT INTO versions ({COLUMNS}, seal) VALUES ({', '.join('?' * len(row))}, ?)", [*row, sealed])
            file = there.version_folder(version.asset, version.version) / ROWS_FILE
            if file.exists():
                old.register("wanted", pd.read_parquet(file, columns=["row_key"]))
                for table in ("rows", "scores"):
                    _copy(old, new, table, "WHERE row_key IN (SELECT row_key FROM wanted) ORDER BY row_key", [], "ON CONFLICT DO NOTHING")


def _copy(old: Connection, new: Connection, table: str, condition: str, values: list[Any], otherwise: str = "") -> None:
    """Copy rows of a table.

    Args:
        otherwise: What to do with a row that is there already.
    """
    names = [name for (name, *_) in new.execute("SELECT column_name FROM duckdb_columns() WHERE table_name = ?", [table]).fetchall()]
    columns = ", ".join(names)
    new.register("copied", old.execute(f"SELECT {columns} FROM {table} {condition}", values).df())
    new.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM copied {otherwise}")
