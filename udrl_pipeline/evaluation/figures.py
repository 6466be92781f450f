"""Texts -> figures: of each system, per task and over tasks, and of pairs of systems on the same intents."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udrl_pipeline.evaluation.metrics import load_metric
from udrl_pipeline.evaluation.statistics import DIGITS, Bootstrap, Floats, Interval

#: The scope of a figure over all tasks: the mean of the tasks' figures.
MEAN = "mean"
#: Row figures: column of the samples -> where the mean over intents and its interval go.
ROW_FIGURES = ("relevance", "reward", "information", "retrieval", "preferred", "copied", "copied_run", "finished", "words")
SET_FIGURES = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")

Figure = dict[str, float | int]


@dataclass(frozen=True)
class Grid:
    """The intents and tasks that all systems are compared on; every array of a system has this shape."""

    intents: tuple[str, ...]
    tasks: tuple[str, ...]

    @classmethod
    def of(cls, samples: pd.DataFrame) -> "Grid":
        return cls(tuple(dict.fromkeys(samples.intent_key)), tuple(dict.fromkeys(samples.task)))

    def values(self, rows: pd.DataFrame, column: str) -> Floats:
        """A column as an array [intents, tasks], NaN where the system has no text."""
        wide = rows.pivot(index="intent_key", columns="task", values=column).reindex(index=list(self.intents), columns=list(self.tasks))
        return wide.to_numpy(dtype=np.float64, na_value=np.nan)

    def texts(self, rows: pd.DataFrame) -> list[list[str | None]]:
        """For each task one text, or None, per intent."""
        found = {(task, key): text for task, key, text in zip(rows.task, rows.intent_key, rows.text, strict=True)}
        return [[found.get((task, key)) for key in self.intents] for task in self.tasks]

    def distances(self, rows: pd.DataFrame, vectors: Mapping[str, NDArray[np.float32]]) -> Floats:
        """Cosine distances between a system's texts, shape [tasks, intents, intents], NaN where it has no text."""
        distances = np.full((len(self.tasks), len(self.intents), len(self.intents)), np.nan)
        for task, texts in enumerate(self.texts(rows)):
            there = [index for index, text in enumerate(texts) if text is not None]
            if there:
                stacked = np.stack([vectors[texts[index] or ""] for index in there]).astype(np.float64)
                distances[task][np.ix_(there, there)] = 1 - stacked @ stacked.T
        return distances


@dataclass(frozen=True)
class SystemTexts:
    """One system's scored texts, laid out on the grid."""

    rows: pd.DataFrame
    columns: dict[str, Floats]
    texts: list[list[str | None]]
    distances: Floats


def lay_out(samples: pd.DataFrame, grid: Grid, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, SystemTexts]:
    """Every system's texts of the comparison."""
    return {
        str(system): SystemTexts(
            rows,
            {column: grid.values(rows, column) for column in ROW_FIGURES if column in rows and rows[column].notna().any()},
            grid.texts(rows),
            grid.distances(rows, vectors),
        )
        for system, rows in samples[samples.part == "compare"].groupby("system", sort=False)
    }


def system_figures(
    system: SystemTexts, grid: Grid, vectors: Mapping[str, NDArray[np.float32]], bootstrap: Bootstrap
) -> dict[str, dict[str, Figure]]:
    """A system's figures, by scope (a task, or `mean`) and name; a row figure is the mean over intents with its interval."""
    figures: dict[str, dict[str, Figure]] = {}
    for number, task in enumerate(grid.tasks):
        rows = system.rows[system.rows.task == task]
        if len(rows):
            intervals = _row_figures(system, [number], bootstrap) | {"spread": bootstrap.spread(system.distances[[number]]).as_dict()}
            values = _set_figures(rows, vectors)
            figures[task] = {name: intervals.get(name, {}) | values.get(name, {}) for name in intervals | values}
    every = list(range(len(grid.tasks)))
    figures[MEAN] = _row_figures(system, every, bootstrap)
    figures[MEAN] |= {
        name: {"value": _mean([of_task[name]["value"] for of_task in figures.values() if name in of_task])} for name in SET_FIGURES
    }
    figures[MEAN]["spread"] = bootstrap.spread(system.distances).as_dict()
    return figures


def _row_figures(system: SystemTexts, tasks: list[int], bootstrap: Bootstrap) -> dict[str, Figure]:
    intervals = {name: bootstrap.mean(values[:, tasks]) for name, values in system.columns.items()}
    return {name: interval.as_dict() for name, interval in intervals.items() if interval.n}


def _set_figures(rows: pd.DataFrame, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, Figure]:
    """What the `evaluate` modules say of a set of texts."""
    texts = rows.text.tolist()
    values = load_metric("distinct_n").compute(predictions=texts) | load_metric("self_bleu").compute(predictions=texts)
    values["spread"] = load_metric("embedding_spread").compute(predictions=[vectors[text].tolist() for text in texts])["embedding_spread"]
    values["finished"] = load_metric("finished_share").compute(predictions=rows.finished.tolist())["finished_share"]
    return {name: {"value": round(float(value), DIGITS)} for name, value in values.items()}


def _mean(values: list[float | int]) -> float:
    return round(float(np.mean(values)), DIGITS)


def comparison(system: SystemTexts, base: SystemTexts, grid: Grid, bootstrap: Bootstrap) -> dict[str, dict[str, Interval]]:
    """A system against another on the same intents, by scope: ratios of relevance, reward, spread, distinct-2 and the share of
    finished texts, and the difference in information (nats per intent token, which may be negative, so a ratio would mislead)."""
    scopes = {task: [number] for number, task in enumerate(grid.tasks)} | {MEAN: list(range(len(grid.tasks)))}
    compared: dict[str, dict[str, Interval]] = {}
    for scope, tasks in scopes.items():
        found = {
            "relevance": bootstrap.ratio(system.columns["relevance"][:, tasks], base.columns["relevance"][:, tasks]),
            "reward": bootstrap.ratio(system.columns["reward"][:, tasks], base.columns["reward"][:, tasks]),
            "spread": bootstrap.spread_ratio(system.distances[tasks], base.distances[tasks]),
            "distinct_2": bootstrap.distinct_ratio([system.texts[t] for t in tasks], [base.texts[t] for t in tasks], 2),
        }
        found["finished"] = bootstrap.ratio(system.columns["finished"][:, tasks], base.columns["finished"][:, tasks])
        if "retrieval" in system.columns and "retrieval" in base.columns:
            found["retrieval"] = bootstrap.ratio(system.columns["retrieval"][:, tasks], base.columns["retrieval"][:, tasks])
        if "information" in system.columns and "information" in base.columns:
            found["information_difference"] = bootstrap.difference(
                system.columns["information"][:, tasks], base.columns["information"][:, tasks]
            )
        if found["relevance"].n:
            compared[scope] = {name: interval for name, interval in found.items() if interval.n and np.isfinite(interval.value)}
    return compared
