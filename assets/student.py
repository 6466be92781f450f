"""`student/<recipe>`: one asset per entry of `udrl_pipeline.student.recipes.RECIPES`."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.automation import LOOKED_AT, on_new_data
from assets.plots import loss_curve, throughput
from assets.results import Results, newest_report, results, sample
from assets.store import COMPUTE, OWNERS, Store
from assets.stories import story
from udrl_pipeline.store.names import ROWS_FILE, SEEN_FILE
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.recipes import RECIPES, USUAL, Recipe
from udrl_pipeline.versioning import code_version

#: The assets that a student learns rows from.
HOLD_ROWS = {recipe.data for recipe in RECIPES.values()}


def student(recipe: Recipe) -> dg.AssetsDefinition:
    """The asset of a recipe."""

    @dg.asset(
        key=["student", recipe.name],
        description=f"A small model, trained on {recipe.data}. {recipe.description}.\n\n{story('student')}",
        kinds={"pytorch", "huggingface"},
        group_name="students",
        owners=OWNERS,
        code_version=code_version(training.SOURCES),
        metadata=newest_report(),
        deps=[dg.AssetKey(recipe.data)],
        output_required=False,
        automation_condition=on_new_data() if recipe.name in USUAL else None,
        freshness_policy=LOOKED_AT if recipe.name in USUAL else None,
        pool=COMPUTE,
    )
    def train(context: dg.AssetExecutionContext, store: Store) -> Results:
        if store.recipes is not None and recipe.name not in store.recipes:
            context.log.info(f"{recipe.name} is not among the recipes of this run: {', '.join(store.recipes)}")
            return
        with store.open(context) as step:
            made = training.build(step.workspace, recipe.name)
            yield from results(step, made, lambda folder: show(folder) | learned_from(step.workspace, made))

    return train


def show(folder: Path) -> dict[str, Any]:
    speed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["facts"].get("speed", [])
    seen = pd.read_parquet(folder / SEEN_FILE, columns=["times"])
    return {
        "loss_curve": loss_curve(json.loads((folder / "loss.json").read_text(encoding="utf-8"))),
        "throughput": throughput([(p["step"], p["tokens_per_s"]) for p in speed], "optimiser steps", "training tokens/s"),
        "rows_seen": len(seen),
    }


def learned_from(workspace: Workspace, made: Version) -> dict[str, Any]:
    """Some of the rows that a student was trained on; nothing where the versions that held them are gone."""
    told = ["task", "words", "quality", "intent", "text"]
    tables = [
        pd.read_parquet(workspace.version_folder(asset, version) / ROWS_FILE, columns=["row_key", *told])
        for asset, version in made.parents.items()
        if asset in HOLD_ROWS and workspace.is_there(asset, version)
    ]
    if not tables:
        return {}
    seen = pd.read_parquet(workspace.version_folder(made.asset, made.version) / SEEN_FILE)
    return {"sample": sample(seen.merge(pd.concat(tables).drop_duplicates("row_key"), on="row_key"), [*told, "times"])}


students = [student(recipe) for recipe in RECIPES.values()]
