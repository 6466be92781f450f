"""`udrl audit versions`: each version with its run, its commit, and what was set otherwise than before it."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from test_audit import record
from udrl_pipeline import audit
from udrl_pipeline.audit.changes import Change
from udrl_pipeline.audit.history import history
from udrl_pipeline.cli import main
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace

pytestmark = pytest.mark.usefixtures("kept_open")


@pytest.fixture
def made(settings: Settings) -> Workspace:
    git = ["git", "-C", str(settings.root), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "params"]):
        subprocess.run([*git, *arguments], check=True)
    for run, version, changed in (("run-1", "a", {}), ("run-2", "b", {"code_version": "d", "params": {"gain": 0.9}}), ("run-3", "c", {})):
        workspace = Workspace(settings, run_id=run)
        workspace.begin_run()
        record(workspace, "labeled_dataset", version, **({"params": {"gain": 0.4}} | changed))
        (settings.root / "params.yaml").write_text("# changed\n" + (settings.root / "params.yaml").read_text())
    return workspace


def test_what_differs_from_the_version_before_is_told(made: Workspace) -> None:
    found = history(made, audit.versions(made))
    assert [(e.version.version, e.before, e.changes, e.current) for e in found] == [
        ("c", "b", [Change("gain", 0.9, 0.4), Change("code", "d", "c")], True),
        ("b", "a", [Change("gain", 0.4, 0.9), Change("code", "c", "d")], False),
        ("a", None, [], False),
    ]


def test_the_commit_and_whether_it_was_all_are_told(made: Workspace) -> None:
    newest, *_, oldest = history(made, audit.versions(made))
    assert (len(oldest.git_sha), oldest.git_sha == newest.git_sha) == (40, True)
    assert (oldest.git_dirty, newest.git_dirty) == (False, True)


def test_a_version_that_a_later_run_finds_again_is_told_with_the_commit_of_both(made: Workspace, params: Path) -> None:
    git = ["git", "-C", str(made.settings.root), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "commit", "-qam", "more"], check=True)
    later = Workspace(made.settings, run_id="run-4")
    later.begin_run()
    assert later.reuse("labeled_dataset", "a")
    [entry] = [entry for entry in history(made, audit.versions(made)) if entry.version.version == "a"]
    manifest = made.manifest("labeled_dataset", "a")
    assert (entry.first.run_id, entry.version.run_id) == ("run-1", "run-4")
    assert entry.first_git == (manifest["git"]["sha"], manifest["git"]["dirty"])
    assert entry.git_sha not in ("", manifest["git"]["sha"])
    lines = CliRunner().invoke(main, ["audit", "versions", "--params", str(params)]).stdout.splitlines()
    assert lines[1:3] == [f"  run      run-1  at git {entry.first_git[0][:12]}", f"  again    run-4  at git {entry.git_sha[:12]}"]


def test_the_same_content_from_other_inputs_is_told_with_the_inputs_of_both_runs(made: Workspace, params: Path) -> None:
    for run, parent in (("run-4", "x"), ("run-5", "y")):
        workspace = Workspace(made.settings, run_id=run)
        workspace.begin_run()
        record(workspace, "labeled_dataset", "d", fingerprint=f"of {parent}", parents={"teacher_corpus": parent})
    lines = CliRunner().invoke(main, ["audit", "versions", "--params", str(params)]).stdout.splitlines()
    assert [" ".join(line.split()[:3]) for line in lines[1:5]] == [
        "from teacher_corpus x", "run run-4 at", "again run-5 at", "from teacher_corpus y",
    ]  # fmt: skip


def test_a_file_that_changes_while_a_run_goes_on_is_no_change_of_its_code(made: Workspace) -> None:
    git = ["git", "-C", str(made.settings.root), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "commit", "-qam", "more"], check=True)
    workspace = Workspace(made.settings, run_id="run-4")
    workspace.begin_run()
    (made.settings.root / "params.yaml").write_text("# changed\n" + (made.settings.root / "params.yaml").read_text())
    record(workspace, "labeled_dataset", "d")
    [entry, *_] = history(made, audit.versions(made))
    assert workspace.manifest("labeled_dataset", "d")["git"] == {"sha": entry.git_sha, "dirty": False}
    assert entry.git_dirty is False


def test_a_run_whose_name_is_long_stays_within_80_columns(made: Workspace, params: Path) -> None:
    (made.settings.root / "params.yaml").write_text("# changed\n" + (made.settings.root / "params.yaml").read_text())
    workspace = Workspace(made.settings, run_id="4c1bb3c0-9d5e-4d8c-a8c1-5a1c3e0d2f77")
    workspace.begin_run()
    record(workspace, "labeled_dataset", "d")
    lines = CliRunner().invoke(main, ["audit", "versions", "--params", str(params)]).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    [at] = [n for n, line in enumerate(lines) if "4c1bb3c0" in line]
    assert (lines[at].endswith(" with"), lines[at + 1]) == (True, f"{' ' * 11}uncommitted changes")


def test_the_list_reads_well_at_80_columns(made: Workspace, params: Path) -> None:
    result = CliRunner().invoke(main, ["audit", "versions", "--params", str(params)])
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2:4] == ["  changed  gain: 0.9 -> 0.4", "  changed  code: d -> c"]
    assert lines[1].startswith("  run      run-3  at git ")
    assert lines[1].endswith("with uncommitted changes")
    told = json.loads(CliRunner().invoke(main, ["audit", "versions", "--json", "--params", str(params)]).stdout)
    assert told[0]["changes"] == [{"name": "gain", "before": 0.9, "after": 0.4}, {"name": "code", "before": "d", "after": "c"}]
