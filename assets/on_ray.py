"""The same definitions, each step a Ray job: `--module-name assets.on_ray` in place of `assets.definitions` (docs/deploy.md)."""

import dagster as dg
from dagster_ray import ray_executor

from assets import definitions

defs = dg.Definitions.merge(definitions.defs, dg.Definitions(executor=ray_executor))
