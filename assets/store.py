"""The resource that opens the library's workspace, and the pool of the steps that write its DuckDB file."""

from typing import Any

import dagster as dg
from pydantic import Field

from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Workspace

#: DuckDB takes one writing process, and every step writes: they share a pool with one slot.
POOL = "duckdb"
OWNERS = ["team:udrl"]


class Store(dg.ConfigurableResource[Workspace]):
    """Settings for a run, and where its results go. Everything empty is what params.yaml in the project's folder says."""

    params: str | None = Field(default=None, description="params.yaml to use; default: $UDRL_PARAMS, else ./params.yaml")
    preset: str | None = Field(default=None, description="presets/<name>.yaml laid over it; default: $UDRL_PRESET, else none")
    overrides: dict[str, Any] = Field(default={}, description='Single keys laid over both, such as {"student.seed": 3}')

    def workspace(self, run_id: str | None = None) -> Workspace:
        return Workspace(load(self.params, self.preset, self.overrides), run_id)

    def open(self, context: dg.AssetExecutionContext) -> Workspace:
        """The workspace of a step; its run is entered into the ledger under Dagster's run id."""
        workspace = self.workspace(context.run.run_id)
        workspace.begin_run()
        return workspace
