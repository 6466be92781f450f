"""The same versions wherever they are kept: on one machine with DuckDB, and on two with S3 and Postgres."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from conftest import FakeEngine, of_preset
from servers import postgres_server, s3_server
from udrl_pipeline import audit, corpus, dataset
from udrl_pipeline.audit.verify import verify
from udrl_pipeline.cli import main
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.evaluation import report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.rewards import Scorer
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.engines import load_student

pytest.importorskip("psycopg2", reason="needs psycopg2 (the extra `postgres`)")
SMALL: dict[str, object] = {"intents.builtin": 20, "quality.min_rows_per_task": 2, "quality.min_reward_std": 0.0}


@pytest.fixture(autouse=True)
def _fast_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    def relevance(self: Scorer, intents: list[str], texts: list[str]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        return np.array([0.3 + len(text) % 50 / 100 for text in texts])

    monkeypatch.setattr(Scorer, "relevance", relevance)


@pytest.fixture
def anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The lines of params.yaml that name a bucket and a database of one's own."""
    folder = tmp_path / "servers"
    folder.mkdir()
    (folder / "postgres").mkdir()
    with s3_server(folder) as address, postgres_server(folder / "postgres") as port:
        import s3fs

        for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("udrl")
        yield {"artifacts": "s3://udrl/project", "store": f"postgresql://udrl@127.0.0.1:{port}/udrl"}
        s3fs.S3FileSystem.clear_instance_cache()


def play(workspace: Workspace) -> dict[str, str]:
    workspace.begin_run()
    return {made.asset: made.version for made in (intents.build(workspace), corpus.build(workspace), dataset.build(workspace))}


def test_two_machines_with_s3_and_postgres_make_what_one_makes_with_duckdb(
    load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine], anywhere: dict[str, object], params: Path
) -> None:
    use_engine(FakeEngine())
    local = Workspace(load(SMALL))
    expected = play(local)

    dies = use_engine(FakeEngine(dies_after=20))
    one = Workspace(load(SMALL | anywhere | {"artifacts_cache": "one"}))
    with pytest.raises(TeacherError):
        play(one)
    rest = use_engine(FakeEngine())
    other = Workspace(load(SMALL | anywhere | {"artifacts_cache": "other"}))
    assert play(other) == expected
    # what one had committed before its teacher died, two chunks, the other did not ask for
    assert dies.batches == [8, 8, 8]
    assert 8 + 8 + rest.rows == len(corpus.read_rows(local, expected[corpus.ASSET]))

    again = use_engine(FakeEngine())
    assert play(one) == expected
    assert again.opened == 0
    assert dataset.read_dataset(one, expected[dataset.ASSET]).equals(dataset.read_dataset(other, expected[dataset.ASSET]))
    assert hashes(one, expected) == hashes(local, expected)
    assert [verify(workspace) for workspace in (local, one, other)] == [[], [], []]
    assert [v.version for v in audit.versions(one)] == [v.version for v in audit.versions(local)]
    chosen = [word for key, value in (SMALL | anywhere | {"artifacts_cache": "third"}).items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(main, ["audit", "verify", "--params", str(params), *chosen])
    assert (done.exit_code, "Traceback" in done.output) == (0, False), done.output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_run_through_the_report_is_the_same_on_s3_and_postgres(
    load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine], anywhere: dict[str, object], params: Path
) -> None:
    """What one machine makes with them, another one finds there: it fetches the student and the report, and makes nothing."""
    whole = of_preset("tiny") | {
        "intents.builtin": 60,
        "quality.min_rows_per_task": 5,
        "quality.min_reward_std": 0.0,
        "teacher.engine": "server",
    }
    builds = (intents.build, corpus.build, dataset.build, partial(training.build, recipe_name="udrl"), report.build)
    use_engine(FakeEngine())
    versions = {}
    for name, where in {"local": {}, "one": anywhere | {"artifacts_cache": "one"}}.items():
        workspace = Workspace(load(whole | where))
        workspace.begin_run()
        versions[name] = {made.asset: made.version for made in (build(workspace) for build in builds)}
        assert verify(workspace) == []
    assert versions["one"] == versions["local"]

    never = use_engine(FakeEngine())
    other = Workspace(load(whole | anywhere | {"artifacts_cache": "other"}))
    other.begin_run()
    found = [build(other) for build in builds]
    assert {made.asset: (made.version, made.made_now) for made in found} == {a: (v, False) for a, v in versions["local"].items()}
    assert never.opened == 0
    assert "<html" in (other.version_folder(report.ASSET, versions["one"][report.ASSET]) / "report.html").read_text(encoding="utf-8")
    assert load_student(other.version_folder("student/udrl", versions["one"]["student/udrl"])).parameters > 0
    assert verify(other) == []


def hashes(workspace: Workspace, versions: dict[str, str]) -> dict[str, Any]:
    """What a version's row tells that must not depend on where it is kept."""
    found = {asset: workspace.find(asset, version) for asset, version in versions.items()}
    return {asset: (v.fingerprint, v.params, v.facts, v.parents, v.rows) for asset, v in found.items() if v}
