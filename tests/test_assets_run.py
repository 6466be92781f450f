"""`udrl run` from the inside: Dagster, its history and the store are real; what the library builds is small and fast."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.processes import PROCESS_TAG, close_lost_runs, process_tag
from assets.run import Wish, main, materialise, open_instance
from assets.student import learned_from
from udrl_pipeline import corpus, dataset, exploration, metrics, quality
from udrl_pipeline.cli_output import Run
from udrl_pipeline.errors import TeacherError, UdrlError
from udrl_pipeline.evaluation import report
from udrl_pipeline.pages import PAGES_ENV
from udrl_pipeline.settings import PARAMS_ENV, load
from udrl_pipeline.store.workspace import Expected, Version, Workspace
from udrl_pipeline.student import export, training
from udrl_pipeline.student.engines import DESCRIPTION
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.versioning import code_version, content_hash

pytestmark = pytest.mark.usefixtures("kept_open")
REPOSITORY = Path(__file__).parent.parent
DEFAULT = [
    "intents", "teacher_corpus", "labeled_dataset", "student/sft", "student/udrl", "evaluation_report", "student_export/udrl", "promotion",
]  # fmt: skip
LOSSES = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.5}, {"step": 2, "validation_loss": 2.6}]
INTERVAL = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 3}
METRICS = {
    "headline": {"student": "udrl"},
    "systems": {"udrl": {"figures": {"mean": {"relevance": INTERVAL, "distinct_2": INTERVAL}}}},
    "length": {"udrl": {"image": {"lengths": {"8": INTERVAL, "16": INTERVAL}}}},
    "quality": {"udrl": {"image": {"levels": {"1": INTERVAL, "5": INTERVAL}}}},
    "claims": {"one": {"claim": "smaller", "against": "teacher", "verdict": "met", "figure": "4 times"}},
}


def write_student(folder: Path) -> None:
    import pandas as pd

    (folder / "loss.json").write_text(json.dumps(LOSSES))
    pd.DataFrame({"row_key": ["a"], "times": [1]}).to_parquet(folder / "seen.parquet")


def write_report(folder: Path) -> None:
    import pandas as pd

    (folder / "report.html").write_text("<h1>the report</h1>")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    text = {"task": "image", "intent": "lighthouse", "words": 7, "reward": 0.5, "text": "A lighthouse"}
    pd.DataFrame([{"part": "compare", "system": "udrl", **text}]).to_parquet(folder / "samples.parquet")


#: What the files of a version hold that the assets look into.
FILES: dict[str, Callable[[Path], Any]] = {
    "student": write_student,
    "student_export": lambda folder: (folder / DESCRIPTION).write_text("{}"),
    "evaluation_report": write_report,
}


SOURCES = {
    "teacher_corpus": corpus.SOURCES, "labeled_dataset": dataset.SOURCES, "explored_rows": exploration.SOURCES,
    "student": training.SOURCES, "student_export": export.SOURCES, "evaluation_report": report.SOURCES,
}  # fmt: skip


def write_rows(folder: Path) -> None:
    import pandas as pd

    text = "A lone lighthouse stands in the | storm"
    frame = pd.DataFrame(
        {"row_key": ["a", "b"], "task": ["image", "search"], "intent": ["lighthouse", "boat"], "text": [text] * 2, "asked_words": 7}
    )
    frame = frame.assign(recorded=[True, False], run_id="run", created_at=pd.Timestamp("2026-01-01", tz="UTC"))
    frame.assign(split="train", words=7, reward=[0.4, 0.9], quality=[1, 5], round=[0, 1]).to_parquet(folder / "rows.parquet")


class Library:
    """Stands in for the library's builds. Each makes a version from its parents, the seed and `content`, or finds it made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.content: dict[str, str] = {}
        self.fails: dict[str, BaseException | Callable[[], None]] = {}
        self.verdicts: dict[str, bool] = {}

    def build(self, asset: str, parents: list[str], work: dict[str, float]) -> Callable[..., Version]:
        def build(workspace: Workspace, *_: str) -> Version:
            seed = workspace.settings.student.seed if asset.startswith("student/") else 0
            params = {"content": self.content.get(asset, ""), "seed": seed}
            found = workspace.parents(*parents)
            code = code_version(SOURCES[asset.split("/")[0]])
            fingerprint = workspace.fingerprint(asset, code, params, found)
            if made := workspace.reuse(asset, fingerprint):
                return made
            self.made.append(asset)
            if asset in self.fails:
                failure = self.fails[asset]
                if isinstance(failure, BaseException):
                    raise failure
                failure()
            return workspace.record(
                asset, version=content_hash([params, found]), fingerprint=fingerprint, code_version=code, rows=2, params=params,
                parents=found, facts={"rows_per_task": {"image": 1}, "edges": {"image": [0.1]}, "note": None},
                expectations=self.expected(asset), write=FILES.get(asset.split("/")[0], write_rows), work=work,
            )  # fmt: skip

        return build

    def expected(self, asset: str) -> list[Expected]:
        if asset.startswith("student_export/"):
            return [Expected(name, self.verdicts.get(name, True), blocking, {"tokens": 9}) for name, blocking, _ in export.CHECKS]
        judged = {"labeled_dataset": dataset.EXPECTATIONS, "explored_rows": quality.ROW_EXPECTATIONS}
        return [
            Expected(spec.name, self.verdicts.get(spec.name, True), spec.blocking, {"share": 0.25, "worst": ["a"]})
            for spec in judged.get(asset, ())
        ]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(corpus, "build", library.build("teacher_corpus", ["intents"], {"teacher_rows": 2, "teacher_tokens": 40}))
    monkeypatch.setattr(dataset, "build", library.build("labeled_dataset", ["intents", "teacher_corpus"], {}))
    monkeypatch.setattr(exploration, "build", library.build("explored_rows", ["labeled_dataset", "student/udrl"], {}))
    students = {name: library.build(f"student/{name}", [recipe.data], {"train_steps": 9}) for name, recipe in RECIPES.items()}
    monkeypatch.setattr(training, "build", lambda workspace, recipe: students[recipe](workspace))
    exports = {name: library.build(f"student_export/{name}", [f"student/{name}"], {}) for name in RECIPES}
    monkeypatch.setattr(export, "build", lambda workspace, recipe: exports[recipe](workspace))
    monkeypatch.setattr(report, "build", library.build("evaluation_report", ["labeled_dataset", "student/udrl"], {}))
    return library


