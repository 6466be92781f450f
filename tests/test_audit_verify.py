"""`udrl audit verify`: whatever is touched after it was made is named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner

from conftest import FakeEngine
from student_fake import record_student
from test_audit_impact import put
from udrl_pipeline import audit, corpus
from udrl_pipeline.audit.stored import stored_otherwise
from udrl_pipeline.audit.verify import Fault, verify
from udrl_pipeline.cli import main
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.versioning import content_hash, file_sha256

pytestmark = pytest.mark.usefixtures("kept_open")


@pytest.fixture
def made(load: Callable[..., Settings], teacher: FakeEngine) -> Workspace:
    """Intents and a corpus, twice: with six ideas and with seven."""
    for ideas in (6, 7):
        workspace = Workspace(load({"intents.builtin": ideas}), run_id=f"run-{ideas}")
        workspace.begin_run()
        intents.build(workspace)
        corpus.build(workspace)
    return workspace


def folder(workspace: Workspace, asset: str = "teacher_corpus") -> Path:
    return workspace.version_folder(asset, workspace.parents(asset)[asset])


def edit(workspace: Workspace, statement: str) -> None:
    with duckdb.connect(str(workspace.database.path)) as connection:
        connection.execute(statement)


def test_what_nobody_touched_has_no_fault(made: Workspace) -> None:
    assert verify(made) == []
    intents.build(made)
    assert verify(made) == []


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda at: (at / "rows.parquet").write_bytes((at / "rows.parquet").read_bytes()[:-1] + b"?"), "rows.parquet (changed)"),
        (lambda at: (at / "rows.parquet").unlink(), "rows.parquet (missing)"),
        (lambda at: (at / "notes.txt").touch(), "notes.txt (unknown)"),
        (lambda at: (at / "manifest.json").write_text("{"), "no readable manifest"),
        (lambda at: (at / "manifest.json").unlink(), "its manifest is missing"),
        (lambda at: shutil.rmtree(at), "its folder is missing"),
    ],
)
def test_a_touched_folder_is_named(made: Workspace, harm: Callable[[Path], object], what: str) -> None:
    at = folder(made)
    harm(at)
    [fault] = verify(made)
    assert (fault.asset, fault.version) == ("teacher_corpus", at.name)
    assert what in fault.what


def test_rows_that_were_forged_together_with_their_manifest_fit_neither_the_ledger_nor_the_version(made: Workspace) -> None:
    at = folder(made)
    rows = pd.read_parquet(at / "rows.parquet")
    rows.loc[0, "text"] = "Buy now"
    rows.to_parquet(at / "rows.parquet")
    manifest = json.loads((at / "manifest.json").read_text())
    manifest["files"]["rows.parquet"] = file_sha256(at / "rows.parquet")
    (at / "manifest.json").write_text(json.dumps(manifest))
    assert verify(made) == [
        Fault("teacher_corpus", at.name, "the manifest's files are not the ledger's"),
        Fault("teacher_corpus", at.name, f"its content hashes to {corpus.content_of(rows)}"),
    ]


@pytest.mark.parametrize("asset", ["student/udrl", "student_export/udrl"])
def test_weights_that_were_exchanged_together_with_manifest_and_ledger_do_not_fit_their_version(made: Workspace, asset: str) -> None:
    right, wrong = (content_hash({"weights": hashlib.sha256(weights).hexdigest()}) for weights in (b"right", b"wrong"))
    honest = record_student(made, right, asset, lambda at: at.joinpath("weights").write_bytes(b"right"))
    assert verify(made, honest) == []
    forged = record_student(made, "0" * 16, asset, lambda at: at.joinpath("weights").write_bytes(b"wrong"))
    assert verify(made, forged) == [Fault(asset, "0" * 16, f"its content hashes to {wrong}")]


def test_a_manifest_that_tells_another_story_than_the_ledger_is_named(made: Workspace) -> None:
    at = folder(made)
    manifest = json.loads((at / "manifest.json").read_text())
    manifest["params"]["temperature"] = 0.1
    (at / "manifest.json").write_text(json.dumps(manifest))
    assert verify(made) == [Fault("teacher_corpus", at.name, "the manifest's params are not the ledger's")]


@pytest.mark.parametrize("name", ["created_at", "run_id", "git", "facts"])
def test_a_manifest_whose_own_story_was_edited_is_named(made: Workspace, name: str) -> None:
    at = folder(made)
    manifest = json.loads((at / "manifest.json").read_text())
    (at / "manifest.json").write_text(json.dumps(manifest | {name: "another"}))
    assert verify(made) == [
        Fault("teacher_corpus", at.name, "its manifest was edited: when, at which commit or by which run it was made, or its facts")
    ]


def test_what_stands_beside_the_versions_is_named(made: Workspace) -> None:
    (made.folder / "teacher_corpus" / "stray").mkdir()
    (made.folder / "intents" / "notes.txt").touch()
    (made.folder / "list.csv").touch()
    (made.folder / "current" / "intents").mkdir(parents=True)  # copies have a place of their own
    (made.folder / "intents" / ".c0ffee.12").mkdir()  # work in progress
    assert verify(made) == [
        Fault("intents", "notes.txt", "is no version: it has no manifest, and is not in the ledger"),
        Fault("teacher_corpus", "stray", "is no version: it has no manifest, and is not in the ledger"),
        Fault("", "list.csv", "is no file of the store"),
    ]


def test_versions_without_a_ledger_are_one_error(made: Workspace) -> None:
    made.database.compact()
    Path(made.database.where).unlink()
    with pytest.raises(UdrlError, match=r"udrl.duckdb: there is no ledger here(.|\n)*restore the file"):
        verify(Workspace(made.settings))


CHAIN = "its row in the ledger, or the one before it, was edited, removed or slipped in"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET verdict = 'FAIL' WHERE rowid = 1",
        "UPDATE versions SET created_at = created_at - INTERVAL 1 DAY WHERE rowid = 1",
        "UPDATE parents SET parent_version = parent_version || '0' WHERE asset = 'teacher_corpus'",
        "DELETE FROM versions WHERE rowid = 1",
        "UPDATE versions SET seal = NULL WHERE rowid = 1",
    ],
)
def test_an_edited_ledger_is_named(made: Workspace, statement: str) -> None:
    edit(made, statement)
    assert CHAIN in {fault.what for fault in verify(made)}


def test_the_chain_begins_after_rows_from_before_there_were_seals(made: Workspace) -> None:
    edit(made, "UPDATE versions SET seal = NULL")
    assert verify(made) == []
    corpus.build(Workspace(made.settings.model_copy(update={"teacher": made.settings.teacher.model_copy(update={"samples": 2})}), "run-8"))
    assert verify(made) == []


def test_a_folder_that_the_ledger_does_not_hold_is_named(made: Workspace) -> None:
    shutil.copytree(folder(made), made.folder / "teacher_corpus" / "0123456789abcdef")
    [fault] = verify(made)
    assert (fault.asset, fault.version) == ("teacher_corpus", "0123456789abcdef")
    assert "is not in the ledger" in fault.what


def test_one_version_can_be_verified_alone(made: Workspace) -> None:
    (folder(made) / "rows.parquet").unlink()
    older = audit.versions(made, "teacher_corpus")[-1]
    assert verify(made, older) == []
    assert len(verify(made, audit.versions(made, "teacher_corpus")[0])) == 1


def test_a_version_is_found_by_its_first_digits(made: Workspace) -> None:
    version = audit.versions(made, "teacher_corpus")[0]
    assert audit.resolve(made, version.version[:6]) == version
    assert audit.resolve(made, f"teacher_corpus@{version.version}") == version
    with pytest.raises(UdrlError, match="there is no version 'intents@"):
        audit.resolve(made, f"intents@{version.version}")
    with pytest.raises(UdrlError, match="there is no version ''"):
        audit.resolve(made, "")


def test_digits_that_two_versions_share_are_an_error_that_names_both(made: Workspace) -> None:
    for asset in ("one", "two"):
        made.record(asset, version="abcd", fingerprint="f", code_version="c", rows=1, params={}, parents={}, facts={}, write=lambda _: None)
    with pytest.raises(UdrlError, match=r"'ab' is more than one version(.|\n)*two@abcd, one@abcd|one@abcd, two@abcd"):
        audit.resolve(made, "ab")
    assert audit.resolve(made, "two@ab").asset == "two"


def test_the_command_ends_with_1_where_something_was_touched(made: Workspace, params: Path) -> None:
    arguments = ["audit", "verify", "--params", str(params)]
    clean = CliRunner().invoke(main, arguments)
    assert (clean.exit_code, clean.stdout) == (0, "4 versions: nothing was touched\n")
    at = folder(made)
    (at / "rows.parquet").unlink()
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [
        {"asset": "teacher_corpus", "version": at.name, "what": "files differ from the manifest: rows.parquet (missing)"}
    ]
    assert "rows.parquet (missing)" in " ".join(CliRunner().invoke(main, [*arguments, at.name]).stdout.split())


@pytest.mark.parametrize("change", ["git_sha = 'f'", "git_dirty = NOT git_dirty", "params = '{}'", "started_at = now()"])
def test_an_edited_run_is_named(made: Workspace, change: str) -> None:
    edit(made, f"UPDATE runs SET {change} WHERE run_id = 'run-6'")
    assert verify(made) == [Fault("runs", "run-6", "its row in the ledger was edited")]


@pytest.mark.parametrize("statement", ["DELETE FROM runs WHERE run_id = 'run-7'", "UPDATE runs SET git_sha = 'f', seal = NULL"])
def test_a_run_that_is_gone_or_has_lost_its_seal_no_longer_fits_the_versions_that_it_made(made: Workspace, statement: str) -> None:
    edit(made, statement)
    assert {fault.what for fault in verify(made)} == {CHAIN}


def test_a_run_from_before_runs_were_sealed_is_no_fault(made: Workspace) -> None:
    edit(made, "UPDATE runs SET seal = NULL; UPDATE versions SET seal = NULL")
    assert verify(made) == []


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE rows SET text = text || '!' WHERE row_key = '{key}'", "the store holds otherwise 1 of its rows: {key}"),
        ("UPDATE rows SET source = 'me' WHERE row_key = '{key}'", "the store holds otherwise 1 of its rows: {key}"),
        ("DELETE FROM rows WHERE row_key = '{key}'", "the store lacks 1 of its rows: {key}"),
    ],
)
def test_a_row_of_the_store_that_is_not_what_was_published_is_named(made: Workspace, statement: str, what: str) -> None:
    at = folder(made)
    key = pd.read_parquet(at / "rows.parquet").row_key[1]
    edit(made, statement.format(key=key))
    assert verify(made) == [Fault("teacher_corpus", at.name, what.format(key=key))]


def test_a_score_that_is_not_what_the_newest_dataset_holds_is_named(made: Workspace) -> None:
    rows = pd.read_parquet(folder(made) / "rows.parquet")[["row_key"]].assign(relevance=0.5)
    with made.database.writer() as connection:
        connection.register("scored", rows)
        connection.execute("INSERT INTO scores SELECT row_key, 'scorer', relevance FROM scored")
    put(made, "labeled_dataset", "d1", {}, {"notes.parquet": rows}, params={"scorer": "scorer"})
    put(made, "labeled_dataset", "d2", {}, {"rows.parquet": rows}, params={"scorer": "scorer"})
    assert list(stored_otherwise(made)) == []
    one, two = sorted(rows.row_key)[:2]
    edit(made, f"UPDATE scores SET relevance = 0.9 WHERE row_key = '{one}'; DELETE FROM scores WHERE row_key = '{two}'")
    assert [(made.version, what) for made, what in stored_otherwise(made)] == [
        ("d2", f"the store lacks the scores of 1 of its rows: {two}"),
        ("d2", f"the store holds otherwise the scores of 1 of its rows: {one}"),
    ]


def test_rows_that_the_ledger_counts_otherwise_are_named(made: Workspace) -> None:
    edit(made, "UPDATE holdings SET rows = rows + 1 WHERE asset = 'teacher_corpus'")
    assert {(fault.asset, fault.what) for fault in verify(made)} == {
        ("teacher_corpus", "the ledger counts other rows than its table holds")
    }
