"""Has anybody touched it? Every folder against its manifest, every manifest against the ledger, the store's rows against the newest
versions, and the ledger against its seals."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from udrl_pipeline import corpus, dataset, exploration, promotion
from udrl_pipeline.audit import versions
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.losses import files_of
from udrl_pipeline.audit.stored import stored_otherwise
from udrl_pipeline.errors import CorruptArtifact, UdrlError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.intents import content_of as content_of_intents
from udrl_pipeline.store import promotions, tombstones
from udrl_pipeline.store.database import Connection, Database
from udrl_pipeline.store.names import EXPORTS, INTENTS_FILE, ROWS_FILE, STUDENTS
from udrl_pipeline.store.seals import chain, edited_runs
from udrl_pipeline.store.tables import holdings
from udrl_pipeline.store.tombstones import Tombstone
from udrl_pipeline.store.workspace import Version, Workspace, story_of
from udrl_pipeline.versioning import canonical, content_hash


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was when it was made: a version (or the ledger), and what is wrong."""

    asset: str
    version: str
    what: str


def _labelled(folder: Path, version: Version) -> str:
    return dataset.content_of(pd.read_parquet(folder / ROWS_FILE, columns=dataset.HASHED), version.facts["edges"])


#: How a version's name follows from its files.
CONTENT: dict[str, Callable[[Path, Version], str]] = {
    intents.ASSET: lambda folder, _: content_of_intents(
        pd.read_parquet(folder / INTENTS_FILE, columns=["intent_key", "intent", "tasks", "split"]).itertuples(index=False, name=None)
    ),
    corpus.ASSET: lambda folder, _: corpus.content_of(pd.read_parquet(folder / ROWS_FILE, columns=list(corpus.HASHED))),
    dataset.ASSET: _labelled,
    exploration.ASSET: _labelled,
    promotion.ASSET: lambda folder, _: promotion.content_of(json.loads((folder / promotion.FILE).read_text(encoding="utf-8"))),
}


def verify(workspace: Workspace, only: Version | None = None) -> list[Fault]:
    """Everything that was changed since it was made; empty if nothing was.

    Args:
        only: Look at this version alone, and neither at the ledger's chain nor at the store's rows.

    Raises:
        UdrlError: There are versions, but no ledger.
    """
    _refuse_without_ledger(workspace)
    book, stones = Book(workspace), workspace.tombstones()
    known = [only] if only else versions(workspace)
    faults = [Fault(v.asset, v.version, what) for v in known if v.verdict == "PASS" for what in _faults(workspace, book, stones, v)]
    if only:
        return faults
    stored = [Fault(v.asset, v.version, what) for v, what in stored_otherwise(workspace, {(f.asset, f.version) for f in faults})]
    strays = [*_orphans(workspace, known), *_strays(workspace, known), *_published_orphans(workspace, known)]
    return [*faults, *stored, *_ledger(workspace), *strays]


def _refuse_without_ledger(workspace: Workspace) -> None:
    database = workspace.database
    if isinstance(database, Database) and not database.path.exists() and any(workspace.folder.glob("**/manifest.json")):
        raise UdrlError(
            "there is no ledger here, so nothing can be verified",
            where=database.where,
            remedy="restore the file from a backup, or name the folder that holds it with `--set artifacts=DIR`",
        )


def _faults(workspace: Workspace, book: Book, stones: list[Tombstone], version: Version) -> Iterator[str]:
    expected, forgotten = _expected_files(book, stones, version)
    folder = workspace.local_folder(version.asset, version.version)
    if forgotten and not expected:  # all of its files were deleted
        if workspace.is_there(version.asset, version.version):
            yield "its files should have been deleted (`udrl audit forget` was killed; say it again)"
        return
    if workspace.remote and (faults := list(workspace.remote.faults(version.asset, version.version, expected))):
        yield from faults
        return
    try:
        workspace.check_files(version.asset, version.version)
    except CorruptArtifact as error:
        yield error.what if error.what != "is missing" else "its manifest is missing" if folder.exists() else "its folder is missing"
        return
    manifest = workspace.manifest(version.asset, version.version)
    entered = {"asset": version.asset, "version": version.version, "rows": version.rows, "files": expected or manifest["files"]}
    if manifest["fingerprint"] == version.fingerprint:  # the same content can have been made from other inputs since
        entered |= {"code_version": version.code_version, "params": version.params, "parents": version.parents}
    differing = [name for name, value in entered.items() if canonical(manifest.get(name)) != canonical(value)]
    for name in differing:
        yield f"the manifest's {name} {'are' if name.endswith('s') else 'is'} not the ledger's"
    if version.manifest not in ("", story_of(manifest)) and not set(differing) - {"files"}:
        yield "its manifest was edited: when, at which commit or by which run it was made, or its facts"
    for parent in version.made_from:
        if parent not in book.versions:
            yield f"its parent {parent[0]} {parent[1]} is not in the ledger"
    with workspace.database.reader() as connection:
        if version.files and holdings(folder) != _counted(connection, version):
            yield "the ledger counts other rows than its table holds"
    if forgotten:
        return  # its name tells what it held before
    if version.asset.startswith((STUDENTS, EXPORTS)):
        found = content_hash(manifest["files"])
    elif version.asset in CONTENT:
        found = CONTENT[version.asset](folder, version)
    else:
        return  # a report's name also counts what is not in its files
    if found != version.version:
        yield f"its content hashes to {found}"


