"""dvc.yaml: complete against the code, and `dvc repro` on an unchanged tree runs nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from udrl_pipeline import corpus, dataset
from udrl_pipeline.evaluation import report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import export, training
from udrl_pipeline.versioning import files_sha256

REPOSITORY = Path(__file__).parent.parent
DVC = REPOSITORY / ".venv-dvc" / "bin" / "dvc"
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
#: Stands in for `udrl run --select ASSET --copy-to FOLDER`: writes down that it ran, and what an asset's version holds; the metric
#: is the student's seed.
UDRL = r"""#!/bin/sh
echo "$3" >> ran
mkdir -p "$5/$3"
cat params.yaml > "$5/$3/manifest.json"
echo "{\"relevance\": {\"udrl\": 0.$(sed -n '/^student:/,/^rounds:/s/^  seed: //p' params.yaml)}}" > "$5/$3/metrics.json"
echo '[{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.5}]' | tee "$5/$3/loss.training.json" > "$5/$3/loss.validation.json"
"""


@pytest.mark.parametrize(
    ("stage", "sources"),
    [
        ("intents", intents.SOURCES),
        ("teacher_corpus", corpus.SOURCES),
        ("labeled_dataset", dataset.SOURCES),
        ("student", training.SOURCES),
        ("student_sft", training.SOURCES),
        ("student_export", export.SOURCES),
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
    assert ran(tree) == [
        "intents", "teacher_corpus", "labeled_dataset", "student/udrl", "student/sft", "student_export/udrl", "evaluation_report",
    ]  # fmt: skip
    dvc(tree, "repro")
    assert ran(tree) == []
    params = (tree / "params.yaml").read_text(encoding="utf-8")
    (tree / "params.yaml").write_text(params.replace("  seed: 11", "  seed: 12"), encoding="utf-8")
    dvc(tree, "repro")
    assert ran(tree) == ["student/udrl", "student/sft", "student_export/udrl", "evaluation_report"]
    metrics = json.loads(dvc(tree, "metrics", "show", "--json"))[""]["data"]
    assert metrics["artifacts/current/evaluation_report/metrics.json"]["data"] == {"relevance": {"udrl": 0.12}}
    plots = json.loads(dvc(tree, "plots", "show", "--json"))["data"]
    assert [Path(name).name for name in plots] == ["loss.training.json", "loss.validation.json"]
    for [plot] in plots.values():
        assert [(point["step"], point["loss"]) for point in plot["content"]["data"]["values"]] == [(1, 3.5), (2, 2.5)]


def test_metrics_diff_tells_what_a_changed_setting_did(tree: Path) -> None:
    git = ["git", "-C", str(tree), "-c", "user.name=n", "-c", "user.email=e"]
    dvc(tree, "repro")
    (tree / ".gitignore").write_text("artifacts/\nran\n", encoding="utf-8")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "before"]):
        subprocess.run([*git, *arguments], check=True)
    dvc(tree, "config", "core.no_scm", "false")
    params = (tree / "params.yaml").read_text(encoding="utf-8")
    (tree / "params.yaml").write_text(params.replace("  seed: 11", "  seed: 12"), encoding="utf-8")
    dvc(tree, "repro")
    [changed] = json.loads(dvc(tree, "metrics", "diff", "--json")).values()
    assert changed["relevance.udrl"] == {"old": 0.11, "new": 0.12, "diff": pytest.approx(0.01)}


def test_a_deleted_artifact_comes_back_from_a_remote_bit_for_bit(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    dvc(tree, "repro")
    before = files_sha256(tree / "artifacts")
    dvc(tree, "remote", "add", "--default", "store", str(tmp_path_factory.mktemp("remote")))
    dvc(tree, "push")
    shutil.rmtree(tree / "artifacts")
    shutil.rmtree(tree / ".dvc" / "cache")
    dvc(tree, "pull")
    assert files_sha256(tree / "artifacts") == before
    assert len(before) == 28


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_from_the_ui_and_one_from_dvc_give_the_same_versions(tmp_path: Path) -> None:
    """The example's data assets, once by `dvc repro` and once by the executor that the UI uses."""
    if not DVC.exists():
        pytest.skip("DVC is not installed: `make dvc`")
    by_dvc, by_ui = tmp_path / "dvc", tmp_path / "ui"
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values["intents"] |= {"builtin": 200}
    values["teacher"] |= {"engine": "transformers"}  # of what is not recorded it writes the same twice; vLLM does not
    for folder in (by_dvc, by_ui):
        folder.mkdir()
        (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        shutil.copy(REPOSITORY / "dagster.yaml", folder)
        shutil.copytree(REPOSITORY / "udrl_pipeline", folder / "udrl_pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(REPOSITORY / "assets", folder / "assets", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "dvc.yaml", by_dvc)
    (by_dvc / ".venv").symlink_to(Path(sys.executable).parent.parent)
    dvc(by_dvc, "init", "--no-scm", "--quiet")
    dvc(by_dvc, "repro", "labeled_dataset")
    command = [str(Path(sys.executable).with_name("dagster")), "asset", "materialize", "--select", "intents,teacher_corpus,labeled_dataset"]
    environment = {**os.environ, "DAGSTER_HOME": str(by_ui)}
    done = subprocess.run([*command, "-m", "assets.definitions"], cwd=by_ui, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("intents", "teacher_corpus", "labeled_dataset")
    found = [Workspace(load(folder / "params.yaml", preset="")).parents(*names) for folder in (by_dvc, by_ui)]
    assert found[0] == found[1]
