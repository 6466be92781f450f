"""Versions: published whole or not at all, reused when nothing changed, and never silently damaged."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from udrl_pipeline import audit
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.verify import verify
from udrl_pipeline.errors import CorruptArtifact, StoreFull, StoreLocked, StoreUnwritable, UdrlError
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Expected, Quarantined, Version, Workspace, asset_of, git_state, in_role

REPOSITORY = Path(__file__).parent.parent


def write_rows(folder: Path) -> None:
    pd.DataFrame({"row": range(50)}).to_parquet(folder / "rows.parquet")
    (folder / "inner").mkdir()
    (folder / "inner" / "note.txt").write_text("a note", encoding="utf-8")


def record(
    workspace: Workspace, version: str = "v1", fingerprint: str = "f1", write: Callable[[Path], None] = write_rows, **others: Any
) -> Version:
    values = {"code_version": "c1", "rows": 50, "params": {"a": 1}, "parents": {"intents": "i1"}, "facts": {"mean": 0.5}, **others}
    return workspace.record("corpus", version=version, fingerprint=fingerprint, write=write, **values)


def folders(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in (workspace.folder / "corpus").glob("*"))


def current(workspace: Workspace) -> str | None:
    version = workspace.current("corpus")
    return version.version if version else None


# -- publishing ---------------------------------------------------------------------------------------------------------


def test_a_version_is_a_folder_with_a_manifest_and_a_row_in_the_ledger(workspace: Workspace) -> None:
    made = record(workspace)
    manifest = workspace.manifest("corpus", "v1")
    assert manifest.pop("created_at") == made.created_at.isoformat()
    assert {name: len(digest) for name, digest in manifest.pop("files").items()} == {"rows.parquet": 64, "inner/note.txt": 64}
    assert manifest == {
        "asset": "corpus", "version": "v1", "fingerprint": "f1", "code_version": "c1", "run_id": "run-1",
        "git": {"sha": "", "dirty": False}, "rows": 50, "parents": {"intents": "i1"}, "params": {"a": 1}, "facts": {"mean": 0.5},
    }  # fmt: skip
    found = workspace.find("corpus", "v1")
    assert found is not None
    assert (found.rows, found.verdict, found.run_id, found.params, found.facts, found.parents) == (
        50, "PASS", "run-1", {"a": 1}, {"mean": 0.5}, {"intents": "i1"},
    )  # fmt: skip
    assert (made.made_now, found.made_now) == (True, False)
    workspace.check_files("corpus", "v1")


def test_the_newest_version_that_passed_is_current(workspace: Workspace) -> None:
    assert workspace.current("corpus") is None
    record(workspace, "v1", "f1")
    record(workspace, "v2", "f2")
    assert current(workspace) == "v2"
    assert workspace.parents("corpus") == {"corpus": "v2"}


def test_a_clock_that_goes_backwards_changes_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    record(workspace, "v1", "f1", parents={})

    class AnHourAgo(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(hours=1)

    with monkeypatch.context() as patch:
        patch.setattr("udrl_pipeline.store.workspace.datetime", AnHourAgo)
        record(workspace, "v2", "f2", parents={})
        record(workspace, "v1", "f1", parents={})
        record(workspace, "v3", "f3", parents={}, quarantined=[Quarantined("key", "too short", "3 words", "a b c")])
    found = workspace.find("corpus", "v1")
    assert found is not None
    assert datetime.now(UTC) - found.created_at > timedelta(minutes=59)  # the making that was entered last
    assert current(workspace) == "v3"
    assert [version.version for version in audit.versions(workspace)] == ["v3", "v1", "v2"]
    assert [(aside.version, aside.row.item) for aside in audit.quarantine(workspace)] == [("v3", "key")]
    assert verify(workspace) == []
    workspace.reuse("corpus", "f2")
    assert current(workspace) == "v2"


def test_a_step_whose_parent_has_no_version_says_what_to_run(workspace: Workspace) -> None:
    record(workspace)
    with pytest.raises(UdrlError) as caught:
        workspace.parents("corpus", "intents")
    assert (caught.value.what, caught.value.remedy) == ("there is no version of intents yet", "run `udrl run --select intents`")


def test_a_failed_blocking_expectation_publishes_nothing_and_keeps_the_last_good_version(workspace: Workspace) -> None:
    record(workspace, "v1", "f1")
    failed = record(
        workspace, "v2", "f2",
        expectations=[
            Expected("enough_rows", False, True, {"rows": 1}, "Enough rows"),
            Expected("no_drift", True, False, {"drift": 0.0}, "No drift"),
        ],
        quarantined=[Quarantined("key", "too short", "3 words", "a b c")],
    )  # fmt: skip
    assert (failed.verdict, current(workspace), folders(workspace)) == ("FAIL", "v1", ["v1"])
    assert [(e.name, e.passed, e.blocking, e.observed) for e in workspace.expectations("corpus", "v2")] == [
        ("enough_rows", False, True, {"rows": 1}),
        ("no_drift", True, False, {"drift": 0.0}),
    ]
    with workspace.database.reader() as connection:
        assert connection.execute("SELECT * FROM quarantine").fetchall() == [("corpus", "v2", "key", "too short", "3 words", "a b c")]
    assert workspace.reuse("corpus", "f2") is None


def test_a_failed_expectation_that_does_not_block_is_published(workspace: Workspace) -> None:
    record(workspace, expectations=[Expected("no_drift", False, False, {})])
    assert current(workspace) == "v1"


def test_a_version_judged_again_shows_its_last_judgement(settings: Settings) -> None:
    for run, passed in (("run-1", False), ("run-2", True)):
        workspace = Workspace(settings, run)
        record(workspace, expectations=[Expected("no_drift", passed, False, {"run": run})])
    assert [(e.passed, e.observed) for e in workspace.expectations("corpus", "v1")] == [(True, {"run": "run-2"})]


# -- reuse --------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_covers_all_inputs_in_any_order(workspace: Workspace) -> None:
    base = workspace.fingerprint("corpus", "c1", {"a": 1, "b": 2}, {"x": "1", "y": "2"})
    assert workspace.fingerprint("corpus", "c1", {"b": 2, "a": 1}, {"y": "2", "x": "1"}) == base
    others = [
        workspace.fingerprint("dataset", "c1", {"a": 1, "b": 2}, {"x": "1", "y": "2"}),
        workspace.fingerprint("corpus", "c2", {"a": 1, "b": 2}, {"x": "1", "y": "2"}),
        workspace.fingerprint("corpus", "c1", {"a": 1, "b": 3}, {"x": "1", "y": "2"}),
        workspace.fingerprint("corpus", "c1", {"a": 1, "b": 2}, {"x": "1", "y": "3"}),
    ]
    assert len({base, *others}) == 5


def test_the_same_inputs_find_their_version_and_make_it_current_again(workspace: Workspace) -> None:
    record(workspace, "v1", "f1")
    record(workspace, "v2", "f2")
    assert workspace.reuse("corpus", "f3") is None
    found = workspace.reuse("corpus", "f1")
    assert found is not None
    assert (found.version, found.made_now, found.parents) == ("v1", False, {"intents": "i1"})
    assert current(workspace) == "v1"


def test_other_inputs_that_make_the_same_content_share_its_folder(workspace: Workspace) -> None:
    record(workspace, "v1", "f1", parents={"intents": "i1"})
    before = workspace.manifest("corpus", "v1")

    def write_nothing(_: Path) -> None:
        raise AssertionError("the version is there already")

    record(workspace, "v1", "f2", write=write_nothing, parents={"intents": "i2"})
    assert workspace.manifest("corpus", "v1") == before
    for fingerprint, parent in (("f2", "i2"), ("f1", "i1"), ("f2", "i2")):  # each making keeps its own parents
        found = workspace.reuse("corpus", fingerprint)
        assert found is not None
        assert found.parents == {"intents": parent}
        current_one = workspace.current("corpus")
        assert current_one is not None
        assert (current_one.fingerprint, current_one.parents) == (fingerprint, {"intents": parent})


def test_a_version_whose_folder_was_removed_is_made_again(workspace: Workspace) -> None:
    record(workspace)
    (workspace.version_folder("corpus", "v1") / "manifest.json").unlink()
    assert workspace.reuse("corpus", "f1") is None
    record(workspace)  # a folder without a manifest is no version, and no obstacle
    workspace.check_files("corpus", "v1")


# -- a corrupt snapshot -------------------------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "rows.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "rows.parquet").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "says", "where"),
    [
        (flip_a_byte, "files differ from the manifest: rows.parquet (changed)", ""),
        (lambda folder: (folder / "rows.parquet").unlink(), "files differ from the manifest: rows.parquet (missing)", ""),
        (lambda folder: (folder / "new.txt").touch(), "files differ from the manifest: new.txt (unknown)", ""),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {'), "no readable manifest (", "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("null"), "no readable manifest (it lists no files)", "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "no readable manifest (it lists no files)", "manifest.json"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"files": []}'),
            "no readable manifest (it lists no files)",
            "manifest.json",
        ),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "no readable manifest (", "manifest.json"),
    ],
)
def test_a_damaged_version_is_never_used_and_the_remedy_works(
    workspace: Workspace, tmp_path: Path, harm: Callable[[Path], object], says: str, where: str
) -> None:
    record(workspace)
    folder = workspace.version_folder("corpus", "v1")
    harm(folder)
    for use in (
        lambda: workspace.check_files("corpus", "v1"),
        lambda: workspace.reuse("corpus", "f1"),
        lambda: record(workspace, "v1", "f2"),
    ):
        with pytest.raises(CorruptArtifact) as caught:
            use()
        assert caught.value.what.startswith(says)
        assert caught.value.where == str(folder / where)
        assert caught.value.remedy == "move the folder v1 away and run again: corpus is made anew from its inputs"
    folder.rename(tmp_path / "away")
    assert workspace.reuse("corpus", "f1") is None
    record(workspace)
    workspace.check_files("corpus", "v1")


def test_a_missing_manifest_is_named(workspace: Workspace) -> None:
    with pytest.raises(CorruptArtifact, match=r"v9: is missing"):
        workspace.check_files("corpus", "v9")


# -- a write that fails -------------------------------------------------------------------------------------------------


def write_until_the_disk_is_full(folder: Path) -> None:
    write_rows(folder)
    raise OSError(errno.ENOSPC, "No space left on device", str(folder))


def write_as_safetensors_does(folder: Path) -> None:
    write_rows(folder)
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [write_until_the_disk_is_full, write_as_safetensors_does])
def test_a_disk_that_fills_up_while_publishing_leaves_no_version(workspace: Workspace, write: Callable[[Path], None]) -> None:
    record(workspace, "v1", "f1")
    with pytest.raises(StoreFull) as caught:
        record(workspace, "v2", "f2", write=write)
    assert caught.value.where == str(workspace.version_folder("corpus", "v2"))
    assert caught.value.remedy == "free some space and run again: everything committed is kept"
    assert (folders(workspace), current(workspace)) == (["v1"], "v1")
    assert workspace.find("corpus", "v2") is None


def test_any_other_failure_leaves_no_version_either(workspace: Workspace) -> None:
    def write(folder: Path) -> None:
        write_rows(folder)
        raise KeyError("a fault of the program")

    with pytest.raises(KeyError):
        record(workspace, write=write)
    assert (folders(workspace), current(workspace)) == ([], None)


def test_a_version_without_its_ledger_row_is_entered_by_the_next_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "_insert_version", lambda *_: (_ for _ in ()).throw(StoreLocked("held", where="x", remedy="y")))
        with pytest.raises(StoreLocked):
            record(workspace)
    assert (folders(workspace), current(workspace)) == (["v1"], None)
    found = record(workspace, facts={"mean": 0.7})  # a time that was measured again, say
    assert (folders(workspace), current(workspace)) == (["v1"], "v1")
    assert found.facts == workspace.manifest("corpus", "v1")["facts"] == {"mean": 0.5}  # the ledger tells what the files tell


def test_a_really_full_disk_leaves_no_version_and_the_last_one_current(small_disk: Path, load: Callable[..., Settings]) -> None:
    workspace = Workspace(load({"artifacts": str(small_disk)}))
    record(workspace, "v1", "f1")

    def write_too_much(folder: Path) -> None:
        import random

        draw = random.Random(1)
        pd.DataFrame({"text": [draw.randbytes(1000).hex() for _ in range(8000)]}).to_parquet(folder / "rows.parquet")

    with pytest.raises(StoreFull):
        record(workspace, "v2", "f2", write=write_too_much)
    assert (folders(workspace), current(workspace)) == (["v1"], "v1")
    workspace.check_files("corpus", "v1")
    record(workspace, "v3", "f3")
    assert current(workspace) == "v3"


def test_what_a_killed_run_left_is_cleared_away(workspace: Workspace) -> None:
    left = workspace.version_folder("corpus", ".v1.123")
    left.mkdir(parents=True)
    (left / "rows.parquet").write_bytes(b"half")
    with workspace.lock("corpus"):
        record(workspace, "v2")  # the next run may make another version, or none
    assert folders(workspace) == ["v2"]


def test_a_kill_in_the_middle_of_publishing_leaves_no_version(params: Path, workspace: Workspace) -> None:
    script = f"""
