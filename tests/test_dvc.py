"""dvc.yaml: complete against the code, and `dvc repro` on an unchanged tree runs nothing."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from udrl_pipeline import corpus, dataset
from udrl_pipeline.evaluation import report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.student import training

REPOSITORY = Path(__file__).parent.parent
DVC = REPOSITORY / ".venv-dvc" / "bin" / "dvc"
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
#: Stands in for `udrl run --select ASSET --copy-to FOLDER`: writes down that it ran, and what an asset's version holds.
UDRL = """#!/bin/sh
echo "$3" >> ran
mkdir -p "$5/$3"
cat params.yaml > "$5/$3/manifest.json"
echo '{"relevance": {"udrl": 0.61}}' > "$5/$3/metrics.json"
echo '[{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.5}]' | tee "$5/$3/loss.training.json" > "$5/$3/loss.validation.json"
"""


@pytest.mark.parametrize(
    ("stage", "sources"),
    [
        ("intents", intents.SOURCES),
        ("teacher_corpus", corpus.SOURCES),
        ("labeled_dataset", dataset.SOURCES),
        ("student", training.SOURCES),
        ("evaluation_report", report.SOURCES),
    ],
)
def test_a_stage_depends_on_every_file_that_its_code_version_counts(stage: str, sources: tuple[str, ...]) -> None:
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith("udrl_pipeline/")]
    assert [s for s in sources if not any(f"udrl_pipeline/{s}" == d or f"udrl_pipeline/{s}".startswith(d + "/") for d in deps)] == []
    assert [dep for dep in deps if not (REPOSITORY / dep).exists()] == []


def test_every_param_is_in_params_yaml() -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    for name in {name for stage in STAGES.values() for name in stage["params"]}:
        value = params
        for part in name.split("."):
            value = value[part]


def test_the_database_is_no_output() -> None:
    assert all(str(out).startswith("${current}/") for stage in STAGES.values() for out in stage["outs"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what dvc.yaml names, with a `udrl` that only writes down that it ran."""
    if not DVC.exists():
        pytest.skip("DVC is not installed: `make dvc`")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "udrl_pipeline", tmp_path / "udrl_pipeline", ignore=shutil.ignore_patterns("__pycache__", "*.parquet"))
    program = tmp_path / ".venv" / "bin" / "udrl"
    program.parent.mkdir(parents=True)
    program.write_text(UDRL)
    program.chmod(0o755)
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    shutil.copy(REPOSITORY / ".dvc" / "config", tmp_path / ".dvc" / "config.local")
    return tmp_path


def dvc(tree: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(tree),
        "DVC_SITE_CACHE_DIR": str(tree / ".dvc" / "site"),
    }
    done = subprocess.run([str(DVC), *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(tree: Path) -> list[str]:
    file = tree / "ran"
    names = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return names


def test_repro_runs_what_changed_and_nothing_else(tree: Path) -> None:
    dvc(tree, "repro")
    assert ran(tree) == ["intents", "teacher_corpus", "labeled_dataset", "student/udrl", "evaluation_report"]
    dvc(tree, "repro")
    assert ran(tree) == []
    params = (tree / "params.yaml").read_text(encoding="utf-8")
    (tree / "params.yaml").write_text(params.replace("  seed: 11", "  seed: 12"), encoding="utf-8")
    dvc(tree, "repro")
    assert ran(tree) == ["student/udrl", "evaluation_report"]
    assert json.loads(dvc(tree, "metrics", "show", "--json"))[""]["data"]["artifacts/current/evaluation_report/metrics.json"]["data"] == {
        "relevance": {"udrl": 0.61}
    }
    plots = json.loads(dvc(tree, "plots", "show", "--json"))["data"]
    assert [Path(name).name for name in plots] == ["loss.training.json", "loss.validation.json"]
    for [plot] in plots.values():
        assert [(point["step"], point["loss"]) for point in plot["content"]["data"]["values"]] == [(1, 3.5), (2, 2.5)]
