"""Rows on a cluster: what a worker does is tested without one; `make cluster` (slow) starts real ones and kills their nodes."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from pyarrow import parquet

from assets.jobs import DEFAULT
from conftest import REPOSITORY, FakeEngine, of_preset, ray_nodes
from servers import free_port, postgres_server
from udrl_pipeline import cluster, corpus, dataset, rewards
from udrl_pipeline.audit.verify import verify
from udrl_pipeline.cluster import PLAN, SHARDS, Sizes, Told, _Worker, shard_rows
from udrl_pipeline.errors import ClusterError, ModelError, StoreFull, TeacherError
from udrl_pipeline.evaluation import report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import RaySettings, Settings
from udrl_pipeline.settings import load as load_settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import training

ROWS = pd.DataFrame({"row_key": [f"k{n}" for n in range(8)], "text": [f"text {n}" for n in range(8)]})


class Upper:
    """Work that fails as told; counts what it was asked in `asked`."""

    def __init__(self, asked: list[list[str]], fails: Callable[[list[str]], Exception | None] = lambda keys: None) -> None:
        self.asked, self.fails = asked, fails

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        self.asked.append(rows.row_key.tolist())
        if error := self.fails(rows.row_key.tolist()):
            raise error
        return pd.DataFrame({"row_key": rows.row_key, "made": rows.text.str.upper()})

    def close(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet.write_table(pa.Table.from_pandas(ROWS, preserve_index=False), tmp_path / PLAN, row_group_size=4)
    return tmp_path


def worker(folder: Path, start: Callable[[], Any], first: int = 2, attempts: int = 3) -> _Worker:
    return _Worker(folder, start, Sizes(4, first, lambda size, seconds: size), attempts)


def ask(worker: _Worker, shard: int) -> Told:
    return pickle.loads(worker({"shard": [shard]})["told"][0])


def made(folder: Path, told: Told) -> list[str]:
    return sorted(key for part in told.parts for key in pd.read_parquet(folder / part).row_key)


def test_a_shard_is_made_part_by_part(folder: Path) -> None:
    asked: list[list[str]] = []
    told = ask(worker(folder, lambda: Upper(asked)), 1)
    assert asked == [["k4", "k5"], ["k6", "k7"]]
    assert (made(folder, told), told.left, told.reason, told.fatal) == (["k4", "k5", "k6", "k7"], [], "", None)
    assert pd.read_parquet(folder / told.parts[0]).columns.tolist() == ["row_key", "made"]


def test_a_worker_goes_on_behind_the_last_part_of_one_that_died(folder: Path) -> None:
    asked: list[list[str]] = []
    first = worker(folder, lambda: Upper(asked, lambda keys: SystemExit() if keys == ["k2", "k3"] else None))  # type: ignore[arg-type,return-value]
    with pytest.raises(SystemExit):
        first({"shard": [0]})
    told = ask(worker(folder, lambda: Upper(asked)), 0)
    assert asked == [["k0", "k1"], ["k2", "k3"], ["k2", "k3"]]
    assert made(folder, told) == ["k0", "k1", "k2", "k3"]


def test_a_shard_that_fails_three_times_tells_its_rows_and_why_and_keeps_its_parts(folder: Path) -> None:
    asked: list[list[str]] = []
    poisoned = worker(folder, lambda: Upper(asked, lambda keys: TeacherError("no such word") if "k2" in keys else None))
    told = ask(poisoned, 0)
    assert (made(folder, told), told.left, told.reason, told.fatal) == (["k0", "k1"], ["k2", "k3"], "no such word", None)
    assert asked == [["k0", "k1"], *3 * [["k2", "k3"]]]
    assert made(folder, ask(poisoned, 1)) == ["k4", "k5", "k6", "k7"]


def test_a_shard_whose_workers_die_three_times_is_given_up(folder: Path) -> None:
    for _ in range(3):
        with pytest.raises(SystemExit):
            worker(folder, lambda: Upper([], lambda keys: SystemExit()))({"shard": [0]})  # type: ignore[arg-type,return-value]
    told = ask(worker(folder, lambda: Upper([])), 0)
    assert (told.parts, told.left, told.reason) == ([], ["k0", "k1", "k2", "k3"], "its worker died 3 times")


def test_an_engine_that_does_not_start_ends_the_run_with_its_own_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    tried: list[int] = []

    def start() -> Upper:
        tried.append(1)
        raise ModelError("points nowhere", where="teacher.model", remedy="correct it")

    told = ask(worker(folder, start), 0)
    assert (len(tried), type(told.fatal), str(told.fatal)) == (3, ModelError, "teacher.model: points nowhere\n  -> correct it")


def test_a_full_disk_and_a_folder_that_is_not_shared_end_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    assert isinstance(ask(worker(folder, lambda: Upper([])), 0).fatal, StoreFull)
    told = ask(worker(folder / "elsewhere", lambda: Upper([])), 0)
    assert isinstance(told.fatal, ClusterError)
    assert "set `scratch` in params.yaml to a folder that every node sees" in str(told.fatal)


def test_a_bug_ends_the_run_and_says_what_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / PLAN).write_bytes(b"no parquet")
    with caplog.at_level(logging.ERROR):
        told = ask(worker(folder, lambda: Upper([])), 0)
    assert "a worker failed: ArrowInvalid" in str(told.fatal)
    assert "Traceback" in caplog.text


def test_each_worker_gets_several_shards_and_no_shard_is_too_large() -> None:
    options = RaySettings(workers=2)
    assert [shard_rows(rows, 384, options) for rows in (1, 8, 80, 2000, 10**7)] == [1, 1, 10, 250, 384]


def test_what_a_killed_run_left_is_taken_over_and_nothing_of_it_made_again(workspace: Workspace) -> None:
    folder = workspace.scratch_folder("teacher_corpus", SHARDS)
    (folder / "old").mkdir()
    pd.DataFrame({"row_key": ROWS.row_key}).to_parquet(folder / "old" / "0.a.part.parquet")
    (folder / "old" / "1.b.part.parquet").write_bytes(b"torn")
    found = list(cluster.work_on(workspace, "teacher_corpus", ROWS, lambda: Upper([]), Sizes(4, 4, lambda size, seconds: 4), 0))
    assert [made.rows.row_key.tolist() for made in found if made.rows is not None] == [ROWS.row_key.tolist()]
    assert not (folder / "old").exists()


def test_without_ray_the_error_says_how_to_install_it(load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    workspace = Workspace(load({"teacher.cluster": "ray"}), "run-1")
    intents.build(workspace)
    with pytest.raises(ClusterError, match=r"Ray is not installed[\s\S]*make ray"):
        corpus.build(workspace)


def at_once(workspace: Workspace, asset: str, rows: pd.DataFrame, start: Any, sizes: Sizes, gpus: float) -> Iterator[cluster.Made]:
    """In place of `work_on`: shard after shard, here."""
    work = start()
    for begin in range(0, len(rows), sizes.shard):
        yield cluster.Made(work(rows.iloc[begin : begin + sizes.shard]))


def test_shards_give_the_corpus_and_the_scores_of_one_process(
    load: Callable[..., Settings], teacher: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "work_on", at_once)
    monkeypatch.setattr(rewards, "CHUNK", 5)
    monkeypatch.setattr(rewards.Scorer, "relevance", lambda self, intents, texts: [0.5 + len(text) % 40 / 100 for text in texts])
    found = []
    for where in ({"artifacts": "here"}, ON_RAY | {"artifacts": "there", "scratch": "work"}):
        workspace = Workspace(load(where), "run-1")
        intents.build(workspace)
        made = corpus.build(workspace)
        scored, number = rewards.score_missing(workspace, corpus.read_rows(workspace, made.version))
        found.append((made.version, made.fingerprint, made.rows, made.facts, number, scored[["row_key", "relevance"]].to_dict("list")))
    assert found[0] == found[1]
    assert found[0][4] == 18


@pytest.mark.parametrize(
    "build", [corpus.build, dataset.build, partial(training.build, recipe_name="udrl")], ids=["corpus", "dataset", "student"]
)
def test_where_the_work_is_done_is_no_part_of_any_version(
    load: Callable[..., Settings], build: Callable[[Workspace], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception): ...

    def reuse(self: Workspace, asset: str, fingerprint: str) -> None:
        raise Asked(fingerprint)

    monkeypatch.setattr(Workspace, "parents", lambda self, *assets: dict.fromkeys(assets, "v"))
    monkeypatch.setattr(Workspace, "reuse", reuse)
    fingerprints = []
    for overrides in ({}, ON_RAY | {"student.cluster": "ray", "student.processes": 4, "scratch": "work", "teacher.tensor_parallel": 2}):
        with pytest.raises(Asked) as asked:
            build(Workspace(load(overrides), "run-1"))
        fingerprints.append(str(asked.value))
    assert fingerprints[0] == fingerprints[1]


def made_versions(settings: Settings) -> list[tuple[str, str, int]]:
    """Version, fingerprint and rows of the intents, the corpus and the dataset."""
    workspace = Workspace(settings, "run-1")
    return [(v.version, v.fingerprint, v.rows) for v in (build(workspace) for build in (intents.build, corpus.build, dataset.build))]


ON_RAY = {"teacher.cluster": "ray", "rewards.cluster": "ray", "ray.workers": 3}


def test_rows_of_a_shard_that_failed_are_set_aside_and_asked_for_again(
    load: Callable[..., Settings], teacher: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(load(ON_RAY), "run-1")
    intents.build(workspace)

    def all_but_the_last(
        workspace: Workspace, asset: str, rows: pd.DataFrame, start: Any, sizes: Sizes, gpus: float
    ) -> Iterator[cluster.Made]:
        yield cluster.Made(start()(rows.iloc[:-2]), rows.row_key.tolist()[-2:], "out of memory")

    monkeypatch.setattr(cluster, "work_on", all_but_the_last)
    first = corpus.build(workspace)
    with workspace.database.reader() as connection:
        told = connection.execute("SELECT reason, detail, count(*) FROM quarantine WHERE asset = 'teacher_corpus' GROUP BY ALL").fetchall()
    assert (first.rows, told) == (16, [("shard failed", "out of memory", 2)])
    monkeypatch.setattr(cluster, "work_on", lambda workspace, asset, rows, start, sizes, gpus: iter_of(cluster.Made(start()(rows))))
    second = corpus.build(workspace)
    assert (second.rows, second.work["teacher_rows"], second.version == first.version) == (18, 2, False)


def iter_of(made: cluster.Made) -> Iterator[cluster.Made]:
    yield made


# -- with a real cluster ----------------------------------------------------------------------------------------------------------------


def kill_a_node_that_holds(actor: str, cluster: Any, happens: Callable[[], bool]) -> threading.Thread:
    """As soon as something has happened, kill a node with such a worker on it; not the head, where the run is."""
    from ray._private.state import actors

    def wait() -> None:
        while not happens():
            time.sleep(0.02)
        holding = {
            found["Address"]["NodeID"] for found in actors().values() if actor in found["ActorClassName"] and found["State"] == "ALIVE"
        }
        cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id in holding), allow_graceful=False)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_cluster_that_loses_a_node_makes_the_dataset_of_one_process(
    nodes: Any, load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine], tmp_path: Path
) -> None:
    small = {"intents.builtin": 60, "quality.min_rows_per_task": 5}
    use_engine(FakeEngine())
    here = made_versions(load(small | {"artifacts": "here"}))
    use_engine(FakeEngine(seconds_per_row=0.15))
    on_ray = small | ON_RAY | {"ray.address": nodes.address, "artifacts": "there", "scratch": "work"}
    killed = kill_a_node_that_holds("_Worker", nodes, lambda: any((tmp_path / "work").rglob("*.part.parquet")))
    there = made_versions(load(on_ray))
    killed.join(timeout=1)
    assert not killed.is_alive()
    assert len(nodes.list_all_nodes()) == 2
    assert there == here
    with Workspace(load(on_ray)).database.reader() as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT row_key) FROM rows").fetchall() == [(180, 180)]


#: A student that is trained in seconds, in 60 steps, and a report without the teacher's own model, which the fake one has not.
WHOLE = of_preset("tiny") | {
    "intents.builtin": 80, "quality.min_rows_per_task": 5, "teacher.engine": "server",
    "student.epochs": 3.0, "student.max_steps": 0, "student.batch_rows": 8, "student.save_every": 4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_the_ideas_to_the_report_on_a_cluster_that_loses_a_node_in_the_corpus_and_one_in_the_training(
    nodes: Any, load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine], tmp_path: Path
) -> None:
    udrl = partial(training.build, recipe_name="udrl")
    use_engine(FakeEngine())
    here = Workspace(load(WHOLE | {"artifacts": "here"}), "run-1")
    alone = [build(here) for build in (intents.build, corpus.build, dataset.build, udrl)]

    use_engine(FakeEngine(seconds_per_row=0.15))
    there = {"ray.address": nodes.address, "artifacts": "there", "scratch": "work", "student.cluster": "ray", "student.processes": 2}
    workspace = Workspace(load(WHOLE | ON_RAY | there), "run-1")
    killed = kill_a_node_that_holds("_Worker", nodes, lambda: any((tmp_path / "work").rglob("*.part.parquet")))
    made = [build(workspace) for build in (intents.build, corpus.build, dataset.build)]
    killed.join(timeout=1)
    assert (killed.is_alive(), len(nodes.list_all_nodes())) == (False, 2)

    nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20)  # as who runs a cluster would, or its autoscaler
    killed = kill_a_node_that_holds("RayTrainWorker", nodes, lambda: any((tmp_path / "work").rglob("checkpoints/checkpoint-*")))
    made += [udrl(workspace), report.build(workspace)]
    killed.join(timeout=1)
    assert (killed.is_alive(), len(nodes.list_all_nodes())) == (False, 2)

    assert [(v.asset, v.version, v.fingerprint, v.rows) for v in made[:3]] == [
        (v.asset, v.version, v.fingerprint, v.rows) for v in alone[:3]
    ]
    with workspace.database.reader() as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT row_key) FROM rows").fetchall() == [(240, 240)]
        assert connection.execute("SELECT count(*) FROM quarantine WHERE reason = 'shard failed'").fetchall() == [(0,)]
    student, report_made = made[3:]
    assert (student.fingerprint, student.rows, student.facts["processes"]) == (alone[3].fingerprint, alone[3].rows, 2)
    curves = [
        json.loads((w.version_folder(v.asset, v.version) / "loss.json").read_text()) for w, v in ((here, alone[3]), (workspace, student))
    ]
    assert [[line["step"] for line in curve] for curve in curves] == 2 * [[line["step"] for line in curves[0]]]
    for one, other in zip(*curves, strict=True):
        (kind,) = one.keys() - {"step"}
        assert other[kind] == pytest.approx(one[kind], rel=0.05), (one, other)  # of a batch of eight, in bf16: 2% was seen
    assert {v.asset: v.version for v in made[1:4]}.items() <= report_made.parents.items()
    assert "<html" in (workspace.version_folder(report.ASSET, report_made.version) / "report.html").read_text(encoding="utf-8")
    assert verify(workspace) == []


# -- runs of Dagster on a cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """deploy/ray with a Postgres and a Ray cluster of its own, whose nodes have the environment that docs/deploy.md asks for.

    The project of the runs is the preset `tiny`.
    """
    pytest.importorskip("dagster_ray", reason="dagster-ray is not installed (`make ray`)")
    port, project = free_port(), tmp_path / "project"
    (project / "postgres").mkdir(parents=True)
    for name in ("params.yaml", "presets"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, project / name)
    tiny = (project / "presets" / "tiny.yaml").read_text(encoding="utf-8")
    assert "builtin: 300" in tiny
    (project / "presets" / "tiny.yaml").write_text(tiny.replace("builtin: 300", "builtin: 60"), encoding="utf-8")  # whose rows are recorded
    shutil.copy(REPOSITORY / "deploy" / "ray" / "dagster.yaml", project)
    with postgres_server(project / "postgres") as database:
        environment = {
            "UDRL_POSTGRES_HOST": "127.0.0.1", "UDRL_POSTGRES_PORT": str(database), "UDRL_POSTGRES_USER": "udrl",
            "UDRL_POSTGRES_PASSWORD": "unused", "UDRL_POSTGRES_DB": "udrl", "UDRL_DAGSTER_FILES": str(project / "files"),
            "UDRL_PARAMS": str(project / "params.yaml"), "UDRL_PRESET": "tiny", "PYTHONPATH": str(REPOSITORY),
            "DAGSTER_HOME": str(project), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with ray_nodes(include_dashboard=True, dashboard_port=port):
            yield project


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", ["assets.definitions", "assets.on_ray"], ids=["a run", "each step"])
def test_dagster_runs_on_ray_and_its_history_tells_what_the_ledger_tells(deployed: Path, module: str) -> None:
    """The daemon takes the run from the queue and makes it a Ray job; with `assets.on_ray` each of its steps is a job, too."""
    from ray.job_submission import JobSubmissionClient

    dagster = [sys.executable, "-m", "dagster", "job", "launch", "-m", module, "-j", "everything"]
    subprocess.run(dagster, cwd=deployed, check=True, capture_output=True, timeout=200)
    with dg.DagsterInstance.get() as instance, (deployed / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen([sys.executable, "-m", "dagster._daemon", "run", "-m", module], cwd=deployed, stdout=log, stderr=log)
        try:
            (run_id,) = [run.run_id for run in instance.get_runs()]
            while not (run := instance.get_run_by_id(run_id)) or not run.is_finished:
                assert daemon.poll() is None, (deployed / "daemon.log").read_text(encoding="utf-8")[-2000:]
                time.sleep(1)
        finally:
            daemon.terminate()
            daemon.wait(timeout=120)
        events = list(instance.all_logs(run_id))
        jobs = JobSubmissionClient().list_jobs()
        assert run.status == dg.DagsterRunStatus.SUCCESS, "\n".join([event.user_message for event in events[-20:]])
    made = {
        materialised.asset_key.to_user_string(): (materialised.tags or {})[DATA_VERSION_TAG]
        for entry in events
        if entry.dagster_event and entry.dagster_event.is_step_materialization
        for materialised in [entry.dagster_event.step_materialization_data.materialization]
    }
    workspace = Workspace(load_settings(deployed / "params.yaml", "tiny"))
    assert made == {asset: found.version for asset in made if (found := workspace.current(asset))}
    assert sorted(made) == sorted(asset.key.to_user_string() for asset in DEFAULT)
    here = Workspace(load_settings(deployed / "params.yaml", "tiny", {"artifacts": "here"}), "run-1")
    assert made[dataset.ASSET] == [build(here).version for build in (intents.build, corpus.build, dataset.build)][-1]
    checks = [
        entry.dagster_event.asset_check_evaluation_data
        for entry in events
        if entry.dagster_event and entry.dagster_event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    assert checks
    assert [check.check_name for check in checks if not check.passed and check.blocking] == []
    assert any("parameters" in entry.user_message for entry in events if entry.dagster_event is None)  # what the library logs
    of_steps = [job for job in jobs if (job.metadata or {}).get("dagster/op")]
    assert len(jobs) - len(of_steps) == 1
    assert len(of_steps) == (0 if module == "assets.definitions" else len(DEFAULT) + 1)  # and the check of the books
    assert {job.status for job in jobs} == {"SUCCEEDED"}
    assert any(file.stat().st_size for file in (deployed / "files").rglob("*.err"))