import os
from udrl_pipeline import settings
from udrl_pipeline.store.workspace import Workspace
def write(folder):
    (folder / "rows.parquet").write_bytes(b"half")
    os.kill(os.getpid(), 9)
Workspace(settings.load({str(params)!r})).record(
    "corpus", version="v1", fingerprint="f1", code_version="c1", rows=1, params={{}}, parents={{}}, facts={{}}, write=write)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert (workspace.reuse("corpus", "f1"), current(workspace)) == (None, None)
    with workspace.lock("corpus"):
        record(workspace)
    assert (folders(workspace), current(workspace)) == (["v1"], "v1")


def test_artifacts_that_are_a_file_are_a_typed_error(workspace: Workspace) -> None:
    workspace.folder.write_text("a file", encoding="utf-8")
    for use in (lambda: record(workspace), lambda: workspace.scratch_folder("corpus", "x"), lambda: workspace.lock("corpus").__enter__()):
        with pytest.raises(StoreUnwritable):
            use()


# -- makings and runs ---------------------------------------------------------------------------------------------------


def test_a_version_can_be_made_from_two_versions_of_one_asset(workspace: Workspace) -> None:
    parents = {"ideas": "i1", in_role("ideas", "before"): "i0"}
    for name in ("i0", "i1"):
        workspace.record(
            "ideas", version=name, fingerprint=name, code_version="c", rows=1, params={}, parents={}, facts={}, write=lambda folder: None
        )
    made = record(workspace, parents=parents)
    found = workspace.find("corpus", "v1")
    assert found
    assert (found.parents, found.made_from) == (parents, [("ideas", "i1"), ("ideas", "i0")])
    assert (asset_of("ideas (before)"), asset_of("ideas")) == ("ideas", "ideas")
    book = Book(workspace)
    assert {version.version for version in book.parents(found)} == {"i0", "i1"}
    assert [v.version for v in book.children(book.versions["ideas", "i0"])] == [made.version]
    assert verify(workspace) == []


