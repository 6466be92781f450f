"""Commanded against achieved, per task: does a higher commanded quality earn a higher reward, is a commanded length obeyed?"""

from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline.evaluation.figures import Grid
from udrl_pipeline.evaluation.metrics import load_metric
from udrl_pipeline.evaluation.statistics import DIGITS, Bootstrap

#: Columns of the samples in which a judge says how good a text is.
JUDGES = ("relevance", "information", "retrieval", "preferred")


def quality(rows: pd.DataFrame, grid: Grid, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Mean reward for each commanded quality, per task.

    Args:
        rows: A student's texts of part `quality`, with commanded_quality and reward; the same intents for every quality.

    Returns:
        {task: {levels: {"1": {value, low, high, n}, ...}, spearman: over rows, rises: every level above the one before}}
    """
    calibrated = {}
    for number, task in enumerate(grid.tasks):
        of_task = rows[rows.task == task]
        if of_task.empty:
            continue
        levels = {
            str(level): bootstrap.mean(grid.values(of_level, "reward")[:, [number]]).as_dict()
            for level, of_level in of_task.groupby("commanded_quality", sort=True)
        }
        means = [level["value"] for level in levels.values()]
        calibrated[task] = {
            "levels": levels,
            "spearman": spearman(of_task.commanded_quality, of_task.reward),
            "rises": bool(np.all(np.diff(means) > 0)),
        }
    return calibrated


def length(rows: pd.DataFrame, grid: Grid, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Mean words for each commanded length, per task. A length outside the covered range is clamped: shown, not counted.

    Args:
        rows: Texts with commanded_words, given_words (after clamping) and words.

    Returns:
        {task: {lengths: {"8": {value, low, high, n, mean_absolute_error, given, clamped}, ...}, spearman: over rows,
        mean_absolute_error: over the rows whose command was not clamped (words)}}; the last two are None if there is no such row.
    """
    calibrated = {}
    for number, task in enumerate(grid.tasks):
        of_task = rows[rows.task == task]
        if of_task.empty:
            continue
        lengths: dict[str, dict[str, Any]] = {}
        for commanded, of_length in of_task.groupby("commanded_words", sort=True):
            given = int(of_length.given_words.iloc[0])
            lengths[str(commanded)] = {
                **bootstrap.mean(grid.values(of_length, "words")[:, [number]]).as_dict(),
                "mean_absolute_error": mean_absolute_error(of_length),
                "given": given,
                "clamped": bool(given != commanded),
            }
        obeyed = of_task[of_task.given_words == of_task.commanded_words]
        calibrated[task] = {
            "lengths": lengths,
            "spearman": spearman(obeyed.commanded_words, obeyed.words),
            "mean_absolute_error": mean_absolute_error(obeyed),
        }
    return calibrated


def asked(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The same for what the teacher was asked (asked_words) over all its held-out rows: what its own obedience is worth."""
    return {
        str(task): {
            "lengths": {
                str(n): {"value": round(float(of_length.words.mean()), DIGITS), "n": len(of_length)}
                for n, of_length in of_task.groupby("asked_words")
            },
            "spearman": spearman(of_task.asked_words, of_task.words),
            "mean_absolute_error": mean_absolute_error(of_task.assign(commanded_words=of_task.asked_words)),
        }
        for task, of_task in rows.groupby("task", sort=False)
    }


def agreement(samples: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """How much the judges agree on which texts are better: Spearman's rank correlation over the texts that all of them read.

    Returns:
        {judge: {other judge: correlation}} of the judges that could be had; None where one does not vary.
    """
    judges = [judge for judge in JUDGES if samples[judge].notna().any()]
    judged = samples.dropna(subset=judges)
    return {one: {other: spearman(judged[one], judged[other]) for other in judges if other != one} for one in judges}


def mean_absolute_error(rows: pd.DataFrame) -> float | None:
    """Of the words against the commanded words; None where there is no row."""
    if rows.empty:
        return None
    error = load_metric("length_error").compute(predictions=rows.text.tolist(), references=rows.commanded_words.astype(int).tolist())
    return round(float(error["mean_absolute_error"]), DIGITS)


def spearman(commanded: pd.Series, achieved: pd.Series) -> float | None:
    """Rank correlation over rows; None where either does not vary."""
    if commanded.nunique() < 2 or achieved.nunique() < 2:
        return None
    ranks = [values.astype(float).rank().to_numpy() for values in (commanded, achieved)]
    return round(float(np.corrcoef(*ranks)[0, 1]), DIGITS)