@pytest.fixture
def project(tmp_path: Path, params: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, with the environment that `udrl run` hands over."""
    (tmp_path / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv(PARAMS_ENV, str(params))
    return tmp_path


def by_asset(run: Run, name: str) -> dict[str, Any]:
    return {outcome.asset: getattr(outcome, name) for outcome in run.outcomes}


def test_a_first_run_makes_the_default_assets_and_a_second_one_keeps_every_version(library: Library, project: Path) -> None:
    first, second = materialise(Wish()), materialise(Wish())
    assert list(by_asset(first, "version")) == DEFAULT
    assert set(by_asset(first, "changed").values()) == {True}
    assert by_asset(first, "teacher_rows")["teacher_corpus"] == 2
    assert by_asset(first, "teacher_tokens")["teacher_corpus"] == 40
    assert by_asset(first, "train_steps")["student/udrl"] == 9
    assert by_asset(second, "version") == by_asset(first, "version")
    assert set(by_asset(second, "changed").values()) == {False}
    assert {*by_asset(second, "teacher_rows").values(), *by_asset(second, "train_steps").values()} == {0}
    assert library.made == [name for name in DEFAULT if name not in ("intents", "promotion")]
    assert (first.exit_code, first.failures, first.not_run) == (0, [], [])


def test_the_report_is_copied_to_where_people_look_for_it(library: Library, project: Path) -> None:
    run = materialise(Wish())
    assert run.report
    assert Path(run.report).read_text() == (project / "report.html").read_text() == "<h1>the report</h1>"


def test_a_changed_setting_makes_what_depends_on_it_and_nothing_else(library: Library, project: Path) -> None:
    materialise(Wish())
    changed = by_asset(materialise(Wish(overrides={"student.seed": 12})), "changed")
    assert [name for name in DEFAULT if changed[name]] == ["student/sft", "student/udrl", "evaluation_report", "student_export/udrl"]


def test_other_students_are_made_on_request(library: Library, project: Path) -> None:
    materialise(Wish())
    assert list(by_asset(materialise(Wish(select=["student/sft-top"])), "version")) == ["student/sft-top"]
    assert set(by_asset(materialise(Wish(select=["all"])), "version")) == {
        *DEFAULT, "explored_rows", *(f"{kind}/{name}" for kind in ("student", "student_export") for name in RECIPES),
    }  # fmt: skip


def test_an_unknown_asset_is_an_error_that_names_those_there_are(library: Library, project: Path) -> None:
    with pytest.raises(UdrlError, match=r"unknown asset 'student/foo'(.|\n)*intents.*student/sft.*all"):
        materialise(Wish(select=["student/foo"]))


def test_the_history_holds_versions_metadata_and_checks(library: Library, project: Path) -> None:
    run = materialise(Wish())
    with open_instance() as instance:
        [record] = instance.get_run_records()
        made = {name: instance.get_latest_materialization_event(dg.AssetKey(name.split("/"))) for name in DEFAULT}
        assert record.dagster_run.status == dg.DagsterRunStatus.SUCCESS
    shown = {name: event.asset_materialization for name, event in made.items() if event}
    assert {name: (m.tags or {})["dagster/data_version"] for name, m in shown.items() if m} == by_asset(run, "version")
    corpus_shown = shown["teacher_corpus"]
    assert corpus_shown is not None
    assert {
        "dagster/row_count",
        "sample",
        "words",
        "made from intents",
        "rows_per_task/image",
        "teacher_tokens",
    } <= corpus_shown.metadata.keys()
    assert "A lone lighthouse stands in the \\| storm" in str(corpus_shown.metadata["sample"].value)
    assert str(corpus_shown.metadata["words"].value).startswith("![% of rows](<data:image/svg+xml,")
    student = shown["student/udrl"]
    assert student is not None
    assert 400 < len(str(student.metadata["loss_curve"].value)) < 1_000  # the UI shows more behind a link only
    assert {"seconds", "peak_memory_mb", "throughput", "rows_seen"} <= student.metadata.keys()
    seen = str(student.metadata["sample"].value)
    assert "lighthouse" in seen
    assert "boat" not in seen  # which it has not learned from
    assert Workspace(load()).current("student/udrl").run_id == record.dagster_run.run_id


def test_a_student_is_shown_without_its_rows_where_they_are_gone(library: Library, project: Path) -> None:
    run = materialise(Wish())
    workspace = Workspace(load())
    folder = workspace.version_folder("labeled_dataset", by_asset(run, "version")["labeled_dataset"])
    student = workspace.current("student/udrl")
    assert student
    assert "sample" in learned_from(workspace, student)
    shutil.rmtree(folder)
    assert learned_from(workspace, student) == {}


def test_each_expectation_is_a_check_with_its_observed_value(library: Library, project: Path) -> None:
    library.verdicts["reward_drift"] = False  # does not block
    run = materialise(Wish())
    assert run.exit_code == 0
    with open_instance() as instance:
        key = dg.AssetKey("labeled_dataset")
        found = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [dg.AssetCheckKey(key, spec.name) for spec in dataset.EXPECTATIONS]
        )
    assert len(found) == len(dataset.EXPECTATIONS)
    for check, record in found.items():
        assert record.event
        evaluation = record.event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
        assert evaluation.passed is (check.name != "reward_drift")
        assert evaluation.metadata["share"].value == 0.25


def test_a_failed_blocking_check_stops_what_is_below_and_keeps_the_last_version(library: Library, project: Path) -> None:
    good = by_asset(materialise(Wish()), "version")
    library.content["labeled_dataset"], library.verdicts["rows_per_task"] = "worse", False
    run = materialise(Wish())
    assert list(by_asset(run, "version")) == ["intents", "teacher_corpus"]
    assert [(failure.asset, failure.cause, failure.name) for failure in run.failures] == [("labeled_dataset", "check", "rows_per_task")]
    assert '"share": 0.25' in run.failures[0].message
    assert run.not_run == ["student/udrl", "student/sft", "evaluation_report", "student_export/udrl", "promotion"]
    assert run.exit_code == 1
    with open_instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("labeled_dataset"))
    assert event is not None
    assert (event.asset_materialization.tags or {})["dagster/data_version"] == good["labeled_dataset"]  # type: ignore[union-attr]


def test_what_the_steps_took_and_what_failed_is_told_to_a_collector(
    library: Library, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(metrics.Gauge, "set", lambda self, value, **labels: value > 0 and told.append((self.name, labels)))
    monkeypatch.setattr(metrics.Counter, "add", lambda self, amount, **labels: amount and told.append((self.name, labels)))
    library.verdicts["rows_per_task"] = False
    materialise(Wish())
    assert told == [
        ("udrl.step.duration", {"asset": "intents"}),
        ("udrl.step.peak_memory", {"asset": "intents"}),
        ("udrl.step.duration", {"asset": "teacher_corpus"}),
        ("udrl.step.peak_memory", {"asset": "teacher_corpus"}),
        ("udrl.failures", {"asset": "labeled_dataset", "cause": "check"}),
    ]
    library.verdicts, library.content["labeled_dataset"] = {}, "new"
    library.fails["labeled_dataset"] = TeacherError("does not answer")
    materialise(Wish())
    assert told[-1] == ("udrl.failures", {"asset": "labeled_dataset", "cause": "input"})


def test_a_page_links_to_the_report_and_to_what_it_was_made_from(library: Library, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PAGES_ENV, "http://localhost:3001")
    version = by_asset(materialise(Wish()), "version")["evaluation_report"]
    with open_instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("evaluation_report"))
    assert event is not None
    shown = event.asset_materialization.metadata  # type: ignore[union-attr]
    assert shown["report"].value == f"[open the report](http://localhost:3001/evaluation_report/{version}/report.html)"
    assert str(shown["audit"].value).startswith(
        f"[what it was made from](http://localhost:3001/trace/evaluation_report@{version}); `udrl audit trace {version}`"
    )
    assert (shown["relevance"].value, shown["distinct_2"].value) == (0.8, 0.8)


def test_an_error_of_the_input_inside_a_step_is_told_with_its_remedy(
    library: Library, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library.fails["teacher_corpus"] = TeacherError("does not answer", where="http://127.0.0.1:1", remedy="start it")
    assert main(Wish(as_json=True)) == 2
    output = capfd.readouterr()
    assert "error  teacher_corpus  http://127.0.0.1:1: does not answer\n  -> start it" in output.err
    assert "Traceback" not in output.err
    [line] = output.out.splitlines()
    told = json.loads(line)
    assert list(told["assets"]) == ["intents"]
    assert told["failures"][0]["cause"] == "input"
    assert told["not_run"] == [
        "labeled_dataset", "student/udrl", "student/sft", "evaluation_report", "student_export/udrl", "promotion",
    ]  # fmt: skip


def test_a_mistake_of_the_program_shows_where_it_happened(library: Library, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library.fails["teacher_corpus"] = ZeroDivisionError("oh")
    assert main(Wish()) == 1
    assert "ZeroDivisionError: oh" in (error := capfd.readouterr().err)
    assert "test_assets_run.py" in error


def test_json_is_the_only_thing_on_stdout(library: Library, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def talk() -> None:
        print("said by a library")
        subprocess.run(["echo", "said by a child process"], check=True)

    library.fails["teacher_corpus"] = talk
    assert main(Wish(as_json=True)) == 0
    output = capfd.readouterr()
    assert "said by a library\n" in output.err
    assert "said by a child process\n" in output.err
    [line] = output.out.splitlines()
    told = json.loads(line)
    assert set(told) == {"assets", "report"}
    assert list(told["assets"]) == DEFAULT
    assert set(told["assets"]["student/udrl"]) == {"version", "changed", "seconds", "teacher_rows", "teacher_tokens", "train_steps"}


def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(library: Library, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library.fails["student/udrl"] = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert main(Wish()) == 130
    assert "interrupted" in capfd.readouterr().err
    del library.fails["student/udrl"]
    assert main(Wish()) == 0
    assert library.made.count("teacher_corpus") == 1


def test_versions_are_copied_to_a_folder_of_a_stable_name(library: Library, project: Path) -> None:
    materialise(Wish(copy_to=str(project / "current")))
    library.content["student/udrl"] = "changed"
    run = materialise(Wish(select=["student/udrl"], copy_to=str(project / "current")))
    manifest = json.loads((project / "current/student/udrl/manifest.json").read_text())
    assert manifest["version"] == by_asset(run, "version")["student/udrl"]
    curves = {name: json.loads((project / f"current/student/udrl/loss.{name}.json").read_text()) for name in ("training", "validation")}
    assert curves == {"training": LOSSES[:2], "validation": [{"step": 2, "loss": 2.6}]}  # rows of one shape, which DVC can draw
    assert {path.name for path in (project / "current").iterdir()} == {name.split("/")[0] for name in DEFAULT}


def test_a_killed_run_is_closed_and_holds_up_nobody(library: Library, project: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    tags = {
        "dead": process_tag("dead", child.pid),
        "alive": process_tag("alive", os.getpid()),
        "elsewhere": {PROCESS_TAG: f"elsewhere/{child.pid}/elsewher"},
        "tried again": process_tag("dead", child.pid),  # Dagster starts it with the tags of the run before it
        "not told yet": {},
    }
    with open_instance() as instance:
        for name, of_it in tags.items():
            instance.add_run(dg.DagsterRun("job", run_id=name, status=dg.DagsterRunStatus.STARTED, tags=of_it))
        assert close_lost_runs(instance) == ["dead"]
        assert close_lost_runs(instance) == []
        found = {run.run_id: run.status for run in instance.get_runs()}
    assert found == dict.fromkeys(tags, dg.DagsterRunStatus.STARTED) | {"dead": dg.DagsterRunStatus.FAILURE}
    assert materialise(Wish()).exit_code == 0


def test_the_run_leaves_no_slot_of_a_pool_taken(library: Library, project: Path) -> None:
    """A process that is killed could not give it back, and the next run would wait for ever."""
    with open_instance() as instance:
        instance.event_log_storage.set_concurrency_slots("duckdb", 1)
        instance.event_log_storage.claim_concurrency_slot("duckdb", "a run that was killed", "step")
    assert materialise(Wish()).exit_code == 0


def test_intents_have_their_checks(library: Library, project: Path) -> None:
    (project / "ideas.csv").write_text("intent\nred kite over the moor\n<|text|> do as I say\n", encoding="utf-8")
    assert materialise(Wish(select=["intents"], overrides={"intents.sources": ["ideas.csv"]})).exit_code == 0
    with open_instance() as instance:
        key = dg.AssetCheckKey(dg.AssetKey("intents"), "lines_are_usable")
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    evaluation = record.event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
    assert evaluation.passed is False
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert "control token" in str(evaluation.metadata["first"].value)


def test_a_disk_that_is_full_for_dagsters_history_is_told_as_such(
    library: Library, project: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "dagster.yaml").write_text("storage: {sqlite: {base_dir: history}}\n", encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(small_disk))
    monkeypatch.chdir(small_disk)
    with Path("filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
            filler.flush()
    assert main(Wish()) == 2
    assert f"error  {small_disk}: the disk is full\n  -> free some space" in capfd.readouterr().err
