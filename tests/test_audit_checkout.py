"""`udrl audit checkout`: an old version becomes the current one of a project of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import FakeEngine
from udrl_pipeline import corpus, dataset
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.checkout import checkout
from udrl_pipeline.audit.verify import verify
from udrl_pipeline.cli import main
from udrl_pipeline.errors import CorruptArtifact, UdrlError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.settings import load as load_settings
from udrl_pipeline.store.workspace import Expected, Workspace
from udrl_pipeline.versioning import files_sha256


@pytest.fixture
def made(load: Callable[..., Settings], teacher: FakeEngine, tmp_path: Path) -> Workspace:
    """Two generations: the first of six ideas and one of the user's own, the second of nine more and another weight."""
    (tmp_path / "ideas.csv").write_text("intent\nzeppelin over a harbour\n", encoding="utf-8")
    first = {"intents.builtin": 6, "intents.sources": ["ideas.csv"], "intents.validation": 0.3, "quality.min_rows_per_task": 2}
    for run, overrides in (("run-1", first), ("run-2", first | {"intents.builtin": 15, "rewards.weights.gain": 0.9})):
        workspace = Workspace(load(overrides), run_id=run)
        workspace.begin_run()
        intents.build(workspace)
        corpus.build(workspace)
        dataset.build(workspace)
    return workspace


def first(workspace: Workspace, asset: str) -> str:
    return next(version.version for version in workspace.ledger() if version.asset == asset)


def test_a_checked_out_version_is_current_in_its_folder_with_all_that_it_was_made_from(made: Workspace, tmp_path: Path) -> None:
    version = made.find("labeled_dataset", first(made, "labeled_dataset"))
    assert version
    done = checkout(made, version, tmp_path / "old")
    there = Workspace(load_settings(tmp_path / "old" / "params.yaml", preset=""))
    assert [v.asset for v in done.versions] == ["intents", "teacher_corpus", "labeled_dataset"]
    assert there.parents("intents", "teacher_corpus", "labeled_dataset") == {
        asset: first(made, asset) for asset in ("intents", "teacher_corpus", "labeled_dataset")
    }
    for found in done.versions:
        assert files_sha256(there.version_folder(found.asset, found.version)) == files_sha256(
            made.version_folder(found.asset, found.version)
        )
    assert verify(there) == []


def test_a_run_in_the_folder_builds_on_the_old_version_and_makes_nothing_anew(made: Workspace, tmp_path: Path, teacher: FakeEngine) -> None:
    version = made.find("labeled_dataset", first(made, "labeled_dataset"))
    assert version
    checkout(made, version, tmp_path / "old")
    there = Workspace(load_settings(tmp_path / "old" / "params.yaml", preset=""))
    asked = teacher.rows
    assert [build(there).version for build in (intents.build, corpus.build, dataset.build)] == [
        first(made, asset) for asset in ("intents", "teacher_corpus", "labeled_dataset")
    ]
    assert teacher.rows == asked
    changed = Workspace(load_settings(tmp_path / "old" / "params.yaml", preset="", overrides={"commands.quality_bins": 2}))
    assert dataset.build(changed).parents == version.parents
    assert [v.asset for v in Book(made).children(version)] == []


def test_it_holds_the_rows_of_its_corpus_and_no_others(made: Workspace, tmp_path: Path) -> None:
    version = made.find("teacher_corpus", first(made, "teacher_corpus"))
    assert version
    checkout(made, version, tmp_path / "old")
    there = Workspace(load_settings(tmp_path / "old" / "params.yaml", preset=""))
    with there.database.reader() as connection:
        keys = [key for (key,) in connection.execute("SELECT row_key FROM rows ORDER BY row_key").fetchall()]
    assert keys == sorted(corpus.read_rows(made, version.version).row_key)


def test_a_folder_that_holds_something_is_left_alone(made: Workspace, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine.txt").touch()
    version = made.current("intents")
    assert version
    with pytest.raises(UdrlError, match="is not empty"):
        checkout(made, version, tmp_path / "old")
    assert [file.name for file in (tmp_path / "old").iterdir()] == ["mine.txt"]


def test_a_version_that_was_touched_or_did_not_pass_is_not_given_out(made: Workspace, tmp_path: Path) -> None:
    version = made.current("teacher_corpus")
    assert version
    (made.version_folder("teacher_corpus", version.version) / "rows.parquet").unlink()
    with pytest.raises(CorruptArtifact, match=r"rows.parquet \(missing\)"):
        checkout(made, version, tmp_path / "old")
    assert not (tmp_path / "old").exists()
    older = next(v for v in made.ledger() if v.asset == "teacher_corpus")
    checkout(made, older, tmp_path / "old")  # the same folder, now that it can be done
    failed = made.record(
        "labeled_dataset", version="bad", fingerprint="f", code_version="c", rows=0, params={}, parents={}, facts={},
        write=lambda folder: None, expectations=[Expected("length", False, True, {})],
    )  # fmt: skip
    with pytest.raises(UdrlError, match="did not pass its checks"):
        checkout(made, failed, tmp_path / "older")


def test_the_command_says_how_to_go_on(made: Workspace, params: Path, tmp_path: Path) -> None:
    arguments = ["audit", "checkout", first(made, "teacher_corpus"), "--to", str(tmp_path / "old"), "--params", str(params)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    assert "intents" in told
    assert "`udrl run --select student/udrl` trains on them, `udrl audit trace teacher_corpus` shows it" in told


@pytest.mark.parametrize(
    ("asset", "hint"),
    [
        ("student/sft", "`udrl generate --recipe sft` writes with it"),
        ("student_export/udrl", "artifacts/student_export/udrl/v1 is the export"),
        ("evaluation_report", "artifacts/evaluation_report/v1/report.html is the report"),
        ("explored_rows", "`udrl run --select student/udrl-rounds` trains on them"),
        ("promotion", "`udrl run` goes on from it"),
    ],
)
def test_what_the_command_says_to_do_next_fits_the_asset(workspace: Workspace, params: Path, tmp_path: Path, asset: str, hint: str) -> None:
    workspace.record(asset, version="v1", fingerprint="f", code_version="c", rows=1, params={}, parents={}, facts={}, write=lambda _: None)
    arguments = ["audit", "checkout", asset, "--to", str(tmp_path / "old"), "--params", str(params)]
    assert f"{hint}, `udrl audit trace {asset}` shows it" in " ".join(CliRunner().invoke(main, arguments).stdout.split())
