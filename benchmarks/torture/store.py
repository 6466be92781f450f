"""What a store holds, and what a kill has left in it."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from benchmarks.torture.pipeline import STEPS
from udrl_pipeline.audit.verify import verify
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.versioning import content_hash, files_sha256

#: What a run writes into the ledger and the tables, without times and run ids.
TABLES = {
    "rows": "SELECT row_key, text, finish_reason FROM rows",
    "scores": "SELECT row_key, scorer_version, relevance FROM scores",
    "quarantine": "SELECT asset, version, item, reason FROM quarantine",
    "versions": "SELECT asset, version, fingerprint, rows, verdict FROM versions",
    "parents": "SELECT asset, version, parent_asset, parent_version FROM parents",
    "quality_results": "SELECT asset, version, expectation, passed, observed FROM quality_results",
}
#: Files that hold no times: their bytes must be the same, or all columns of their rows but the run that asked for them.
REPEATABLE = ("intents", "labeled_dataset", "student/udrl", "student_export/udrl")


@dataclass(frozen=True)
class Left:
    """What a killed run left.

    Attributes:
        orphans: Whole folders of versions that the ledger does not hold.
        unnamed: Those of them that `verify` does not name, and folders that are no whole version.
        faults: What `verify` names besides: nothing may be wrong with what the ledger holds.
        staged: Folders that were being written, and those with work in progress.
    """

    orphans: list[str]
    unnamed: list[str]
    faults: list[str]
    staged: list[str]


def leftovers(workspace: Workspace) -> list[str]:
    """Work in progress: staged folders, and the folders of `.work` that hold a file."""
    staged = {path for path in workspace.folder.rglob(".*.*") if path.is_dir()}
    staged |= {path.parent for path in workspace.folder.glob(".work/**/*") if path.is_file()}
    return sorted(path.relative_to(workspace.folder).as_posix() for path in staged)


def examine(workspace: Workspace) -> Left:
    """Look at the store before anything else does."""
    if not workspace.database.path.exists():
        return Left([], [f"{path}" for path in workspace.folder.rglob("manifest.json")], [], leftovers(workspace))
    with workspace.database.reader() as connection:
        entered = {f"{asset}@{version}" for asset, version in connection.execute("SELECT asset, version FROM versions").fetchall()}
    folders = {f"{asset}@{folder.name}": folder for asset in STEPS for folder in workspace.folder.glob(f"{asset}/[!.]*")}
    named = {f"{fault.asset}@{fault.version}": fault.what for fault in verify(workspace)}
    orphans = folders.keys() - entered
    whole = {name for name in orphans if (folders[name] / "manifest.json").exists()}
    return Left(
        orphans=sorted(whole),
        unnamed=sorted((whole - named.keys()) | (orphans - whole)),
        faults=sorted(f"{name}: {what}" for name, what in named.items() if name not in whole),
        staged=leftovers(workspace),
    )


def contents(workspace: Workspace) -> dict[str, Any]:
    """What the store holds: each table's rows, each version's row keys, and the digests of files that must be the same."""
    with workspace.database.reader() as connection:
        found: dict[str, Any] = {name: sorted(map(list, connection.execute(query).fetchall())) for name, query in TABLES.items()}
    found["versions"].sort()
    found["keys"], found["files"] = {}, {}
    for asset, version, *_ in found["versions"]:
        folder = workspace.version_folder(asset, version)
        if (folder / "rows.parquet").exists():
            found["keys"][f"{asset}@{version}"] = pd.read_parquet(folder / "rows.parquet", columns=["row_key"]).row_key.tolist()
        if asset in REPEATABLE:
            found["files"][asset] = {name: digest for name, digest in files_sha256(folder).items() if name != "manifest.json"}
        if asset == "labeled_dataset":
            rows = pd.read_parquet(folder / "rows.parquet").drop(columns="run_id")
            found["files"][asset]["rows.parquet"] = content_hash(rows.to_json(double_precision=15))
    return found


@dataclass(frozen=True)
class Difference:
    """How a resumed store differs from that of an uninterrupted run.

    Attributes:
        lost: Rows, scores or published rows that are missing.
        doubled: Those that stand twice.
        others: Everything else, in words.
    """

    lost: int
    doubled: int
    others: list[str]


def compare(workspace: Workspace, expected: dict[str, Any]) -> Difference:
    found = contents(workspace)
    pairs = [(expected[name], found[name]) for name in ("rows", "scores")]
    pairs += [([[key] for key in keys], [[key] for key in found["keys"].get(name, [])]) for name, keys in expected["keys"].items()]
    lost = doubled = 0
    for before, after in pairs:
        counts = Counter(row[0] for row in after)
        lost += len({row[0] for row in before} - counts.keys())
        doubled += sum(counts.values()) - len(counts)
    others = [f"{name} differ" for name in expected if content_hash(expected[name]) != content_hash(found[name])]
    others += [f"{fault.asset} {fault.version}: {fault.what}" for fault in verify(workspace)]
    others += [f"{path} was left" for path in leftovers(workspace)]
    return Difference(lost, doubled, others)


def as_dict(found: Left | Difference) -> dict[str, Any]:
    return asdict(found)
