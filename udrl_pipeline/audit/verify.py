"""Has anybody touched it? Every folder against its manifest, every manifest against the ledger, and the ledger against its seals."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from udrl_pipeline import corpus, dataset, exploration
from udrl_pipeline.audit import versions
from udrl_pipeline.errors import CorruptArtifact
from udrl_pipeline.store.seals import chain
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.versioning import canonical


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was when it was made: a version (or the ledger), and what is wrong."""

    asset: str
    version: str
    what: str


#: How a version's name follows from its files, where it is the hash of rows.
CONTENT: dict[str, Callable[[pd.DataFrame, Version], str]] = {
    corpus.ASSET: lambda rows, _: corpus.content_of(rows),
    dataset.ASSET: lambda rows, version: dataset.content_of(rows, version.facts["edges"]),
    exploration.ASSET: lambda rows, version: dataset.content_of(rows, version.facts["edges"]),
}


def verify(workspace: Workspace, only: Version | None = None) -> list[Fault]:
    """Everything that was changed since it was made; empty if nothing was.

    Args:
        only: Look at this version alone, and not at the ledger's chain.
    """
    known = [only] if only else versions(workspace)
    faults = [Fault(v.asset, v.version, what) for v in known if v.verdict == "PASS" for what in _faults(workspace, v)]
    return faults if only else [*faults, *_ledger(workspace), *_orphans(workspace, known)]


def _faults(workspace: Workspace, version: Version) -> Iterator[str]:
    try:
        workspace.check_files(version.asset, version.version)
    except CorruptArtifact as error:
        yield error.what
        return
    manifest = workspace.manifest(version.asset, version.version)
    entered = {"asset": version.asset, "version": version.version, "rows": version.rows}
    if manifest["fingerprint"] == version.fingerprint:  # the same content can have been made from other inputs since
        entered |= {"code_version": version.code_version, "params": version.params, "parents": version.parents}
    for name, value in entered.items():
        if canonical(manifest.get(name)) != canonical(value):
            yield f"the manifest's {name} is not the ledger's"
    for parent, parent_version in version.parents.items():
        if workspace.find(parent, parent_version) is None:
            yield f"its parent {parent} {parent_version} is not in the ledger"
    if version.asset in CONTENT:
        rows = pd.read_parquet(workspace.version_folder(version.asset, version.version) / "rows.parquet")
        if (found := CONTENT[version.asset](rows, version)) != version.version:
            yield f"its rows hash to {found}"


def _ledger(workspace: Workspace) -> Iterator[Fault]:
    sealed = False
    with workspace.database.reader() as connection:
        for row in chain(connection):
            if row.seal is None and not sealed:
                continue  # from before there were seals
            sealed = True
            if row.seal != row.expected:
                yield Fault(row.asset, row.version, "its row in the ledger, or the one before it, was edited, removed or slipped in")


def _orphans(workspace: Workspace, known: list[Version]) -> Iterator[Fault]:
    """Folders that look like versions and that the ledger does not hold."""
    entered = {(v.asset, v.version) for v in known}
    for manifest in sorted(workspace.folder.glob("**/manifest.json")):
        folder = manifest.parent.relative_to(workspace.folder)
        asset = folder.parent.as_posix()
        if not any(part.startswith(".") for part in folder.parts) and (asset, folder.name) not in entered and _is_version(manifest, asset):
            yield Fault(asset, folder.name, "its folder is not in the ledger (a run was killed here, or somebody put it there)")


def _is_version(manifest: Path, asset: str) -> bool:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return isinstance(found, dict) and found.get("asset", asset) == asset
