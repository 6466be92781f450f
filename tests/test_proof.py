"""The promises of the README at full size, with the real teacher and the real student: `make proof` (some 8 minutes on two cores)."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from conftest import REPOSITORY
from udrl_pipeline.recorded import HELD_BACK
from udrl_pipeline.settings import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: All rows and the real models, but few training steps and texts.
SHORT = {
    "student": {"max_steps": 60, "save_every": 20},
    "evaluation": {"intents": 10, "sweep_intents": 5, "quality_intents": 5, "length_intents": 5, "judge_rows": 5, "latency_repeats": 2},
}
IDEAS = [f"{thing} {place}" for thing in ("walrus", "gondolier", "tin robot", "beekeeper") for place in
         ("on a zip line", "in a laundromat", "beside a geyser", "under a viaduct", "at a rodeo")]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's params.yaml, made shorter, and its dagster.yaml."""
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    for section, changed in SHORT.items():
        values[section] |= changed
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # the other tests' models are too small for threads, these are not
    return tmp_path


def run_until(project: Path, line: str) -> str:
    """Start `udrl run`, kill it with SIGKILL once its log has a line like this, and return the log."""
    process = subprocess.Popen(["udrl", "run"], cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=path())
    assert process.stderr is not None
    log = []
    for told in process.stderr:
        log.append(told)
        if re.search(line, told):
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "".join(log[-20:])
    return "".join(log)


def run(project: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """`udrl run --json` to its end: what it did for each asset, and its log."""
    done = subprocess.run(["udrl", "run", "--json"], cwd=project, capture_output=True, text=True, env=path())
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["assets"], done.stderr


def path() -> dict[str, str]:
    return os.environ | {"PATH": f"{REPOSITORY / '.venv' / 'bin'}:{os.environ['PATH']}"}


def rows(project: Path) -> tuple[int, int]:
    """Rows and different row keys in the store."""
    with duckdb.connect(str(project / "artifacts" / "udrl.duckdb"), read_only=True) as connection:
        return connection.execute("SELECT count(*), count(DISTINCT row_key) FROM rows").fetchall()[0]


def test_kills_lose_and_double_nothing_and_new_intents_cost_their_own_rows_alone(project: Path) -> None:
    settings = load(project / "params.yaml", preset="")
    per_idea = len(settings.tasks.names) * settings.teacher.samples
    planned, unrecorded = settings.intents.builtin * per_idea, HELD_BACK * per_idea
    run_until(project, rf"^  \d+ of {unrecorded} rows")
    log = run_until(project, r"^  step (2[1-9]|[3-5]\d) of 60")
    missing = int(re.findall(r"(\d+) rows are missing", log)[0])
    assert 0 < missing < unrecorded
    first, log = run(project)
    assert "resuming from step 20 of 60" in log
    assert first["student/udrl"]["train_steps"] == 40
    assert rows(project) == (planned, planned)

    # -- nothing has changed
    again, _ = run(project)
    assert {name: asset["version"] for name, asset in again.items()} == {name: asset["version"] for name, asset in first.items()}
    assert {asset[work] for asset in again.values() for work in ("changed", "teacher_rows", "teacher_tokens", "train_steps")} == {0}

    # -- twenty ideas more
    (project / "ideas.csv").write_text("\n".join(["intent", *IDEAS]), encoding="utf-8")
    params = project / "params.yaml"
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    values["intents"]["sources"] = ["ideas.csv"]
    params.write_text(yaml.safe_dump(values), encoding="utf-8")
    grown, _ = run(project)
    assert grown["teacher_corpus"]["teacher_rows"] == len(IDEAS) * per_idea
    assert rows(project) == (planned + len(IDEAS) * per_idea,) * 2
    assert grown["student/udrl"]["train_steps"] == 60
    assert all(asset["changed"] for asset in grown.values())
