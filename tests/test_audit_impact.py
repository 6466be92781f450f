"""`udrl audit impact`: what a row, an idea, a source or a run has touched."""

import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from conftest import FakeEngine
from udrl_pipeline import corpus
from udrl_pipeline.audit.forget import forget_intent
from udrl_pipeline.audit.impact import Impact, impact_of_intent, impact_of_row, impact_of_run, impact_of_source
from udrl_pipeline.cli import main
from udrl_pipeline.errors import CorruptArtifact, UdrlError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.names import ROW_COLUMNS, SEEN_FILE
from udrl_pipeline.store.workspace import Quarantined, Version, Workspace

pytestmark = pytest.mark.usefixtures("kept_open")


def put(workspace: Workspace, asset: str, version: str, parents: dict[str, str], files: dict[str, pd.DataFrame], **more: object) -> Version:
    def write(folder: Path) -> None:
        for name, frame in files.items():
            frame.to_parquet(folder / name)

    return workspace.record(
        asset, version=version, fingerprint=version, code_version="c", rows=1, parents=parents, write=write,
        **({"facts": {}, "params": {}} | more),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def workspace(load: Callable[..., Settings], teacher: FakeEngine) -> Workspace:
    """Run 1: two ideas, a corpus, dataset d1 (all rows but the first), student s1 that read some of them. Run 2: a third idea, d2, s2
    that goes on from s1, student `sft` that read other rows, and a report on them."""
    for run, ideas in (("run-1", 2), ("run-2", 3)):
        workspace = Workspace(load({"intents.builtin": ideas}), run_id=run)
        workspace.begin_run()
        intents.build(workspace)
        made = corpus.build(workspace)
        rows = corpus.read_rows(workspace, made.version).assign(split="train", reward=0.9, quality=4, relevance=0.5)
        dataset, student = f"d{run[-1]}", f"s{run[-1]}"
        aside = Quarantined(rows.row_key[0], "finished", "", rows.text[0])
        put(workspace, "labeled_dataset", dataset, {"teacher_corpus": made.version}, {"rows.parquet": rows.tail(-1)}, quarantined=[aside])
        seen = pd.DataFrame({"row_key": rows.row_key[1:4] if run == "run-1" else rows.row_key[4:5], "times": 2})
        parents = {"labeled_dataset": dataset} | ({"student/udrl": "s1"} if run == "run-2" else {})
        put(workspace, "student/udrl", student, parents, {SEEN_FILE: seen})
    put(workspace, "student/sft", "f2", {"labeled_dataset": "d2"}, {SEEN_FILE: seen})
    put(workspace, "evaluation_report", "r2", {"teacher_corpus": made.version, "student/udrl": "s2", "student/sft": "f2"}, {})
    return workspace


def told(found: Impact) -> list[tuple[str, str]]:
    return [(touched.version.version, touched.how) for touched in found.touched]


def first_rows(workspace: Workspace) -> pd.DataFrame:
    return pd.read_parquet(workspace.version_folder("labeled_dataset", "d1") / "rows.parquet")


def corpora(workspace: Workspace) -> list[str]:
    return [version.version for version in workspace.ledger() if version.asset == "teacher_corpus"]


def test_a_row_leads_to_the_students_that_read_it_and_those_that_go_on_from_them(workspace: Workspace) -> None:
    found = impact_of_row(workspace, first_rows(workspace).row_key.iloc[0])
    one, two = corpora(workspace)
    in_second = [(v, how) for v, how in told(found) if v in (two, "d2")]
    assert [pair for pair in told(found) if pair not in in_second] == [
        (one, "holds 1 row"),
        ("d1", "holds 1 row (1 train)"),
        ("s1", "trained on them, 2 times"),
        ("s2", "goes on from student/udrl s1, which was trained on them"),
        ("f2", "not trained on them"),
        ("r2", "made from a version that holds them"),
    ]
    assert [version for version, _ in in_second] == [two, "d2"]
    assert [touched.version.version for touched in found.touched if touched.learned] == ["s1", "s2"]
    assert found.rows == 1


def test_an_export_is_told_as_what_its_student_is(workspace: Workspace) -> None:
    put(workspace, "student_export/udrl", "e2", {"student/udrl": "s2"}, {})
    put(workspace, "student_export/sft", "x2", {"student/sft": "f2"}, {})
    found = impact_of_row(workspace, first_rows(workspace).row_key.iloc[0])
    assert [(touched.version.version, touched.how, touched.learned) for touched in found.touched][-2:] == [
        ("e2", "the export of student/udrl s2: goes on from student/udrl s1, which was trained on them", True),
        ("x2", "the export of student/sft f2: not trained on them", False),
    ]


def test_a_row_that_was_set_aside_reached_no_student(workspace: Workspace) -> None:
    one, _ = corpora(workspace)
    rows = corpus.read_rows(workspace, one)
    found = dict(told(impact_of_row(workspace, rows.row_key[0])))
    assert found["d1"] == "set aside: finished"
    assert not [
        touched for touched in impact_of_row(workspace, rows.row_key[0]).touched if touched.learned and touched.version.version == "s1"
    ]


def test_a_table_that_cannot_be_read_is_a_typed_error_and_one_that_is_gone_is_told(workspace: Workspace) -> None:
    key = first_rows(workspace).row_key.iloc[0]
    file = workspace.version_folder("labeled_dataset", "d2") / "rows.parquet"
    file.write_bytes(bytes(500))
    with pytest.raises(CorruptArtifact, match=r"d2: files differ from the manifest: rows.parquet \(changed\)(.|\n)*udrl audit verify"):
        impact_of_row(workspace, key)
    file.unlink()
    assert dict(told(impact_of_row(workspace, key)))["d2"] == "its table is gone: whether it holds them is not known"


def test_an_idea_leads_to_the_ideas_the_rows_and_all_that_was_made_from_them(workspace: Workspace) -> None:
    idea = intents.read_intents(workspace, workspace.parents("intents")["intents"])[0]
    found = impact_of_intent(workspace, f"  {idea.text.upper()} ")
    assert found.rows == 3
    assert {touched.version.asset for touched in found.touched} == {
        "intents", "teacher_corpus", "labeled_dataset", "student/udrl", "student/sft", "evaluation_report",
    }  # fmt: skip
    assert {how for version, how in told(found) if version in corpora(workspace)} == {"holds 3 rows"}


def test_an_idea_that_only_stands_in_the_ideas_is_found_there(load: Callable[..., Settings]) -> None:
    workspace = Workspace(load({"intents.builtin": 2}))
    made = intents.build(workspace)
    idea = intents.read_intents(workspace, made.version)[0]
    assert told(impact_of_intent(workspace, idea.text)) == [(made.version, "holds the idea")]


def test_a_source_is_found_by_its_first_digits(workspace: Workspace) -> None:
    digest = str(workspace.settings.teacher.model.sha256)
    found = impact_of_source(workspace, digest[:8])
    assert (found.what, found.rows) == (f"source {digest}", 9)
    one, two = corpora(workspace)
    assert told(found)[:4] == [(one, "holds 6 rows"), ("d1", "holds 5 rows"), ("s1", "made from labeled_dataset d1"), (two, "holds 9 rows")]
    assert {version for version, _ in told(found)} == {one, two, "d1", "d2", "s1", "s2", "f2", "r2"}


def test_a_run_is_what_it_made_what_it_wrote_and_what_came_of_it(workspace: Workspace) -> None:
    found = dict(told(impact_of_run(workspace, "run-2")))
    one, two = corpora(workspace)
    assert found[two] == "holds 3 rows"
    assert found["s2"] == "made by it"
    assert not {one, "d1", "s1"} & found.keys()
    earlier = dict(told(impact_of_run(workspace, "run-1")))
    assert (earlier[one], earlier[two], earlier["s1"]) == ("holds 6 rows", "holds 6 rows", "made by it")


@pytest.mark.parametrize(
    ("ask", "value", "what"),
    [
        (impact_of_row, "nothing", "there is no row nothing"),
        (impact_of_intent, "a green whale", "there is no idea 'a green whale'"),
        (impact_of_source, "zzz", "there is no source 'zzz'"),
        (impact_of_run, "run", "'run' is more than one run"),
    ],
)
def test_what_is_not_there_or_not_clear_is_a_typed_error(
    workspace: Workspace, ask: Callable[[Workspace, str], Impact], value: str, what: str
) -> None:
    with pytest.raises(UdrlError, match=what):
        ask(workspace, value)


def test_the_command_marks_what_is_current_and_gives_json(workspace: Workspace, params: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["audit", "impact", *arguments, "--params", str(params)])
        assert result.exit_code == 0, result.output
        return result.stdout

    key = first_rows(workspace).row_key.iloc[0]
    assert f"row {key}: 1 row in the store" in run("--row", key)
    assert "s2*" in run("--row", key)
    found = json.loads(run("--row", key, "--json"))
    assert {t["version"]: t["current"] for t in found["touched"] if t["asset"].startswith("student/")} == {
        "s1": False,
        "s2": True,
        "f2": True,
    }


def test_the_answer_about_a_forgotten_idea_is_broken_at_80_columns(workspace: Workspace, params: Path) -> None:
    idea = str(first_rows(workspace).intent.iloc[0])
    forget_intent(workspace, idea, "its author asked for it by letter, and again on the telephone")
    result = CliRunner().invoke(main, ["audit", "impact", "--intent", idea, "--params", str(params)])
    heading = list(takewhile(str.strip, result.stdout.splitlines()))
    assert " ".join(heading) == (
        f"idea {idea!r}, forgotten (tombstone 1: its author asked for it by letter, and again on the telephone): 0 rows in the store"
    )
    assert (len(heading), max(map(len, heading)) <= 80) == (2, True)


def test_a_row_is_named_by_the_first_digits_of_its_key(workspace: Workspace, params: Path) -> None:
    def run(command: str, key: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["audit", command, "--row", key, "--params", str(params)])
        return result.exit_code, " ".join((result.stdout + result.stderr).split())

    key = first_rows(workspace).row_key.iloc[0]
    assert run("impact", key[:12]) == run("impact", key)
    assert run("trace", key[:12]) == run("trace", key)
    with workspace.database.writer() as connection:
        columns = ", ".join(ROW_COLUMNS[1:])
        connection.execute(f"INSERT INTO rows (row_key, {columns}) SELECT ?, {columns} FROM rows WHERE row_key = ?", [f"{key[:12]}x", key])
    code, told = run("impact", key[:12])
    assert (code, f"'{key[:12]}' is more than one row -> say which: {key}, {key[:12]}x" in told) == (2, True)


def test_two_questions_at_once_are_a_typed_error(params: Path) -> None:
    result = CliRunner().invoke(main, ["audit", "impact", "--row", "a", "--run", "b", "--params", str(params)])
    assert (result.exit_code, "one question at a time" in result.stderr) == (2, True)
