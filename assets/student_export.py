"""`student_export/<recipe>`: a student made fast, and proof that it is still the same."""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from assets.automation import on_new_data
from assets.results import Results, newest_report, results
from assets.store import COMPUTE, OWNERS, Store
from assets.stories import story
from udrl_pipeline.store.names import EXPORTS
from udrl_pipeline.student import export
from udrl_pipeline.student.engines import DESCRIPTION
from udrl_pipeline.student.recipes import RECIPES, Recipe
from udrl_pipeline.student.training import asset_name
from udrl_pipeline.versioning import code_version


def student_export(recipe: Recipe) -> dg.AssetsDefinition:
    """The asset of a recipe."""
    key = dg.AssetKey([EXPORTS.rstrip("/"), recipe.name])
    checks = [dg.AssetCheckSpec(name, asset=key, blocking=blocking, description=told) for name, blocking, told in export.CHECKS]

    @dg.asset(
        key=key,
        description=story("student_export"),
        kinds={"onnx", "huggingface"},
        group_name="students_exported",
        owners=OWNERS,
        code_version=code_version(export.SOURCES),
        metadata=newest_report(),
        deps=[dg.AssetKey(asset_name(recipe.name).split("/"))],
        check_specs=checks,
        output_required=False,
        automation_condition=on_new_data() if recipe.name == next(iter(RECIPES)) else None,
        pool=COMPUTE,
    )
    def convert(context: dg.AssetExecutionContext, store: Store) -> Results:
        if store.recipes is not None and recipe.name not in store.recipes:
            context.log.info(f"{recipe.name} is not among the recipes of this run: {', '.join(store.recipes)}")
            return
        with store.open(context) as step:
            yield from results(step, export.build(step.workspace, recipe.name), show, checks)

    return convert


def show(folder: Path) -> dict[str, Any]:
    return {"model": dg.MetadataValue.json(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))}


student_exports = [student_export(recipe) for recipe in RECIPES.values()]
