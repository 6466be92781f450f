"""The resource that opens the library's workspace, and the pool of the steps that write its DuckDB file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from udrl_pipeline import metrics
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.usage import Usage

#: DuckDB takes one writing process, and every step writes: they share a pool with one slot.
POOL = "duckdb"
OWNERS = ["team:udrl"]


@dataclass(frozen=True)
class Step:
    """What the body of an asset works with: the store, and what it takes so far."""

    workspace: Workspace
    usage: Usage


class Store(dg.ConfigurableResource[Workspace]):
    """Settings for a run, and where its results go. Everything empty is what params.yaml in the project's folder says."""

    params: str | None = Field(default=None, description="params.yaml to use; default: $UDRL_PARAMS, else ./params.yaml")
    preset: str | None = Field(default=None, description="presets/<name>.yaml laid over it; default: $UDRL_PRESET, else none")
    overrides: dict[str, Any] = Field(default={}, description='Single keys laid over both, such as {"student.seed": 3}')

    def workspace(self, run_id: str | None = None) -> Workspace:
        return Workspace(load(self.params, self.preset, self.overrides), run_id)

    @contextmanager
    def open(self, context: dg.AssetExecutionContext) -> Iterator[Step]:
        """The workspace of a step, whose run is entered into the ledger under Dagster's run id. The step is measured until it ends."""
        with metrics.failures_counted(context.asset_key.to_user_string()), Usage() as usage:
            workspace = self.workspace(context.run.run_id)
            workspace.begin_run()
            yield Step(workspace, usage)
