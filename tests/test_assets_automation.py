"""Automation by data version: what has changed is made, what was only made again is not, and a failed check stops it."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from assets.automation import on_new_data
from assets.definitions import defs as project

CHECK = dg.AssetCheckSpec("usable", asset="child", blocking=True)


class Graph:
    """source -> child (with a blocking check) -> grandchild; the grandchild also reads `optional`, which nobody has to make."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor = instance, None
        self.versions: dict[str, str] = {}
        self.usable = True
        self.code = "1"

    def defs(self) -> dg.Definitions:
        def make(name: str, **options: Any) -> dg.AssetsDefinition:
            @dg.asset(name=name, code_version=self.code if name == "child" else "1", **options)
            def made() -> Iterator[Any]:
                if name == "child":
                    yield dg.AssetCheckResult(check_name="usable", passed=self.usable)
                yield dg.MaterializeResult(data_version=dg.DataVersion(self.versions.get(name, "1")))

            return made

        return dg.Definitions(
            assets=[
                make("source", automation_condition=on_new_data()),
                make("child", deps=["source"], check_specs=[CHECK], automation_condition=on_new_data()),
                make("optional", deps=["child"]),
                make(
                    "grandchild",
                    deps=["child", "optional"],
                    automation_condition=on_new_data(not_needed=dg.AssetSelection.assets("optional")),
                ),
            ]
        )

    def make(self, *names: str) -> None:
        job = self.defs().resolve_implicit_global_asset_job_def()
        job.execute_in_process(asset_selection=[dg.AssetKey(name) for name in names], instance=self.instance, raise_on_error=False)

    def tick(self) -> set[str]:
        """What one tick asks for."""
        found = dg.evaluate_automation_conditions(self.defs(), self.instance, cursor=self.cursor)
        self.cursor = found.cursor  # type: ignore[assignment]
        return {name for name in ("source", "child", "optional", "grandchild") if found.get_num_requested(dg.AssetKey(name))}

    def settle(self) -> "Graph":
        """Everything but the optional asset is made, and automation has seen it."""
        self.make("source", "child", "grandchild")
        assert self.tick() == set()
        return self


@pytest.fixture
def graph() -> Iterator[Graph]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Graph(instance)


def test_what_is_missing_is_made_in_one_run_and_not_asked_for_twice(graph: Graph) -> None:
    assert [graph.tick(), graph.tick()] == [{"source", "child", "grandchild"}, set()]
    graph.make("source")  # and the run ended before the others: the child has a parent to be made from now
    assert [graph.tick(), graph.tick()] == [{"child"}, set()]


def test_the_same_data_version_again_asks_for_nothing(graph: Graph) -> None:
    graph.settle()
    graph.make("source")
    assert [graph.tick(), graph.tick()] == [set(), set()]


def test_a_new_data_version_asks_for_the_child_once_and_then_for_its_child(graph: Graph) -> None:
    graph.settle()
    graph.versions["source"] = "2"
    graph.make("source")
    assert [graph.tick(), graph.tick()] == [{"child"}, set()]
    graph.versions["child"] = "2"
    graph.make("child")
    assert [graph.tick(), graph.tick()] == [{"grandchild"}, set()]


def test_a_child_whose_version_stays_ends_the_wave(graph: Graph) -> None:
    graph.settle()
    graph.versions["source"] = "2"
    graph.make("source")
    assert graph.tick() == {"child"}
    graph.make("child")
    assert [graph.tick(), graph.tick()] == [set(), set()]


def test_a_failed_blocking_check_asks_for_nothing_until_it_passes(graph: Graph) -> None:
    graph.settle()
    graph.versions |= {"source": "2", "child": "2"}
    graph.make("source")
    assert graph.tick() == {"child"}
    graph.usable = False
    graph.make("child")  # with a new data version, but the check says no
    assert [graph.tick(), graph.tick()] == [set(), set()]
    graph.usable = True
    graph.make("child")
    assert [graph.tick(), graph.tick()] == [{"grandchild"}, set()]


def test_changed_code_asks_for_its_asset(graph: Graph) -> None:
    graph.settle()
    graph.code = "2"
    assert [graph.tick(), graph.tick()] == [{"child"}, set()]


def test_a_run_that_makes_everything_leaves_nothing_to_ask_for(graph: Graph) -> None:
    graph.settle()
    graph.versions |= {"source": "2", "child": "2"}
    graph.make("source", "child", "grandchild")
    assert [graph.tick(), graph.tick()] == [set(), set()]


def test_the_default_assets_are_automated_and_what_is_made_on_demand_is_not() -> None:
    specs = {spec.key.to_user_string(): spec for spec in project.resolve_all_asset_specs()}
    automated = {name for name, spec in specs.items() if spec.automation_condition}
    assert automated >= {
        "intents",
        "teacher_corpus",
        "labeled_dataset",
        "student/udrl",
        "student/sft",
        "student_export/udrl",
        "evaluation_report",
    }
    assert not automated & {"student/sft-top", "student/reward-weighted", "student/udrl-rounds", "explored_rows"}
    assert {name for name, spec in specs.items() if spec.freshness_policy} == {"student/udrl", "student/sft", "evaluation_report"}


def test_an_empty_project_asks_for_the_default_assets() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        found = dg.evaluate_automation_conditions(project, instance)
    automated = [spec.key for spec in project.resolve_all_asset_specs() if spec.automation_condition]
    assert found.total_requested == len(automated)
    assert {found.get_num_requested(key) for key in automated} == {1}
