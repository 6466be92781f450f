"""`student/<recipe>`: one asset per entry of `udrl_pipeline.student.recipes.RECIPES`."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.automation import LOOKED_AT, on_new_data
from assets.plots import loss_curve, throughput
from assets.results import Results, results
from assets.store import COMPUTE, OWNERS, Store
from assets.stories import story
from udrl_pipeline.store.names import SEEN_FILE
from udrl_pipeline.student import training
from udrl_pipeline.student.recipes import RECIPES, USUAL, Recipe
from udrl_pipeline.versioning import code_version


def student(recipe: Recipe) -> dg.AssetsDefinition:
    """The asset of a recipe."""

    @dg.asset(
        key=["student", recipe.name],
        description=f"A small model, trained on {recipe.data}. {recipe.description}.\n\n{story('student')}",
        kinds={"pytorch", "huggingface"},
        group_name="students",
        owners=OWNERS,
        code_version=code_version(training.SOURCES),
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
            yield from results(step, training.build(step.workspace, recipe.name), show)

    return train


def show(folder: Path) -> dict[str, Any]:
    speed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["facts"].get("speed", [])
    seen = pd.read_parquet(folder / SEEN_FILE, columns=["times"])
    return {
        "loss_curve": loss_curve(json.loads((folder / "loss.json").read_text(encoding="utf-8"))),
        "throughput": throughput([(p["step"], p["tokens_per_s"]) for p in speed], "optimiser steps", "training tokens/s"),
        "rows_seen": len(seen),
    }


students = [student(recipe) for recipe in RECIPES.values()]
