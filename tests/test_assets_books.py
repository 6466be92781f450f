"""The check of the two books: Dagster's history and the ledger tell the same of every asset."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from assets.books import NAME, disagreements
from assets.definitions import defs
from assets.run import Wish, materialise, open_instance
from test_assets_run import DEFAULT, Library, library, project
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Version, Workspace

pytestmark = pytest.mark.usefixtures("kept_open")

__all__ = ["library", "project"]  # fixtures

TAGS = {
    "dagster/data_version": "v1", "dagster/code_version": "c1", "dagster/input_data_version/teacher_corpus": "t1",
    "dagster/input_data_version/student/sft": "s1",
}  # fmt: skip
VERSION = Version(
    "x",
    "v1",
    "f",
    "c1",
    1,
    "PASS",
    "run",
    datetime.now(UTC),
    {},
    {},
    {},
    "",
    {"teacher_corpus": "t1", "student/sft": "s1", "student/udrl": "u"},
)


def verdicts(project: Path) -> dict[str, tuple[bool, str | None]]:
    """The newest verdict of the check for every asset that has one."""
    with open_instance() as instance:
        keys = [dg.AssetCheckKey(dg.AssetKey(name.split("/")), NAME) for name in DEFAULT]
        found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
        evaluations = {key: record.event.asset_check_evaluation for key, record in found.items() if record.event}
    return {key.asset_key.to_user_string(): (e.passed, e.description) for key, e in evaluations.items() if e}


def test_after_a_run_both_books_tell_the_same_of_every_asset(library: Library, project: Path) -> None:
    assert materialise(Wish()).failures == []
    assert verdicts(project) == dict.fromkeys(DEFAULT, (True, None))


def test_a_version_that_was_made_outside_of_dagster_is_a_mismatch_until_it_is_run_there(library: Library, project: Path) -> None:
    from udrl_pipeline import dataset

    materialise(Wish())
    library.content["labeled_dataset"] = "other"
    made = dataset.build(Workspace(load()))
    job = dg.define_asset_job("books", dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("labeled_dataset"), NAME)))
    alone = dg.Definitions(assets=defs.assets, asset_checks=defs.asset_checks, resources=defs.resources, jobs=[job])
    with open_instance() as instance:
        assert alone.resolve_job_def("books").execute_in_process(instance=instance).success
    passed, told = verdicts(project)["labeled_dataset"]
    assert not passed
    assert told
    assert f"{made.version} in the ledger" in told
    materialise(Wish(select=["labeled_dataset"]))
    assert verdicts(project)["labeled_dataset"] == (True, None)


@pytest.mark.parametrize(
    ("changed", "version", "told"),
    [
        ({}, VERSION, []),
        ({"dagster/data_version": "v2"}, VERSION, ["version v2 in Dagster, v1 in the ledger"]),
        ({"dagster/code_version": "c2"}, VERSION, ["code version c2 in Dagster, c1 in the ledger"]),
        ({"dagster/input_data_version/student/sft": "s2"}, VERSION, ["input student/sft s2 in Dagster, s1 in the ledger"]),
        ({}, None, ["the ledger knows no version of it"]),
    ],
)
def test_each_difference_is_told(changed: dict[str, str], version: Version | None, told: list[str]) -> None:
    assert disagreements(TAGS | changed, version) == told


def test_what_neither_book_knows_is_no_mismatch() -> None:
    assert disagreements({}, None) == []
    assert disagreements({}, VERSION) == ["Dagster knows no version of it"]
