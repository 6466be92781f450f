"""`udrl audit export`: the ledger as OpenLineage events and as JSON."""

import json
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from test_audit import record
from udrl_pipeline.audit.export import as_json, as_openlineage
from udrl_pipeline.cli import main
from udrl_pipeline.store.workspace import Expected, Workspace

pytestmark = pytest.mark.usefixtures("kept_open")


@pytest.fixture
def made(workspace: Workspace) -> Workspace:
    """Ideas, a corpus of a teacher, a dataset that failed and one that passed."""
    workspace.begin_run()
    record(workspace, "intents", "i1")
    record(workspace, "teacher_corpus", "c1", parents={"intents": "i1"}, params={"source": "digest"}, rows=7)
    for version, passed in (("d1", False), ("d2", True)):
        checks = [Expected("length", passed, True, {"broken": 3}), Expected("drift", True, False, {})]
        record(workspace, "labeled_dataset", version, parents={"teacher_corpus": "c1"}, rows=5, expectations=checks)
    return workspace


def events(workspace: Workspace) -> list[dict[str, object]]:
    return [json.loads(line) for line in as_openlineage(workspace, "shop")]


def test_every_making_is_an_event_with_its_inputs_and_outputs(made: Workspace) -> None:
    def named(datasets: list[dict[str, object]]) -> list[tuple[object, object]]:
        return [(d["name"], d["facets"]["version"]["datasetVersion"]) for d in datasets]  # type: ignore[index]

    assert [
        (e["eventType"], e["job"]["name"], named(e["inputs"]), named(e["outputs"]))  # type: ignore[index,arg-type]
        for e in events(made)
    ] == [
        ("COMPLETE", "intents", [], [("intents", "i1")]),
        ("COMPLETE", "teacher_corpus", [("intents", "i1"), ("teacher", "digest")], [("teacher_corpus", "c1")]),
        ("FAIL", "labeled_dataset", [("teacher_corpus", "c1")], []),
        ("COMPLETE", "labeled_dataset", [("teacher_corpus", "c1")], [("labeled_dataset", "d2")]),
    ]


def test_rows_checks_and_the_run_are_facets(made: Workspace) -> None:
    *_, last = events(made)
    output = last["outputs"][0]  # type: ignore[index]
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 5
    told = [(a["assertion"], a["success"], a["severity"]) for a in output["facets"]["dataQualityAssertions"]["assertions"]]
    assert told == [("length", True, "error"), ("drift", True, "warn")]
    assert last["run"]["facets"]["parent"]["job"]["name"] == "udrl run"  # type: ignore[index]


def test_runs_have_uuids_that_stay_the_same(made: Workspace) -> None:
    first, second = events(made), events(made)
    assert first == second
    ids = [str(event["run"]["runId"]) for event in first]  # type: ignore[index]
    assert len({uuid.UUID(run) for run in ids}) == 4


def test_the_json_holds_runs_versions_checks_and_no_text(made: Workspace) -> None:
    found = as_json(made)
    assert [run["run_id"] for run in found["runs"]] == ["run-1"]
    assert found["runs"][0]["params"]["teacher"]["samples"] == 1
    assert [(v["asset"], v["version"], v["parents"], v["current"]) for v in found["versions"]] == [
        ("intents", "i1", {}, True),
        ("teacher_corpus", "c1", {"intents": "i1"}, True),
        ("labeled_dataset", "d1", {"teacher_corpus": "c1"}, False),
        ("labeled_dataset", "d2", {"teacher_corpus": "c1"}, True),
    ]
    assert found["versions"][2]["checks"][0] == {"name": "length", "passed": False, "blocking": True, "observed": {"broken": 3}}


@pytest.mark.parametrize(("file", "why"), [("no/such/folder", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_written_is_a_typed_error(made: Workspace, params: Path, tmp_path: Path, file: str, why: str) -> None:
    arguments = ["audit", "export", "--format", "json", "--output", str(tmp_path / file), "--params", str(params)]
    result = CliRunner().invoke(main, arguments)
    told = f"error  {tmp_path / file}: cannot be written ({why})\n  -> name another --output\n"
    assert (result.exit_code, result.stderr) == (2, told)


def test_the_command_writes_a_file(made: Workspace, params: Path, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    arguments = ["audit", "export", "--format", "openlineage", "--output", str(file), "--params", str(params)]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (0, f"4 lines in {file}\n")
    assert [json.loads(line)["job"]["namespace"] for line in file.read_text().splitlines()] == ["udrl_pipeline"] * 4
    result = CliRunner().invoke(main, ["audit", "export", "--format", "json", "--params", str(params)])
    assert len(json.loads(result.stdout)["versions"]) == 4
