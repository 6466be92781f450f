"""The resource that opens the library's workspace with the settings of a run, and the pools that steps wait in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from assets.knobs import chosen, section
from assets.processes import end_with_the_run, process_tag
from udrl_pipeline import metrics
from udrl_pipeline.errors import SettingsError
from udrl_pipeline.settings import Settings, load
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.usage import Usage

OWNERS = ["team:udrl"]

#: Steps of one pool wait for each other, also those of other runs. Each sits where it spends its time; the short writes to the one
#: DuckDB file that all of them end with wait for each other by themselves.
DUCKDB, COMPUTE, TEACHER = "duckdb", "compute", "teacher"

Intents, Tasks, Teacher, Student, Rounds, Evaluation = (
    section(name) for name in ("intents", "tasks", "teacher", "student", "rounds", "evaluation")
)


def teacher_pool(settings: Settings) -> str:
    """A teacher behind an endpoint has a machine of its own; any other computes here."""
    return TEACHER if settings.teacher.engine == "server" else COMPUTE


@dataclass(frozen=True)
class Step:
    """What the body of an asset works with: the store, and what it takes so far."""

    workspace: Workspace
    usage: Usage


class Store(dg.ConfigurableResource[Workspace]):
    """Settings for a run, and where its results go. Everything empty is what params.yaml in the project's folder says."""

    recipes: list[str] | None = Field(default=None, description=f"Train only these of the selected students: {', '.join(RECIPES)}")
    intents: Intents = Field(default=Intents(), description="Users' ideas")  # type: ignore[valid-type]
    tasks: Tasks = Field(default=Tasks(), description="Kinds of prompt")  # type: ignore[valid-type]
    teacher: Teacher = Field(default=Teacher(), description="The model that writes the rows")  # type: ignore[valid-type]
    student: Student = Field(default=Student(), description="Training budget and start")  # type: ignore[valid-type]
    rounds: Rounds = Field(default=Rounds(), description="Of explored_rows and student/udrl-rounds")  # type: ignore[valid-type]
    evaluation: Evaluation = Field(default=Evaluation(), description="Size of the evaluation")  # type: ignore[valid-type]
    params: str | None = Field(default=None, description="params.yaml to use; default: $UDRL_PARAMS, else ./params.yaml")
    preset: str | None = Field(default=None, description="presets/<name>.yaml laid over it; default: $UDRL_PRESET, else none")
    overrides: dict[str, Any] = Field(default={}, description='Any other keys, laid over all of it, such as {"rewards.gain_cap": 0.5}')

    def set_for_the_run(self) -> dict[str, Any]:
        """What this run sets otherwise than params.yaml and its preset, by dotted keys; `overrides` win."""
        sections = {name: getattr(self, name) for name in ("intents", "tasks", "teacher", "student", "rounds", "evaluation")}
        return chosen(sections) | self.overrides

    def told(self) -> dict[str, str]:
        """All that this run sets: its settings, the recipes that it trains, and the files that it reads its settings from."""
        beside = {"recipes": self.recipes, "params": self.params, "preset": self.preset}
        return {key: str(value) for key, value in sorted((self.set_for_the_run() | beside).items()) if value is not None}

    def workspace(self, run_id: str | None = None) -> Workspace:
        """The workspace of the run's settings.

        Raises:
            SettingsError: A value is of the wrong type or out of range, a key or a recipe unknown.
        """
        if unknown := sorted(set(self.recipes or ()) - RECIPES.keys()):
            raise SettingsError(f"unknown recipe {unknown[0]!r}", where="recipes", remedy=f"recipes: {', '.join(RECIPES)}")
        return Workspace(load(self.params, self.preset, self.set_for_the_run()), run_id)

    @contextmanager
    def open(self, context: dg.AssetExecutionContext) -> Iterator[Step]:
        """The workspace of a step, whose run is entered into the ledger under Dagster's run id. What the run sets otherwise stands in its
        log and beside what it makes. The step is measured until it ends."""
        if process := end_with_the_run():
            context.instance.add_run_tags(context.run.run_id, process_tag(context.run.run_id, process))
        with metrics.failures_counted(context.asset_key.to_user_string()), Usage() as usage:
            workspace = self.workspace(context.run.run_id)
            if told := self.told():
                context.log.info("set for this run: " + ", ".join(f"{key} = {value}" for key, value in told.items()))
                context.add_asset_metadata({"set for this run": dg.MetadataValue.json(told)})
            workspace.begin_run()
            yield Step(workspace, usage)
