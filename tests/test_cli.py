"""The command `udrl`: what it prints, where, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from udrl_pipeline import corpus
from udrl_pipeline import settings as settings_module
from udrl_pipeline.cli import main, parse_overrides
from udrl_pipeline.errors import SettingsError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.intents import collect
from udrl_pipeline.recorded import held_back
from udrl_pipeline.settings import PARAMS_ENV, PRESET_ENV, Settings
from udrl_pipeline.store.workspace import Quarantined, Workspace

REPOSITORY = Path(__file__).parent.parent
PRESETS = sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml"))


@pytest.fixture
def udrl(params: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in the folder of one's own params.yaml, on a terminal of 80 columns."""
    monkeypatch.chdir(params.parent)
    return lambda *arguments: CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What `udrl run` turned into, instead of turning into it."""
    seen: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: seen.append((arguments, environment)))
    return seen


# -- run ---------------------------------------------------------------------------------------------------------------------


def test_run_hands_its_wish_over_to_the_assets(udrl: Callable[..., Result], handed_over: list[Any], params: Path) -> None:
    select = ("--select", "intents,teacher_corpus", "--select", "student/sft")
    result = udrl("run", *select, "--set", "student.seed=3", "--json", "--copy-to", "out")
    assert result.exit_code == 0
    [(arguments, environment)] = handed_over
    assert arguments[:3] == [sys.executable, "-m", "assets.run"]
    assert json.loads(arguments[3]) == {
        "select": ["intents", "teacher_corpus", "student/sft"],
        "overrides": {"student.seed": 3},
        "as_json": True,
        "copy_to": str(params.parent / "out"),
    }
    assert environment[PARAMS_ENV] == str(params)
    assert environment[PRESET_ENV] == ""
    assert environment["DAGSTER_HOME"] == str(params.parent / ".dagster")


def test_run_keeps_its_history_beside_dagster_yaml(udrl: Callable[..., Result], handed_over: list[Any], params: Path) -> None:
    (params.parent / "dagster.yaml").touch()
    udrl("run")
    assert handed_over[0][1]["DAGSTER_HOME"] == str(params.parent)


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["--params", "nowhere.yaml"], "nowhere.yaml: no such file", "pass --params"),
        (["--preset", "huge"], "no preset named 'huge'", "presets here: none"),
        (["--set", "student.sed=3"], "unknown key student.sed", "settings.py describes every key"),
        (["--set", "student.seed=many"], "student.seed = 'many'", "settings.py describes every key"),
        (["--set", "student.batch_rows=0"], "student.batch_rows = 0", "settings.py describes every key"),
        (["--set", "student.seed"], "'student.seed' is no KEY=VALUE", "--set student.seed=3"),
        (["--set", "intents.sources=["], "is not valid YAML", "quote the value"),
    ],
)
def test_a_wrong_setting_ends_with_2_before_anything_starts(
    udrl: Callable[..., Result], handed_over: list[Any], arguments: list[str], what: str, remedy: str
) -> None:
    result = udrl("run", *arguments)
    assert result.exit_code == 2
    assert what in result.stderr
    assert f"-> {remedy}" in result.stderr or remedy in result.stderr.partition("->")[2]
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert handed_over == []


def test_overrides_are_yaml() -> None:
    given = ("a.b=3", "c=[x, y]", "d=", "e=hf:org/name@main", "f=a=b")
    assert parse_overrides(given) == {"a.b": 3, "c": ["x", "y"], "d": None, "e": "hf:org/name@main", "f": "a=b"}
    with pytest.raises(SettingsError, match="no KEY=VALUE"):
        parse_overrides(("=3",))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset: str) -> None:
    assert settings_module.load(REPOSITORY / "params.yaml", preset=preset).artifacts == f"artifacts/{preset}"


def test_the_paper_preset_is_of_the_papers_size() -> None:
    settings = settings_module.load(REPOSITORY / "params.yaml", preset="paper")
    shape = settings.student.scratch
    parameters = shape.vocabulary * shape.width + shape.layers * 12 * shape.width**2
    assert 95e6 < parameters < 110e6
    assert settings.intents.builtin * len(settings.tasks.names) * settings.teacher.samples >= 100_000
    assert "Llama-3-8B" in settings.teacher.model.ref


def real_udrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("udrl")
    environment = {name: value for name, value in os.environ.items() if name not in (PARAMS_ENV, PRESET_ENV, "DAGSTER_HOME")}
    return subprocess.run([str(program), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_real_command_makes_an_asset_and_prints_one_line(params: Path) -> None:
    (params.parent / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    done = real_udrl(params.parent, "run", "--select", "intents", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["assets"]["intents"]["changed"] is True
    assert told["report"] is None
    assert {path.name for path in params.parent.iterdir()} == {"params.yaml", "dagster.yaml", ".dagster", "artifacts"}


def test_the_real_command_tells_what_is_wrong_with_an_intents_file(params: Path) -> None:
    (params.parent / "ideas.csv").write_text("thought\nred kite\n", encoding="utf-8")
    done = real_udrl(params.parent, "run", "--select", "intents", "--set", "intents.sources=[ideas.csv]")
    assert done.returncode == 2, done.stderr
    assert "ideas.csv:1: has no column `intent` (columns: thought)" in done.stderr
    assert "-> name the column" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# -- audit -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def versions(workspace: Workspace) -> Workspace:
    def record(asset: str, version: str, **more: Any) -> None:
        given: dict[str, Any] = {
            "fingerprint": version,
            "code_version": "c",
            "params": {},
            "parents": {},
            "facts": {},
            "write": lambda _: None,
        }
        workspace.record(asset, version=version, **(given | more))

    set_aside = [Quarantined(f"ideas.csv:{n}", "empty", "", "''") for n in (2, 3)]
    record("intents", "a" * 16, rows=4320, quarantined=set_aside)
    record("labeled_dataset", "b" * 16, rows=12_345, parents={"intents": "a" * 16, "teacher_corpus": "d" * 16})
    return workspace


def test_audit_versions_reads_well_at_80_columns(udrl: Callable[..., Result], versions: Workspace) -> None:
    result = udrl("audit", "versions")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[0].startswith(f"labeled_dataset {'b' * 16}  ")
    assert lines[0].endswith("  12,345 rows  *")
    assert [line.split()[:2] for line in lines[1:4]] == [["from", "intents"], ["from", "teacher_corpus"], ["run", versions.run_id]]


def test_audit_versions_as_json(udrl: Callable[..., Result], versions: Workspace) -> None:
    [only] = json.loads(udrl("audit", "versions", "intents", "--json").stdout)
    assert (only["asset"], only["version"], only["rows"], only["verdict"], only["current"]) == ("intents", "a" * 16, 4320, "PASS", True)


def test_audit_without_a_version_says_what_makes_one(udrl: Callable[..., Result]) -> None:
    assert "`udrl run` makes them" in udrl("audit", "versions").stdout
    result = udrl("audit", "versions", "intents")
    assert result.exit_code == 2
    assert "no version of 'intents'" in result.stderr


def test_audit_quarantine(udrl: Callable[..., Result], versions: Workspace) -> None:
    shown = udrl("audit", "quarantine").stdout
    assert "intents" in shown
    assert "ideas.csv:2  ''" in shown
    listed = json.loads(udrl("audit", "quarantine", "--json").stdout)
    assert listed[0] == {"asset": "intents", "version": "a" * 16, "item": "ideas.csv:2", "reason": "empty", "detail": "", "text": "''"}
    assert len(listed) == 2


# -- corpus ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(workspace: Workspace, teacher: Any) -> Workspace:
    intents.build(workspace)
    corpus.build(workspace)
    return workspace


def test_rows_travel_from_store_to_store(udrl: Callable[..., Result], filled: Workspace, tmp_path: Path) -> None:
    exported = udrl("corpus", "export", tmp_path / "rows.parquet")
    assert exported.exit_code == 0
    assert exported.stdout.startswith("18 rows in")
    elsewhere = ("--set", "artifacts=elsewhere")
    assert udrl("corpus", "import", tmp_path / "rows.parquet", *elsewhere).stdout.startswith("18 new rows from")
    assert udrl("corpus", "import", tmp_path / "rows.parquet", *elsewhere).stdout.startswith("0 new rows from")


def test_recorded_rows_are_those_of_the_plan_less_what_is_held_back(
    udrl: Callable[..., Result], filled: Workspace, load: Callable[..., Settings], tmp_path: Path
) -> None:
    import pandas as pd

    wider = load({"intents.builtin": 60})
    intents.build(Workspace(wider))
    corpus.build(Workspace(wider))
    file = tmp_path / "rows.parquet"
    udrl("corpus", "export", file, "--recorded", "--set", "intents.builtin=40")
    planned = collect(load({"intents.builtin": 40})).kept
    left_out = held_back(planned)
    assert len(left_out) == 20
    assert set(pd.read_parquet(file).intent_key) == {intent.key for intent in planned} - left_out


@pytest.mark.parametrize(("name", "what"), [("nowhere.parquet", "no such file"), ("params.yaml", "is no file of rows")])
def test_importing_what_is_no_file_of_rows_is_an_error(udrl: Callable[..., Result], name: str, what: str) -> None:
    result = udrl("corpus", "import", name)
    assert result.exit_code == 2
    assert what in result.stderr
    assert "udrl corpus export" in result.stderr
