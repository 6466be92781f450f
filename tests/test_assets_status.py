"""`udrl status`: what is current, stale, running, failed, set aside and in use; from real files, and without waiting."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets import status as assets_status
from assets.processes import process_tag
from assets.run import Wish, materialise, open_instance
from test_assets_run import Library, library, project
from udrl_pipeline import corpus, dataset, status, steps
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.evaluation import report
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Quarantined, Workspace
from udrl_pipeline.student import export, training

__all__ = ["library", "project"]  # fixtures

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def told(library: Library, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What `udrl status` prints: its lines, or with `as_json` the object."""
    fakes: dict[str, steps.Build] = {
        "teacher_corpus": lambda workspace: corpus.build(workspace),
        "labeled_dataset": lambda workspace: dataset.build(workspace),
        "student/udrl": lambda workspace: training.build(workspace, "udrl"),
        "student/sft": lambda workspace: training.build(workspace, "sft"),
        "student_export/udrl": lambda workspace: export.build(workspace, "udrl"),
        "evaluation_report": lambda workspace: report.build(workspace),
    }
    monkeypatch.setattr(status, "BUILDS", {name: fakes.get(name, build) for name, build in steps.BUILDS.items()})
    monkeypatch.setenv("COLUMNS", "80")

    def tell(as_json: bool = False, **overrides: Any) -> Any:
        capfd.readouterr()
        given = {name.replace("__", "."): value for name, value in overrides.items()}
        assert assets_status.main(assets_status.Wish(given, as_json)) == 0
        output = capfd.readouterr().out
        if as_json:
            return json.loads(output)
        assert max(map(len, output.splitlines())) <= 80
        return output.splitlines()

    return tell


def test_before_the_first_run_nothing_is_there_and_everything_is_to_be_made(told: Callable[..., Any]) -> None:
    found = told(as_json=True)
    assert [(a["asset"], a["version"], a["stale"]) for a in found["assets"][:2]] == [
        ("intents", None, "has no version yet"), ("teacher_corpus", None, "intents has no version yet"),
    ]  # fmt: skip
    assert [a["asset"] for a in found["assets"]] == list(steps.DEFAULT)
    assert (found["running"], found["failed"], found["quarantined"], found["students"], found["locked"]) == ([], [], [], [], None)
    assert any("none yet" in line for line in told())


def test_after_a_run_all_is_up_to_date_and_what_is_stale_says_why(told: Callable[..., Any]) -> None:
    run = materialise(Wish())
    found = told(as_json=True)
    versions = {outcome.asset: outcome.version for outcome in run.outcomes}
    assert {a["asset"]: (a["version"], a["verdict"], a["stale"]) for a in found["assets"]} == {
        name: (version, "PASS", None) for name, version in versions.items()
    }
    assert {(s["version"], s["state"], s["why"]) for s in found["students"]} == {
        (versions["student/udrl"], "current", "it is the first"), (versions["student/sft"], "candidate", "not judged yet"),
    }  # fmt: skip
    lines = told()
    assert lines[-1] == "everything is up to date"
    assert any(line.startswith(f" student/udrl         {versions['student/udrl']}") and line.rstrip().endswith("PASS") for line in lines)

    found = told(as_json=True, student__seed=12)
    assert {a["asset"]: a["stale"] for a in found["assets"] if a["stale"]} == {
        "student/udrl": "settings have changed: seed",
        "student/sft": "settings have changed: seed",
        "evaluation_report": "student/udrl will have changed",
        "student_export/udrl": "student/udrl will have changed",
        "promotion": "student/udrl and evaluation_report will have changed",
    }
    assert "stale      student/udrl: settings have changed: seed" in told(student__seed=12)


def test_a_failure_is_told_until_the_asset_is_made(told: Callable[..., Any], library: Library) -> None:
    wish = Wish(select=["intents", "teacher_corpus"])
    library.fails["teacher_corpus"] = TeacherError("does not answer", where="http://127.0.0.1:1", remedy="start it")
    materialise(wish)
    [failure] = told(as_json=True)["failed"]
    assert (failure["asset"], failure["cause"], failure["message"]) == (
        "teacher_corpus", "input", "TeacherError: http://127.0.0.1:1: does not answer",
    )  # fmt: skip
    library.fails["teacher_corpus"] = ZeroDivisionError("oh")
    materialise(wish)
    assert [(f["cause"], f["message"]) for f in told(as_json=True)["failed"]] == [("program", "ZeroDivisionError: oh")]
    assert any(line.startswith("failed     teacher_corpus: ZeroDivisionError: oh (program, ") for line in told())
    del library.fails["teacher_corpus"]
    materialise(wish)
    assert told(as_json=True)["failed"] == []