def _counted(connection: Connection, version: Version) -> list[tuple[str, str, int]]:
    return connection.execute(
        "SELECT source, run_id, rows FROM holdings WHERE asset = ? AND version = ? ORDER BY source, run_id",
        [version.asset, version.version],
    ).fetchall()


def _expected_files(book: Book, stones: list[Tombstone], version: Version) -> tuple[dict[str, str], bool]:
    """The digests that the files of a version should have, as the ledger and the tombstones say, and whether one was forgotten from.

    They are unknown (empty) where the version is from before the ledger had them.
    """
    expected, forgotten = dict(version.files), False
    for _, file in files_of(book, stones, version):
        forgotten = True
        expected.pop(file.file, None)
        if file.after:
            expected[file.file] = file.after
    return expected, forgotten


def _ledger(workspace: Workspace) -> Iterator[Fault]:
    sealed = False
    with workspace.database.reader() as connection:
        for row in chain(connection):
            if row.seal is None and not sealed:
                continue  # from before there were seals
            sealed = True
            if row.seal != row.expected:
                yield Fault(row.asset, row.version, "its row in the ledger, or the one before it, was edited, removed or slipped in")
        for run in edited_runs(connection):
            yield Fault("runs", run, "its row in the ledger was edited")
        for table, edited in (("tombstones", tombstones.edited), ("promotions", promotions.edited)):
            for number in edited(connection):
                yield Fault(table, str(number), "its row in the ledger, or the one before it, was edited, removed or slipped in")
    made, entries = workspace.current(promotion.ASSET), workspace.promotions()
    if made and (entries[-1].number if entries else 0) < made.facts["entries"]:
        yield Fault("promotions", str(made.facts["entries"]), "its row in the ledger is missing")


def _orphans(workspace: Workspace, known: list[Version]) -> Iterator[Fault]:
    """Folders that look like versions and that the ledger does not hold."""
    entered = {(v.asset, v.version) for v in known}
    for manifest in sorted(workspace.folder.glob("**/manifest.json")):
        folder = manifest.parent.relative_to(workspace.folder)
        asset = folder.parent.as_posix()
        if not any(part.startswith(".") for part in folder.parts) and (asset, folder.name) not in entered and _is_version(manifest, asset):
            yield Fault(asset, folder.name, "its folder is not in the ledger (a run was killed here, or somebody put it there)")


def _strays(workspace: Workspace, known: list[Version]) -> Iterator[Fault]:
    """What stands where versions stand, without a manifest, and files beside the assets. Hidden ones are work in progress."""
    entered = {(v.asset, v.version) for v in known}
    for asset in sorted({asset for asset, _ in entered}):
        for found in sorted((workspace.folder / asset).glob("[!.]*")):
            if (asset, found.name) not in entered and not (found / "manifest.json").exists():
                yield Fault(asset, found.name, "is no version: it has no manifest, and is not in the ledger")
    for found in sorted(workspace.folder.glob("[!.]*")):
        if found.is_file() and not found.name.startswith("udrl.duckdb"):
            yield Fault("", found.name, "is no file of the store")


def _published_orphans(workspace: Workspace, known: list[Version]) -> Iterator[Fault]:
    entered = {(v.asset, v.version) for v in known}
    for asset, version in workspace.remote.published() if workspace.remote else []:
        if (asset, version) not in entered:
            yield Fault(
                asset, version, "what was published of it is not in the ledger (a run was killed here, or another ledger's made it)"
            )


def _is_version(manifest: Path, asset: str) -> bool:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return isinstance(found, dict) and found.get("asset", asset) == asset
