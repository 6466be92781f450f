"""The same definitions, each step a pod: `--module-name assets.on_kubernetes` in place of `assets.definitions` (docs/deploy.md)."""

import dagster as dg
from dagster_k8s import k8s_job_executor

from assets import definitions

defs = dg.Definitions.merge(definitions.defs, dg.Definitions(executor=k8s_job_executor))