def test_a_failed_check_is_told_with_the_good_version_that_stays(told: Callable[..., Any], library: Library) -> None:
    wish = Wish(select=["intents", "teacher_corpus", "labeled_dataset"])
    good = {outcome.asset: outcome.version for outcome in materialise(wish).outcomes}
    library.content["labeled_dataset"], library.verdicts["rows_per_task"] = "worse", False
    materialise(wish)
    found = told(as_json=True)
    [labelled] = [a for a in found["assets"] if a["asset"] == "labeled_dataset"]
    assert (labelled["version"], labelled["verdict"]) == (good["labeled_dataset"], "FAIL")
    [failure] = found["failed"]
    assert (failure["asset"], failure["cause"]) == ("labeled_dataset", "check")
    assert failure["message"].startswith("rows_per_task: ")


def test_rows_that_were_set_aside_are_counted_by_reason(told: Callable[..., Any]) -> None:
    aside = [Quarantined(f"ideas.csv:{n}", reason, "", "x") for n, reason in enumerate(("empty", "too long", "empty"))]
    Workspace(load()).record(
        "intents", version="v", fingerprint="f", code_version="c", rows=4, params={}, parents={}, facts={}, write=lambda folder: None,
        quarantined=aside,
    )  # fmt: skip
    assert told(as_json=True)["quarantined"] == [
        {"asset": "intents", "reason": "empty", "rows": 2}, {"asset": "intents", "reason": "too long", "rows": 1},
    ]  # fmt: skip
    assert "set aside  intents: 2 empty" in told()


# -- runs that go on, and runs that were killed -------------------------------------------------------------------------------

HOLD = """
import sys, time
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Workspace
workspace = Workspace(load(), run_id="run-of-another")
with workspace.lock("student/udrl"):
    if "write" in sys.argv:
        with workspace.database.writer():
            print("held", flush=True)
            time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def another(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process that makes the student, and perhaps writes to the ledger just now."""
    children = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        child = subprocess.Popen([sys.executable, "-c", HOLD, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
        children.append(child)
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_a_run_that_goes_on_is_told_and_nobody_waits_for_it_until_it_is_killed(
    told: Callable[..., Any], another: Callable[..., subprocess.Popen[str]]
) -> None:
    child = another()
    began = time.monotonic()
    [running] = told(as_json=True)["running"]
    assert time.monotonic() - began < 5
    assert (running["asset"], running["run_id"], running["process"], running["state"]) == (
        "student/udrl", "run-of-another", child.pid, "running",
    )  # fmt: skip
    child.send_signal(signal.SIGKILL)
    child.wait()
    found = told(as_json=True)
    assert found["running"] == []
    assert [(f["asset"], f["cause"], f["run_id"]) for f in found["failed"]] == [("student/udrl", "killed", "run-of-another")]
    with Workspace(load()).lock("student/udrl"):
        pass
    assert told(as_json=True)["failed"] == []


def test_while_the_ledger_is_written_to_the_rest_is_told(told: Callable[..., Any], another: Callable[..., subprocess.Popen[str]]) -> None:
    another("write")
    began = time.monotonic()
    lines = told()
    assert time.monotonic() - began < 5
    assert lines[0] == "ledger     another process writes to it just now: ask again"
    assert "another process holds the file" in told(as_json=True)["locked"]
    assert any(line.startswith("running    student/udrl for ") for line in lines)


def test_a_run_of_dagster_is_running_queued_or_was_killed(told: Callable[..., Any]) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with open_instance() as instance:
        for name, status, process in (
            ("alive", dg.DagsterRunStatus.STARTED, os.getpid()),
            ("dead", dg.DagsterRunStatus.STARTED, child.pid),
            ("waits", dg.DagsterRunStatus.NOT_STARTED, None),
        ):
            instance.add_run(dg.DagsterRun("job", run_id=name, status=status, tags=process_tag(name, process) if process else {}))
    found = told(as_json=True)
    assert {r["run_id"]: r["state"] for r in found["running"]} == {"alive": "running", "waits": "queued"}
    assert [(f["run_id"], f["cause"]) for f in found["failed"]] == [("dead", "killed")]


def test_settings_that_cannot_be_read_are_an_error(project: Path, params: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert assets_status.main(assets_status.Wish({"student.sed": 3})) == 2
    assert "unknown key student.sed" in capfd.readouterr().err


def test_the_real_command_answers(params: Path) -> None:
    (params.parent / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    program = Path(sys.executable).with_name("udrl")
    done = subprocess.run(
        [str(program), "status"], cwd=params.parent, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "80"}
    )
    assert (done.returncode, "none yet" in done.stdout, done.stderr) == (0, True, "")
    assert "stale      intents: has no version yet" in done.stdout.splitlines()


def test_a_reader_that_has_read_enough_gets_no_traceback(params: Path) -> None:
    (params.parent / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    command = f"{Path(sys.executable).with_name('udrl')} status | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", command], cwd=params.parent, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
