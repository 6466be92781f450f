"""How a student is trained. A new recipe is one entry. Recipes on the labelled dataset have the same budget of sequences;
`udrl-rounds` goes on from a student of another recipe, with a budget of its own (`rounds.epochs`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from udrl_pipeline import dataset, exploration


def evenly(rows: pd.DataFrame) -> pd.Series:
    """Every row as often as every other."""
    return pd.Series(1.0, index=rows.index)


def best_only(rows: pd.DataFrame) -> pd.Series:
    """The rows of each task's highest quality bin, and no others."""
    return (rows.quality == rows.groupby("task").quality.transform("max")).astype(float)


def by_reward(rows: pd.DataFrame) -> pd.Series:
    """Each row in proportion to exp of its reward in standard deviations of its task (reward-weighted regression,
    Peters and Schaal 2007, with temperature 1)."""
    of_task = rows.groupby("task").reward
    deviation = of_task.transform("std", ddof=0).replace(0, 1)
    return pd.Series(np.exp((rows.reward - of_task.transform("mean")) / deviation))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to train.

    Attributes:
        commanded: Whether the length and quality that a row achieved are part of its prompt.
        data: The asset that holds its training rows.
        weigh: How often each training row is seen, relative to the others; rows have task, quality and reward.
    """

    name: str
    description: str
    commanded: bool
    data: str = dataset.ASSET
    weigh: Callable[[pd.DataFrame], pd.Series] = evenly


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("udrl", "Upside-down RL: every row, commanded with the length and quality that it achieved", commanded=True),
        Recipe("sft", "Supervised fine-tuning: every row, commanded with the task alone", commanded=False),
        Recipe("sft-top", "Supervised fine-tuning on the rows of the highest quality alone", commanded=False, weigh=best_only),
        Recipe("reward-weighted", "Supervised fine-tuning in which a row counts by its reward", commanded=False, weigh=by_reward),
        Recipe("udrl-rounds", "Upside-down RL, continued on what the student before wrote itself", commanded=True, data=exploration.ASSET),
    )
}
#: What the default run trains: the method, and what it has to beat. The first is the one that is exported and promoted.
USUAL = ("udrl", "sft")
