"""Every asset by name, in the order in which they are made, and what makes it."""

from collections.abc import Callable
from functools import partial

from udrl_pipeline import corpus, dataset, exploration, promotion
from udrl_pipeline.evaluation import report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.store.names import EXPORTS
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import export, training
from udrl_pipeline.student.recipes import RECIPES, USUAL

Build = Callable[[Workspace], Version]

_students = {training.asset_name(name): partial(training.build, recipe_name=name) for name in RECIPES}
_exports = {EXPORTS + name: partial(export.build, recipe_name=name) for name in RECIPES}
_of_the_dataset = [training.asset_name(recipe.name) for recipe in RECIPES.values() if recipe.data == dataset.ASSET]

BUILDS: dict[str, Build] = {
    intents.ASSET: intents.build,
    corpus.ASSET: corpus.build,
    dataset.ASSET: dataset.build,
    **{name: _students[name] for name in _of_the_dataset},
    exploration.ASSET: exploration.build,
    **_students,
    report.ASSET: report.build,
    **_exports,
    promotion.ASSET: promotion.build,
}
#: What `udrl run` makes unless it is told otherwise.
DEFAULT = (
    intents.ASSET, corpus.ASSET, dataset.ASSET, *map(training.asset_name, USUAL), report.ASSET, EXPORTS + USUAL[0], promotion.ASSET,
)  # fmt: skip
