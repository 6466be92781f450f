"""Take an idea or a row out for good: out of the store, the published tables and the reports; a tombstone stays.

What is left is the version's own story: who it was as a hash, when and why it went, which files were rewritten. Weights cannot be
rewritten: the students that have learned from it are named, and no later student starts from one of them.
"""

import html
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from udrl_pipeline import corpus
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.damage import damage_named
from udrl_pipeline.audit.impact import Touched, learned_forgotten
from udrl_pipeline.audit.rows import intents_holding, rows_where, standing
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.intents import normalise
from udrl_pipeline.store import tombstones
from udrl_pipeline.store.database import Connection, typed_errors
from udrl_pipeline.store.names import INTENTS_FILE, REPORT, ROWS_FILE
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.tombstones import ForgottenFile, Kind, Tombstone, about, subject_of
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.versioning import file_sha256


@dataclass(frozen=True)
class Forgetting:
    """What was forgotten.

    Attributes:
        learned: The students that were trained on it, and their exports; those that are current, which come first, must be made again.
        reports: The reports that showed it; they were deleted and are made again by the next run.
    """

    tombstone: Tombstone
    learned: list[Touched]
    reports: list[str]


def forget_intent(workspace: Workspace, text: str, reason: str) -> Forgetting:
    """Forget an idea with all its rows.

    Raises:
        UdrlError: Nothing is known of it.
        StoreLocked: A run is going on.
    """
    key = normalise(text)
    return _forget(workspace, "intent", subject_of(key), reason, rows_where(workspace, "intent_key = ?", key), key)


def forget_row(workspace: Workspace, row_key: str, reason: str) -> Forgetting:
    """Forget one row. Its idea stays, and the next run does not ask for this row again.

    Raises:
        UdrlError: There is no such row.
        StoreLocked: A run is going on.
    """
    return _forget(workspace, "row", row_key, reason, rows_where(workspace, "row_key = ?", row_key), None)


def _forget(workspace: Workspace, kind: Kind, subject: str, reason: str, rows: dict[str, str], intent: str | None) -> Forgetting:
    book, keys = Book(workspace), list(rows)
    with ExitStack() as locks:
        for asset in sorted({asset for asset, _ in book.versions}):
            locks.enter_context(workspace.lock(asset))
        before = [stone for stone in workspace.tombstones() if (stone.kind, stone.subject) == (kind, subject)]
        where = standing(workspace, book, rows)
        ideas = intents_holding(workspace, book, intent) if intent else []
        if not (keys or ideas or before) and (earlier := about(workspace.tombstones(), subject)):
            raise UdrlError(
                f"row {subject} was forgotten already: tombstone {earlier[-1].number}, {earlier[-1].reason}",
                where=workspace.database.where,
                remedy="`udrl audit forget` lists the tombstones",
            )
        if not (keys or ideas or before):
            raise UdrlError(
                f"nothing is known of this {kind}", where=workspace.database.where, remedy="write it as `udrl audit impact` finds it"
            )
        if keys or ideas:
            needles = _needles(workspace, keys, intent)
            tables = [(*key, ROWS_FILE) for key in where.tables] + [(*key, INTENTS_FILE) for key in ideas]
            files = [_rewritten(workspace, *table, keys, subject) for table in tables]
            shown = [key for key in book.versions if key[0] == REPORT and _shows(workspace.version_folder(*key), needles)]
            files += [file for key in shown for file in _all_files(workspace, *key)]
            with workspace.database.writer() as connection:
                before.append(tombstones.enter(connection, kind, subject, reason, keys, files))
                _delete(connection, keys, needles)
        for stone in before:  # also what a run that was killed has left undone
            _put_in_place(workspace, stone)
            _publish(workspace, stone)
            with workspace.database.writer() as connection:
                for asset, version in {(file.asset, file.version) for file in stone.files}:
                    workspace.enter_holdings(connection, asset, version)
        workspace.database.compact()
    gone = sorted({file.version for stone in before for file in stone.files if file.after is None})
    return Forgetting(before[-1], learned_forgotten(workspace, book, before), gone)


def _needles(workspace: Workspace, keys: list[str], intent: str | None) -> list[str]:
    """The words by which a report is known to show it; with regard to no case."""
    rows = corpus.find_rows(workspace, keys)
    return sorted({text.casefold() for text in [*rows.text, *([intent] if intent else [])]})