def test_every_making_of_an_asset_is_there_the_newest_first(workspace: Workspace) -> None:
    for version in ("v1", "v2"):
        record(workspace, version, f"f{version}", parents={})
    record(workspace, "v3", "f3", parents={}, expectations=[Expected("usable", False, True, {})])
    workspace.reuse("corpus", "fv1")
    assert [made.version for made in workspace.makings("corpus")] == ["v1", "v2", "v1"]
    assert (workspace.is_there("corpus", "v1"), workspace.is_there("corpus", "v3")) == (True, False)


def test_a_run_is_entered_once_with_what_it_ran_on(workspace: Workspace) -> None:
    workspace.begin_run()
    workspace.begin_run()
    with workspace.database.reader() as connection:
        ((run_id, sha, dirty, params, packages),) = connection.execute(
            "SELECT run_id, git_sha, git_dirty, params, packages FROM runs"
        ).fetchall()
    assert (run_id, sha, dirty) == ("run-1", "", False)
    assert json.loads(params)["teacher"]["chunk_rows"] == 8
    assert {"duckdb", "torch", "transformers"} <= json.loads(packages).keys()


def test_the_state_of_git_is_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) == {"sha": "", "dirty": False}
    git("init", "-q")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert git_state(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.txt").write_text("b", encoding="utf-8")
    assert git_state(tmp_path)["dirty"] is True


def test_work_in_progress_has_a_folder_that_outlives_a_run(workspace: Workspace) -> None:
    folder = workspace.scratch_folder("student/udrl", "f1")
    assert folder == workspace.folder / ".work" / "student" / "udrl" / "f1"
    assert workspace.scratch_folder("student/udrl", "f1").is_dir()
