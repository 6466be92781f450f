"""The launchpad's knobs: described and bounded by the settings, laid over params.yaml where everyone can see it."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.definitions import defs
from assets.knobs import KNOBS, settings_field
from assets.store import Store
from udrl_pipeline.errors import SettingsError
from udrl_pipeline.settings import Settings


def fields() -> dict[str, Any]:
    """The fields of the resource, as the launchpad gets them."""
    found: Any = defs.resolve_implicit_global_asset_job_def().run_config_schema.config_type
    for name in ("resources", "store", "config"):
        found = found.fields[name].config_type
    return dict(found.fields)


def test_every_knob_stands_in_the_launchpad_with_the_words_of_the_settings() -> None:
    told = {f"{section}.{key}": field.description for section in fields() if hasattr(fields()[section].config_type, "fields")
            for key, field in fields()[section].config_type.fields.items()}  # fmt: skip
    assert {key: text.split(" [")[0] for key, text in told.items()} == {key: settings_field(key).description for key in KNOBS}
    assert told["teacher.samples"] == "Rows per intent and task [at least 1, at most 1000]"
    assert told["student.epochs"] == "Passes over the training rows of a run that starts anew [more than 0]"
    assert told["tasks.names"] == "Tasks to build [entries: at least 1]"


def test_every_number_in_the_launchpad_has_a_range() -> None:
    numbers = [key for key in KNOBS if settings_field(key).annotation in (int, float)]
    assert numbers
    assert [key for key in numbers if not settings_field(key).metadata] == []


def test_all_that_a_run_sets_is_told() -> None:
    store = Store(recipes=["sft"], preset="tiny", overrides={"rewards.gain_cap": 0.5})
    assert store.told() == {"preset": "tiny", "recipes": "['sft']", "rewards.gain_cap": "0.5"}
    assert Store().told() == {}


def test_what_is_left_empty_is_what_params_yaml_says(params: Path, settings: Settings) -> None:
    store = Store(params=str(params))
    assert store.set_for_the_run() == {}
    assert store.workspace().settings == settings


def configured(**config: Any) -> Store:
    """The resource, as a run with this config gets it."""
    found: list[Store] = []

    @dg.op
    def take(store: Store) -> None:
        found.append(store)

    dg.GraphDefinition("graph", node_defs=[take]).to_job(resource_defs={"store": Store()}).execute_in_process(
        run_config={"resources": {"store": {"config": config}}}
    )
    return found[0]


def test_what_the_launchpad_fills_in_by_itself_sets_nothing(params: Path, settings: Settings) -> None:
    filled: dict[str, dict[str, Any]] = {}
    for knob in KNOBS:
        section, key = knob.split(".")
        filled.setdefault(section, {})[key] = None
    store = configured(params=str(params), recipes=None, preset=None, overrides={}, **filled)
    assert store.set_for_the_run() == {}
    assert store.workspace().settings == settings


def test_a_knob_is_laid_over_params_yaml_and_a_free_override_over_the_knob(params: Path) -> None:
    store = configured(
        params=str(params),
        teacher={"engine": "vllm", "samples": 3},
        student={"epochs": 2, "seed": 3},
        tasks={"names": ["image"]},
        overrides={"student.seed": 4, "rewards.gain_cap": 0.5},
    )
    assert store.set_for_the_run() == {
        "teacher.engine": "vllm", "teacher.samples": 3, "student.epochs": 2.0, "student.seed": 4, "tasks.names": ["image"],
        "rewards.gain_cap": 0.5,
    }  # fmt: skip
    settings = store.workspace().settings
    assert (settings.teacher.engine, settings.student.seed, settings.tasks.names, settings.rewards.gain_cap) == ("vllm", 4, ("image",), 0.5)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"student": {"seed": "many"}}, 'Value "many" .* is not valid for expected type "Int"'),
        ({"student": {"sed": 3}}, 'unexpected config entry "sed"'),
        ({"teacher": {"engine": "gpt"}}, "not in enum type"),
        ({"recipes": 3}, "recipes must be list"),
    ],
)
def test_the_launchpad_refuses_what_has_the_wrong_shape(config: dict[str, Any], says: str) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=says):
        configured(**config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"teacher": {"samples": 0}}, "teacher.samples = 0: Input should be greater than or equal to 1"),
        ({"student": {"epochs": -1.0}}, "student.epochs = -1.0: Input should be greater than 0"),
        ({"tasks": {"names": []}}, "tasks.names"),
        ({"recipes": ["sgd"]}, "recipes: unknown recipe 'sgd'"),
        ({"overrides": {"student.sed": 3}}, "unknown key student.sed"),
    ],
)
def test_a_value_out_of_range_is_a_typed_error_before_any_work(params: Path, config: dict[str, Any], says: str) -> None:
    store = configured(params=str(params), **config)
    with pytest.raises(SettingsError) as caught:
        store.workspace()
    assert says in str(caught.value)
    assert not (params.parent / "artifacts").exists()


def test_the_run_tells_what_it_sets_otherwise_in_its_log_its_metadata_and_the_ledger(params: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey("intents")],
            instance=instance,
            run_config={"resources": {"store": {"config": {"params": str(params), "intents": {"builtin": 7}}}}},
        )
        said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    [made] = result.asset_materializations_for_node("intents")
    assert f"set for this run: intents.builtin = 7, params = {params}" in said
    assert made.metadata["set for this run"].value == {"intents.builtin": "7", "params": str(params)}
    assert made.metadata["dagster/row_count"].value == 7
    workspace = Store(params=str(params)).workspace()
    with workspace.database.reader() as connection:
        [(builtin,)] = connection.execute("SELECT params->>'$.intents.builtin' FROM runs").fetchall()
    assert (builtin, workspace.ledger()[-1].params["builtin"]) == ("7", 7)