def _rewritten(workspace: Workspace, asset: str, version: str, name: str, keys: list[str], subject: str) -> ForgottenFile:
    """Write a table without the rows aside; `_put_in_place` takes it from there."""
    file = workspace.version_folder(asset, version) / name
    with damage_named(workspace, [(asset, version)]):
        rows = _write_aside(file, keys, subject)
    return ForgottenFile(asset, version, name, file_sha256(file), file_sha256(_aside(file)), rows)


def _write_aside(file: Path, keys: Sequence[str], subject: str) -> int:
    """Returns how many rows it does without."""
    frame = pd.read_parquet(file)
    gone = frame.intent_key.map(subject_of) == subject if file.name == INTENTS_FILE else frame.row_key.isin(keys)
    with typed_errors(file):
        write_table(frame[~gone].reset_index(drop=True), _aside(file))
    return int(gone.sum())


def _aside(file: Path) -> Path:
    return file.parent.with_name(f".{file.parent.name}.{file.name}")


def _shows(folder: Path, needles: list[str]) -> bool:
    """Whether a report holds one of these texts, whatever its file escapes."""
    for file in sorted(folder.glob("*")):
        if file.suffix == ".parquet":
            texts = pd.read_parquet(file).select_dtypes(["object", "string"])
            if not {str(text).casefold() for text in texts.to_numpy().ravel()}.isdisjoint(needles):
                return True
        else:
            text = file.read_text(encoding="utf-8", errors="replace").casefold()
            plain = html.unescape(text)
            if any(needle in plain or json.dumps(needle, ensure_ascii=False)[1:-1] in text for needle in needles):
                return True
    return False


def _all_files(workspace: Workspace, asset: str, version: str) -> list[ForgottenFile]:
    files = workspace.manifest(asset, version)["files"]
    return [ForgottenFile(asset, version, name, digest, None) for name, digest in sorted(files.items())]


def _delete(connection: Connection, keys: list[str], needles: list[str]) -> None:
    # the databases have no common notion of a small letter
    texts = connection.execute("SELECT DISTINCT item, text FROM quarantine WHERE text <> ''").fetchall()
    shown = {item for item, text in texts if any(needle in text.casefold() for needle in needles)}
    connection.register("gone", pd.DataFrame({"row_key": pd.Series(keys, dtype="str")}))
    connection.register("shown", pd.DataFrame({"item": pd.Series(sorted(shown), dtype="str")}))
    for table in ("rows", "scores"):
        connection.execute(f"DELETE FROM {table} WHERE row_key IN (SELECT row_key FROM gone)")
    connection.execute(
        """UPDATE quarantine SET text = '', detail = '' WHERE item IN (SELECT row_key FROM gone)
           OR item IN (SELECT item FROM shown)"""
    )


def _put_in_place(workspace: Workspace, stone: Tombstone) -> None:
    """Replace or delete the files of a tombstone, as far as that has not been done; the manifests tell of it."""
    for file in stone.files:
        folder = workspace.version_folder(file.asset, file.version)
        path, aside = folder / file.file, _aside(folder / file.file)
        with typed_errors(path):
            if not path.exists() or file_sha256(path) != file.before:
                continue  # it is done; or a report was made again since
            if file.after is None:
                (folder / "manifest.json").unlink(missing_ok=True)  # first: a folder without a manifest is no version
                path.unlink()
                if not any(folder.iterdir()):
                    folder.rmdir()
                continue
            if not aside.exists():
                _write_aside(path, stone.row_keys, stone.subject)
            manifest = workspace.manifest(file.asset, file.version)
            manifest["files"][file.file] = file.after
            manifest["forgotten"] = sorted({*manifest.get("forgotten", []), stone.number})
            staged = folder.with_name(f".{folder.name}.manifest.json")
            staged.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
            staged.replace(folder / "manifest.json")
            aside.replace(path)  # last: a kill before it leaves a file that is still to be replaced


def _publish(workspace: Workspace, stone: Tombstone) -> None:
    """Make what was published what is here now."""
    if remote := workspace.remote:
        for asset, version in sorted({(file.asset, file.version) for file in stone.files}):
            folder = workspace.local_folder(asset, version)
            if (folder / "manifest.json").exists():
                remote.replace(folder, asset, version)
            else:
                remote.remove(asset, version)
