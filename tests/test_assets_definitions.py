"""What Dagster is told: the graph of assets with its checks and pools, as a file that a person can review."""

import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from assets.columns import COLUMN_LINEAGE, EXPLORED_ROWS, INTENTS, LABELED_DATASET, TEACHER_CORPUS
from assets.definitions import defs
from udrl_pipeline import corpus, dataset
from udrl_pipeline.student.recipes import RECIPES

REPOSITORY = Path(__file__).parent.parent
SNAPSHOT = Path(__file__).parent / "snapshots" / "definitions.yaml"
ASSETS = [asset for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition)]
BOOKS = {key.asset_key: [key.name] for check in defs.asset_checks or [] for key in check.check_keys}


def described() -> dict[str, Any]:
    repository = defs.get_repository_def()
    return {
        "assets": {
            asset.key.to_user_string(): {
                "deps": sorted(dep.asset_key.to_user_string() for dep in asset.specs_by_key[asset.key].deps),
                "group": asset.specs_by_key[asset.key].group_name,
                "kinds": sorted(asset.specs_by_key[asset.key].kinds),
                "owners": list(asset.specs_by_key[asset.key].owners),
                "pool": asset.op.pool,
                "automated": asset.specs_by_key[asset.key].automation_condition is not None,
                "blocking checks": [spec.name for spec in asset.check_specs if spec.blocking],
                "other checks": [spec.name for spec in asset.check_specs if not spec.blocking] + BOOKS.get(asset.key, []),
            }
            for asset in ASSETS
        },
        "jobs": {
            job.name: sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
            for job in repository.get_all_jobs()
            if not job.name.startswith("__")
        },
        "schedules": {s.name: {"job": s.job_name, "status": s.default_status.value} for s in repository.schedule_defs},
        "sensors": {s.name: s.default_status.value for s in repository.sensor_defs},
    }


def test_the_definitions_are_those_of_the_snapshot() -> None:
    found = described()
    assert found == yaml.safe_load(SNAPSHOT.read_text(encoding="utf-8")), (
        "if this change is meant, write it down: python tests/test_assets_definitions.py"
    )


def test_every_asset_is_described_and_has_a_code_version() -> None:
    for asset in ASSETS:
        spec = asset.specs_by_key[asset.key]
        assert spec.description
        assert len(spec.description) > 40
        assert spec.code_version
        assert len(spec.code_version) == 12


def test_a_recipe_is_one_asset() -> None:
    keys = {asset.key.to_user_string() for asset in ASSETS}
    assert {key for key in keys if key.startswith("student/")} == {f"student/{name}" for name in RECIPES}


@pytest.mark.parametrize(("schema", "columns"), [(TEACHER_CORPUS, corpus.COLUMNS), (LABELED_DATASET, dataset.COLUMNS)])
def test_the_columns_shown_are_those_of_the_table(schema: dict[str, dg.TableSchema], columns: list[str]) -> None:
    assert sorted(column.name for column in schema["dagster/column_schema"].columns) == sorted(columns)


def test_the_columns_of_intents_are_described() -> None:
    assert [column.name for column in INTENTS["dagster/column_schema"].columns] == ["intent_key", "intent", "tasks", "split", "source"]


def test_every_column_tells_what_it_is_made_from() -> None:
    schemas = {"teacher_corpus": TEACHER_CORPUS, "labeled_dataset": LABELED_DATASET, "explored_rows": EXPLORED_ROWS}
    columns = {asset: {column.name for column in schema["dagster/column_schema"].columns} for asset, schema in schemas.items()}
    columns["intents"] = {column.name for column in INTENTS["dagster/column_schema"].columns}
    for asset, lineage in COLUMN_LINEAGE.items():
        assert lineage.deps_by_column.keys() <= columns[asset]
        assert {dep.column_name for deps in lineage.deps_by_column.values() for dep in deps} <= set().union(*columns.values())
    told = {c.name: c.description for c in LABELED_DATASET["dagster/column_schema"].columns}
    assert told["words"] == "achieved length (words); from teacher_corpus.text"
    assert [asset for asset in COLUMN_LINEAGE if COLUMN_LINEAGE[asset].deps_by_column.keys() < columns[asset]] == ["teacher_corpus"]


@pytest.mark.parametrize("command", [["dg", "check", "defs"], ["dagster", "definitions", "validate", "-m", "assets.definitions"]])
def test_dagsters_own_checks_pass(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([str(program), *command[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_instance_of_dagster_yaml_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        assert instance.telemetry_enabled is False
        assert instance.run_retries_enabled is True
        assert instance.run_monitoring_enabled is True
        assert instance.event_log_storage.get_pool_config().default_pool_limit == 1
    assert {path.name for path in tmp_path.iterdir()} == {"dagster.yaml", ".dagster"}


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(yaml.safe_dump(described(), sort_keys=False, width=120), encoding="utf-8")
