"""A deployment as a team has it, on a small project: what happens without a click, and what repairs what.

`make proof` runs these (some minutes); `make operations` ends twenty runs in a row.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from benchmarks.operations import __main__ as operations
from benchmarks.operations.deployment import Deployment, Endpoint, wait
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Workspace

DEFAULT = {
    "intents",
    "teacher_corpus",
    "labeled_dataset",
    "student/udrl",
    "student/sft",
    "evaluation_report",
    "student_export/udrl",
    "promotion",
}


def workspace_of(deployment: Deployment) -> Workspace:
    return Workspace(load(deployment.folder / "params.yaml", preset=""))


def runs(deployment: Deployment) -> list[dg.DagsterRun]:
    """Every run, the oldest first."""
    return list(deployment.instance.get_runs())[::-1]


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Deployment]:
    """A daemon without a webserver, that has nothing to do."""
    with Endpoint() as endpoint, Deployment(tmp_path, endpoint.url, webserver=False) as deployment:
        yield deployment


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_file_of_ideas_ends_in_a_promoted_student_and_a_report_and_the_same_file_again_in_nothing(idle: Deployment) -> None:
    idle.turn_on("new_intents")
    (idle.folder / "intents").mkdir()
    ideas = "intent\nred kite over the moor\nblue heron at dusk\n"
    (idle.folder / "intents" / "ideas.csv").write_text(ideas, encoding="utf-8")
    [run] = wait(lambda: runs(idle), 120, "the run")
    assert idle.wait_for_end(run.run_id, 900) == dg.DagsterRunStatus.SUCCESS, idle.failures(run.run_id)
    assert run.tags["udrl/because"] == "new or changed: ideas.csv"
    made = idle.materialised(run.run_id)
    assert made.keys() >= DEFAULT
    workspace = workspace_of(idle)
    assert (workspace.version_folder("evaluation_report", made["evaluation_report"]) / "report.html").exists()
    assert (workspace.version_folder("student/udrl", made["student/udrl"]) / "model.safetensors").exists()
    first = [(entry.action, entry.asset, entry.version) for entry in workspace.promotions()]
    assert sorted(first) == [("promoted", asset, made[asset]) for asset in ("student/sft", "student/udrl")]
    rows = wait(lambda: workspace.current("teacher_corpus"), 1, "the corpus")
    with workspace.database.reader() as connection:
        [(own,)] = connection.execute("SELECT count(*) FROM rows WHERE intent_key = 'red kite over the moor'").fetchall()
    assert (rows.version, own) == (made["teacher_corpus"], 2)

    (idle.folder / "intents" / "more.csv").write_text("intent\ngrey seal on a sandbank\n", encoding="utf-8")
    [_, second] = wait(lambda: found if len(found := runs(idle)) == 2 else None, 120, "the second run")
    assert idle.wait_for_end(second.run_id, 900) == dg.DagsterRunStatus.SUCCESS, idle.failures(second.run_id)
    newer = idle.materialised(second.run_id)["student/udrl"]
    [_, judged] = [entry for entry in workspace.promotions() if entry.asset == "student/udrl"]
    assert (judged.version, judged.figures["against"]) == (newer, made["student/udrl"])
    assert judged.in_use == (newer if judged.action == "promoted" else made["student/udrl"])
    assert judged.report == idle.materialised(second.run_id)["evaluation_report"]

    (idle.folder / "intents" / "ideas.csv").unlink()
    for name in ("ideas.csv", "copy.csv"):
        (idle.folder / "intents" / name).write_text(ideas, encoding="utf-8")
    ticks = len(_ticks(idle))
    wait(lambda: len(_ticks(idle)) >= ticks + 4, 120, "four more looks")
    assert len(runs(idle)) == 2


def _ticks(deployment: Deployment, sensor: str = "new_intents") -> list[Any]:
    [state] = [state for state in deployment.instance.all_instigator_state() if state.instigator_name == sensor]
    return list(deployment.instance.get_ticks(state.instigator_origin_id, state.selector_id))


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Webserver, daemon and code server, with a whole run behind them. Failures are written to told.jsonl."""
    folder = tmp_path_factory.mktemp("team")
    script = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"
    hook = {"UDRL_ON_FAILURE_COMMAND": f'{sys.executable} -c "{script}" {folder}/told.jsonl'}
    with Endpoint() as endpoint, Deployment(folder, endpoint.url, webserver=True, environment=hook) as deployment:
        deployment.turn_on("tell_of_failures")
        run = deployment.launch("everything")
        assert deployment.wait_for_end(run, 900) == dg.DagsterRunStatus.SUCCESS, deployment.failures(run)
        assert deployment.materialised(run).keys() >= DEFAULT
        yield deployment


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_wrong_value_ends_the_run_before_any_work_and_the_hook_is_told(team: Deployment) -> None:
    with pytest.raises(ValueError, match="is not valid for expected type"):
        team.launch("everything", config={"student": {"seed": "many"}})
    run = team.launch("everything", config={"teacher": {"samples": 0}})
    assert team.wait_for_end(run) == dg.DagsterRunStatus.FAILURE
    assert team.materialised(run) == {}
    assert "teacher.samples = 0: Input should be greater than or equal to 1" in "".join(team.failures(run))
    told = team.folder / "told.jsonl"
    wait(lambda: told.exists() and run in told.read_text(encoding="utf-8"), 90, "the hook")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cancelled_run_really_ends_and_is_rerun_from_its_failure(team: Deployment) -> None:
    chosen = {"student": {"seed": 21, "epochs": 20.0}}  # long enough to be cancelled in
    run = team.launch("everything", config=chosen)
    team.wait_for_step(run, "student/udrl")
    before = team.materialised(run)
    team.cancel(run)
    assert team.wait_for_end(run, 60) == dg.DagsterRunStatus.CANCELED
    wait(lambda: not team.of_runs(), 30, "the end of its processes")
    wait(lambda: not any(team.slots().values()), 60, "a free pool")
    assert team.locks_held() == []
    again = team.rerun_from_failure(run)
    assert team.wait_for_end(again) == dg.DagsterRunStatus.SUCCESS, team.failures(again)
    made = team.materialised(again)
    assert made.keys() >= {"student/udrl", "evaluation_report"}
    assert not made.keys() & before.keys()  # what was made before the cancellation is not made again
    assert workspace_of(team).parents("labeled_dataset") == {"labeled_dataset": before["labeled_dataset"]}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_one_recipe_is_trained_alone(team: Deployment) -> None:
    run = team.launch("retrain_only", config={"recipes": ["sft"]})
    assert team.wait_for_end(run) == dg.DagsterRunStatus.SUCCESS, team.failures(run)
    assert set(team.materialised(run)) == {"student/sft", "student_export/sft"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_one_task_is_a_run_of_its_own_and_the_next_whole_run_finds_its_versions_again(team: Deployment) -> None:
    both = {"tasks": {"names": ["image", "search"]}}
    whole = team.launch("everything", config=both)
    assert team.wait_for_end(whole) == dg.DagsterRunStatus.SUCCESS, team.failures(whole)
    one = team.launch("everything", config={"tasks": {"names": ["search"]}})
    assert team.wait_for_end(one) == dg.DagsterRunStatus.SUCCESS, team.failures(one)
    corpus = workspace_of(team).current("teacher_corpus")
    assert corpus
    assert set(corpus.facts["rows_per_task"]) == {"search"}
    assert corpus.version == team.materialised(one)["teacher_corpus"]
    [told] = [entry for entry in workspace_of(team).promotions() if entry.version == team.materialised(one)["student/udrl"]]
    assert (told.action, told.reason) == ("refused", "it does not write image, which the student in use does")
    again = team.launch("everything", config=both)
    assert team.wait_for_end(again) == dg.DagsterRunStatus.SUCCESS, team.failures(again)
    assert team.materialised(again) == team.materialised(whole)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_was_wiped_is_found_again_and_what_was_deleted_is_rebuilt(team: Deployment) -> None:
    whole = team.launch("everything")
    assert team.wait_for_end(whole) == dg.DagsterRunStatus.SUCCESS, team.failures(whole)
    made = team.materialised(whole)
    for asset in DEFAULT:
        team.wipe(asset)
    assert team.instance.get_latest_materialization_event(dg.AssetKey("intents")) is None
    folder = workspace_of(team).version_folder("labeled_dataset", made["labeled_dataset"])
    folder.rename(folder.with_name("moved-away"))
    again = team.launch("everything")
    assert team.wait_for_end(again) == dg.DagsterRunStatus.SUCCESS, team.failures(again)
    assert team.materialised(again) == made
    assert (folder / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_automation_makes_each_asset_once_when_there_are_new_ideas_and_nothing_when_there_are_none(team: Deployment) -> None:
    def automatic() -> list[dg.DagsterRun]:
        return [run for run in runs(team) if run.tags.get("udrl/because") == "new data version"]

    def look_twice() -> None:
        ticks = len(_ticks(team, "by_data_version"))
        wait(lambda: len(_ticks(team, "by_data_version")) >= ticks + 2, 180, "two more looks")

    whole = team.launch("everything")
    assert team.wait_for_end(whole) == dg.DagsterRunStatus.SUCCESS, team.failures(whole)
    before = team.materialised(whole)
    team.turn_on("by_data_version")
    wait(lambda: _ticks(team, "by_data_version"), 120, "a look")
    look_twice()
    assert automatic() == []

    settings = yaml.safe_load((team.folder / "params.yaml").read_text(encoding="utf-8"))
    settings["intents"]["builtin"] += 6
    (team.folder / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    first = team.launch(assets=["intents"])
    assert team.wait_for_end(first) == dg.DagsterRunStatus.SUCCESS, team.failures(first)
    wait(lambda: any("promotion" in team.materialised(run.run_id) for run in automatic()), 900, "the last asset")
    look_twice()
    assert {run.status for run in automatic()} == {dg.DagsterRunStatus.SUCCESS}
    made = [item for run in automatic() for item in team.materialised(run.run_id).items()]
    assert sorted(asset for asset, _ in made) == sorted(DEFAULT - {"intents"})
    assert {asset for asset, version in made if before[asset] == version} <= {"promotion"}  # which tells who is in use


# -- the proof's own arithmetic ---------------------------------------------------------------------------------------------


def ending(**given: Any) -> operations.Ending:
    values: dict[str, Any] = {
        "how": "cancel", "where": "student/udrl", "engine": "transformers", "after_s": 1.0, "ended_s": 1.0, "gone_s": 2.0, "free_s": 3.0,
        "status": "canceled", "children": 2, "locks": [],
    }  # fmt: skip
    return operations.Ending(**(values | given))


def test_the_plan_ends_runs_in_every_way_in_every_asset() -> None:
    planned = operations.plan()
    assert len(planned) == 20
    assert {(how, where) for how, where, _ in planned} == {(how, where) for how in operations.HOW for where in operations.WHERE}


def test_each_kill_gives_its_asset_new_work() -> None:
    found = [str(operations.config(number, where, engine)) for number, (_, where, engine) in enumerate(operations.plan())]
    assert len(set(found)) == 20


def test_the_table_counts_what_was_left() -> None:
    lines = operations.table([ending(), ending(ended_s=2.0), ending(how="worker", free_s=None, gone_s=None, locks=["intents.lock"])])
    assert lines == [
        ("Terminate in the UI", 2, "1.5, at most 2.0", "2.0, at most 2.0", "3.0, at most 3.0", 0, 0, 0),
        ("SIGKILL of the run's worker", 1, "1.0, at most 1.0", "-", "-", 1, 1, 1),
        ("all", 3, "1.0, at most 2.0", "2.0, at most 2.0", "3.0, at most 3.0", 1, 1, 1),
    ]


def test_what_was_left_is_harm() -> None:
    assert ending().harm == []
    assert ending(ended_s=None, free_s=None, locks=["intents.lock"]).harm == ["run under way after 60 s", "slot after 60 s", "intents.lock"]
