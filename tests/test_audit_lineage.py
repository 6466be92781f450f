"""`udrl audit trace`: up to the teacher and the ideas, down to the reports, and one row through all versions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import FakeEngine
from udrl_pipeline import corpus
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.forget import forget_row
from udrl_pipeline.audit.lineage import downwards, origin, trace_row, upwards
from udrl_pipeline.cli import main
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Quarantined, Version, Workspace

pytestmark = pytest.mark.usefixtures("kept_open")


@pytest.fixture
def workspace(load: Callable[..., Settings], teacher: FakeEngine) -> Workspace:
    """Ideas and a corpus of the real kind; a dataset that holds all rows but one, a student and a report."""
    workspace = Workspace(load({"intents.builtin": 3}), run_id="run-1")
    workspace.begin_run()
    intents.build(workspace)
    made = corpus.build(workspace)
    rows = corpus.read_rows(workspace, made.version).assign(split="train", reward=0.9, quality=4)
    aside = Quarantined(rows.row_key[0], "finished", "", rows.text[0])
    scored = {"scorer": "f00d", "quality_bins": 5}
    put(workspace, "labeled_dataset", "d1", {"teacher_corpus": made.version}, rows=rows.tail(-1), params=scored, quarantined=[aside])
    put(workspace, "student/udrl", "s1", {"labeled_dataset": "d1"})
    put(workspace, "student/udrl", "s2", {"labeled_dataset": "d1", "student/udrl": "s1"})
    put(workspace, "evaluation_report", "r1", {"labeled_dataset": "d1", "student/udrl": "s2"})
    return workspace


def put(workspace: Workspace, asset: str, version: str, parents: dict[str, str], rows: object = None, **more: object) -> Version:
    def write(folder: Path) -> None:
        if rows is not None:
            rows.to_parquet(folder / "rows.parquet")  # type: ignore[attr-defined]

    return workspace.record(
        asset, version=version, fingerprint=version, code_version="c", rows=1, parents=parents, facts={}, write=write,
        **{"params": {}} | more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_report_leads_up_to_the_teacher_and_the_ideas(workspace: Workspace) -> None:
    report = workspace.find("evaluation_report", "r1")
    assert report is not None
    assert [(depth, version.asset, again) for depth, version, again in upwards(Book(workspace), report).walk()] == [
        (0, "evaluation_report", False),
        (1, "labeled_dataset", False), (2, "teacher_corpus", False), (3, "intents", False),
        (1, "student/udrl", False), (2, "labeled_dataset", True), (2, "student/udrl", False), (3, "labeled_dataset", True),
    ]  # fmt: skip
    origins = {version.asset: origin(version) for _, version, _ in upwards(Book(workspace), report).walk()}
    assert origins["intents"] == {"built-in ideas": 3, "files": {}}
    assert origins["teacher_corpus"]["teacher"] == workspace.settings.teacher.model.sha256
    assert (origins["labeled_dataset"], origins["student/udrl"]) == ({"scorer": "f00d"}, {})


def test_a_dataset_leads_down_to_the_students_and_reports(workspace: Workspace) -> None:
    dataset = workspace.find("labeled_dataset", "d1")
    assert dataset is not None
    assert [(depth, v.version, again) for depth, v, again in downwards(Book(workspace), dataset).walk()] == [
        (0, "d1", False), (1, "s1", False), (2, "s2", False), (3, "r1", False), (1, "s2", True), (1, "r1", True),
    ]  # fmt: skip


def test_what_many_ways_lead_to_is_followed_once(workspace: Workspace) -> None:
    """Every round is made from the student and the pool before it: after 20 rounds a tree of all ways would have millions of leaves."""
    pool, student = {"labeled_dataset": "d1"}, {"student/udrl": "s2"}
    for n in range(20):
        put(workspace, "explored_rows", f"p{n}", {"labeled_dataset": "d1", **pool, **student})
        pool = {"explored_rows": f"p{n}"}
        put(workspace, "student/udrl-rounds", f"r{n}", {**pool, **student})
        student = {"student/udrl-rounds": f"r{n}"}
    last = workspace.find("student/udrl-rounds", "r19")
    assert last is not None
    up = upwards(Book(workspace), last)
    assert len([version for _, version, again in up.walk() if not again]) == 40 + len(["d1", "s1", "s2", "corpus", "intents"])
    told = json.dumps(up.as_dict())
    assert told.count('"version": "s1"') == 1
    assert told.count('"next"') == 45


def test_a_row_is_followed_through_every_version(workspace: Workspace) -> None:
    made = workspace.current("teacher_corpus")
    assert made is not None
    rows = corpus.read_rows(workspace, made.version)
    found = trace_row(workspace, Book(workspace), rows.row_key[1])
    assert {name: found.row[name] for name in ("text", "source", "run_id")} == {
        "text": rows.text[1], "source": workspace.settings.teacher.model.sha256, "run_id": "run-1",
    }  # fmt: skip
    assert found.places == [
        {"asset": "teacher_corpus", "version": made.version, "asked_words": rows.asked_words[1]},
        {"asset": "labeled_dataset", "version": "d1", "split": "train", "reward": 0.9, "quality": 4},
    ]
    assert [touched.version.version for touched in found.touched] == ["s1", "s2", "r1"]


def test_a_row_that_was_set_aside_touched_no_student(workspace: Workspace) -> None:
    made = workspace.current("teacher_corpus")
    assert made is not None
    found = trace_row(workspace, Book(workspace), corpus.read_rows(workspace, made.version).row_key[0])
    assert found.places[-1] == {"asset": "labeled_dataset", "version": "d1", "set aside": "finished"}
    assert found.touched == []


def test_a_row_that_nobody_wrote_is_a_typed_error(workspace: Workspace) -> None:
    with pytest.raises(UdrlError, match="there is no row 'nothing'"):
        trace_row(workspace, Book(workspace), "nothing")


def test_the_command_shows_the_tree_and_gives_json(workspace: Workspace, params: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["audit", "trace", *arguments, "--params", str(params)])
        assert result.exit_code == 0, result.output
        return result.stdout

    told = run("d1")
    assert told.index("made from") < told.index("teacher_corpus") < told.index("used by") < told.index("evaluation_report r1")
    assert told.startswith("made by run run-1\nmade from\n  labeled_dataset d1  ")
    assert f"teacher: {workspace.settings.teacher.model.sha256}" in told
    found = json.loads(run("d1", "--json"))
    assert (found["made"]["run_id"], found["made"]["params"]) == ("run-1", {"scorer": "f00d", "quality_bins": 5})
    assert [node["version"] for node in found["down"]["next"]] == ["s1", "s2", "r1"]
    key = corpus.read_rows(workspace, workspace.parents("teacher_corpus")["teacher_corpus"]).row_key[1]
    assert json.loads(run("--row", key, "--json"))["places"][1]["quality"] == 4
    assert "split=train reward=0.9 quality=4" in " ".join(run("--row", key).split())


def test_however_deep_it_goes_the_tree_keeps_to_80_columns(workspace: Workspace, params: Path) -> None:
    for n in range(3, 8):
        put(workspace, "student/udrl", f"s{n}", {"student/udrl": f"s{n - 1}"})
    forget_row(workspace, corpus.read_rows(workspace, workspace.parents("teacher_corpus")["teacher_corpus"]).row_key[1], "it was asked")
    lines = CliRunner().invoke(main, ["audit", "trace", "s7", "--params", str(params)]).stdout.splitlines()
    digest = lines.index(f"{' ' * 16}{workspace.settings.teacher.model.sha256}")
    assert (lines[digest - 1].strip(), max(map(len, lines)) <= 80) == ("teacher:", True)


def test_a_trace_of_nothing_is_a_typed_error(params: Path) -> None:
    result = CliRunner().invoke(main, ["audit", "trace", "--params", str(params)])
    assert result.exit_code == 2
    assert "name a version, or a row" in " ".join(result.stderr.split())
