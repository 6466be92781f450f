"""The student that ships with the package: where `init_from: recorded` starts.

`udrl_pipeline/recorded/student/` holds the files of a version of `student/udrl` (preset `recorded`), its manifest, the ledger rows of all
that it was made from (ancestors.json), and the intents that it was trained on (trained_on.parquet). `make recorded` writes it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_pipeline import dataset
from udrl_pipeline.errors import CorruptArtifact, StudentError
from udrl_pipeline.recorded import recorded_folder
from udrl_pipeline.store.names import RECORDED_STUDENT
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.versioning import canonical, content_hash, files_sha256

ASSET = RECORDED_STUDENT
MANIFEST, ANCESTORS, TRAINED_ON = "manifest.json", "ancestors.json", "trained_on.parquet"
OTHER_START = "set student.init_from to pruned-teacher, scratch or a model reference"


def student_folder() -> Path:
    return recorded_folder() / "student"


def manifest() -> dict[str, Any]:
    """The manifest of the shipped student, as it was when it was made.

    Raises:
        StudentError: This package ships none.
    """
    file = student_folder() / MANIFEST
    if not file.exists():
        raise StudentError("this package ships no student", where="params.yaml: student.init_from", remedy=OTHER_START)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def adopt(workspace: Workspace, rows: pd.DataFrame) -> Version:
    """Enter the shipped student into the ledger and the artifacts of whoever starts from it, once.

    Args:
        rows: The rows that the next student learns from and is judged by.

    Raises:
        StudentError: It knows intents that are held out here, or was trained on some that were forgotten here.
        CorruptArtifact: Its files are not those that were shipped.
    """
    made, intents = manifest(), pd.read_parquet(student_folder() / TRAINED_ON).intent_key.tolist()
    _refuse_what_it_must_not_know(workspace, rows, intents)
    if known := workspace.find(ASSET, made["version"]):
        workspace.check_files(ASSET, known.version)
        return known
    found = files_sha256(student_folder())
    if wrong := sorted(name for name, digest in made["files"].items() if found.get(name) != digest):
        raise CorruptArtifact(f"files differ from the manifest: {', '.join(wrong)}", where=str(student_folder()), remedy="install it anew")
    ancestors = json.loads((student_folder() / ANCESTORS).read_text(encoding="utf-8"))
    return workspace.record(
        ASSET,
        version=made["version"],
        fingerprint=content_hash(made),
        code_version=made["code_version"],
        rows=made["rows"],
        params=made["params"],
        parents={},  # they are in another store; its facts tell of them
        facts=made["facts"] | {"ancestors": ancestors},
        write=lambda folder: _copy(student_folder(), folder, made["files"]),
    )


def _refuse_what_it_must_not_know(workspace: Workspace, rows: pd.DataFrame, intents: Sequence[str]) -> None:
    held_out = set(rows.intent_key[rows.split != "train"])
    if known := sorted(held_out.intersection(intents)):
        raise StudentError(
            f"the student that ships with the package was trained on {len(known):,} of the {len(held_out):,} intents held out here, "
            f"such as {known[0]!r}",
            where="params.yaml: student.init_from",
            remedy=f"{OTHER_START}, or hold out what it holds out: intents.validation and intents.test of at most 0.05",
        )
    forgotten = workspace.forgotten()
    if any(forgotten.holds_intent(key) for key in intents):
        raise StudentError(
            "the student that ships with the package has learned from rows that were forgotten since",
            where="params.yaml: student.init_from",
            remedy=OTHER_START,
        )


def export(workspace: Workspace, student: Version, ancestors: Sequence[Version], folder: Path) -> None:
    """Write what ships: the files of a student, its manifest, the ledger rows of its ancestors and the intents that it has read.

    Args:
        ancestors: All that it was made from, the nearest first.

    Raises:
        CorruptArtifact: Its files are not what its manifest says.
    """
    workspace.check_files(student.asset, student.version)
    source = workspace.version_folder(student.asset, student.version)
    rows = dataset.read_dataset(workspace, student.parents[dataset.ASSET])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _copy(source, folder, [*workspace.manifest(student.asset, student.version)["files"], MANIFEST])
    told = [
        {"asset": v.asset, "version": v.version, "rows": v.rows, "created_at": v.created_at.isoformat(), "run_id": v.run_id,
         "code_version": v.code_version, "parents": v.parents, "params": v.params, "files": v.files}
        for v in ancestors
    ]  # fmt: skip
    (folder / ANCESTORS).write_text(canonical(told), encoding="utf-8")
    write_table(pd.DataFrame({"intent_key": sorted(set(rows.intent_key[rows.split == "train"]))}), folder / TRAINED_ON)


def _copy(source: Path, folder: Path, names: Sequence[str]) -> None:
    for name in names:
        shutil.copyfile(source / name, folder / name)
