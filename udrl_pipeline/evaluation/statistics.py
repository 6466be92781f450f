"""95% intervals by a paired bootstrap over intents, vectorised and seeded.

An intent is the unit that is drawn again, with all its tasks and for all systems at once: two systems are always compared
on the same draws. Values stand in arrays of shape [intents, tasks], NaN where a system has no text; a figure over several
tasks is the mean of the tasks' means. A set figure (distinct-n) cannot be drawn with replacement, since a text drawn twice
adds no new n-gram: its intervals come from random halves of the intents, whose means vary exactly as much as those of the
whole, moved to the estimate.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = (2.5, 97.5)
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, its 95% interval, and the number of intents behind it. The interval always holds the estimate."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        return {name: round(number, DIGITS) for name, number in asdict(self).items()}


def percent(value: float | None, digits: int = 0) -> str:
    """A share for people: 1.1755 is 117.6%, wherever it stands and whether its further digits are still there or not."""
    if value is None or np.isnan(value):
        return "–"
    kept = Decimal(str(round(float(value), DIGITS))).scaleb(2)
    return f"{kept.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)}%"


class Bootstrap:
    """Draws of the held-out intents, the same for every figure of a report.

    Args:
        intents: How many intents there are; rows of every array given to the methods.
        repeats: Draws.
        seed: The same seed gives the same intervals.
    """

    def __init__(self, intents: int, repeats: int, seed: int) -> None:
        self.intents, self._repeats, self._seed = intents, repeats, seed

    @cached_property
    def counts(self) -> Floats:
        """How often each draw holds each intent, shape [repeats, intents]."""
        drawn = np.random.default_rng(self._seed).multinomial(self.intents, np.full(self.intents, 1 / self.intents), size=self._repeats)
        return drawn.astype(np.float64)

    @cached_property
    def order(self) -> Floats:
        """A random number for each draw and intent, shape [repeats, intents]: the smaller half of any subset is a random half."""
        return np.random.default_rng(self._seed + 1).random((self._repeats, self.intents))

    def mean(self, values: Floats) -> Interval:
        """The mean of the tasks' means."""
        return self._interval(_macro_mean(np.ones(self.intents), values), _macro_mean(self.counts, values), values)

    def ratio(self, values: Floats, base: Floats) -> Interval:
        """The mean of `values` over the mean of `base`, on the intents and tasks that have both."""
        return self._paired(values, base, np.divide)

    def difference(self, values: Floats, base: Floats) -> Interval:
        """The mean of `values` less the mean of `base`, on the intents and tasks that have both."""
        return self._paired(values, base, np.subtract)

    def _paired(self, values: Floats, base: Floats, combine: Callable[[Floats, Floats], Floats]) -> Interval:
        both = np.where(np.isnan(values) | np.isnan(base), np.nan, 1.0)
        one = np.ones(self.intents)
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = combine(_macro_mean(one, values * both), _macro_mean(one, base * both))
            drawn = combine(_macro_mean(self.counts, values * both), _macro_mean(self.counts, base * both))
        return self._interval(estimate, drawn, both)

    def spread(self, distances: Floats) -> Interval:
        """The mean distance of two texts of different intents; `distances` has shape [tasks, intents, intents]."""
        present = np.diagonal(distances, axis1=1, axis2=2).T
        return self._interval(_macro_spread(np.ones((1, self.intents)), distances), _macro_spread(self.counts, distances), present)

    def spread_ratio(self, distances: Floats, base: Floats) -> Interval:
        """The spread of one system over that of another, on the intents and tasks that have both."""
        both = np.where(np.isnan(distances) | np.isnan(base), np.nan, 1.0)
        one = np.ones((1, self.intents))
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = _macro_spread(one, distances * both) / _macro_spread(one, base * both)
            drawn = _macro_spread(self.counts, distances * both) / _macro_spread(self.counts, base * both)
        return self._interval(estimate, drawn, np.diagonal(both, axis1=1, axis2=2).T)

    def distinct_ratio(self, texts: list[list[str | None]], base: list[list[str | None]], order: int) -> Interval:
        """distinct-n of one system over that of another; both hold, per task, one text (or None) per intent."""
        both = [np.array([a is not None and b is not None for a, b in zip(*pair, strict=True)]) for pair in zip(texts, base, strict=True)]
        whole, halves = self._mean_distinct(texts, both, order)
        base_whole, base_halves = self._mean_distinct(base, both, order)
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate, drawn = whole / base_whole, halves / base_halves
        return self._interval(estimate, estimate + drawn - np.mean(drawn), np.where(np.stack(both, axis=1), 1.0, np.nan))

    def _mean_distinct(self, texts: list[list[str | None]], chosen: list[NDArray[np.bool_]], order: int) -> tuple[Floats, Floats]:
        """The mean of the tasks' distinct-n: over the chosen texts (a scalar), and over each random half (shape [repeats])."""
        found = [self._distinct(of_task, has, order) for of_task, has in zip(texts, chosen, strict=True) if has.any()]
        if not found:
            return np.array(np.nan), np.full(self._repeats, np.nan)
        whole, halves = zip(*found, strict=True)
        return np.asarray(np.mean(whole)), np.asarray(np.mean(halves, axis=0))

    def _distinct(self, texts: list[str | None], has: NDArray[np.bool_], order: int) -> tuple[float, Floats]:
        grams = [_ngrams(text or "", order) if there else [] for text, there in zip(texts, has, strict=True)]
        columns = {gram: column for column, gram in enumerate(sorted({gram for of_text in grams for gram in of_text}))}
        holds = np.zeros((len(texts), max(len(columns), 1)), dtype=np.float32)
        for row, of_text in enumerate(grams):
            holds[row, [columns[gram] for gram in of_text]] = 1
        totals = np.array([len(of_text) for of_text in grams], dtype=np.float64)
        keys = np.where(has, self.order, np.inf)
        kept = (np.argsort(np.argsort(keys, axis=1), axis=1) < max(1, int(has.sum()) // 2)) & has
        whole = float(len(columns) / max(totals.sum(), 1))
        return whole, ((kept.astype(np.float32) @ holds) > 0).sum(axis=1) / np.maximum(kept @ totals, 1)

    def _interval(self, estimate: Floats, drawn: Floats, values: Floats) -> Interval:
        value, finite = float(np.ravel(estimate)[0]), drawn[np.isfinite(drawn)]
        low, high = np.percentile(finite, LEVELS) if len(finite) else (np.nan, np.nan)
        intents = int((~np.isnan(values)).any(axis=1).sum())
        return Interval(value, float(np.fmin(low, value)), float(np.fmax(high, value)), intents)


def median(sample: Floats, repeats: int, seed: int) -> Interval:
    """The median of a sample such as latencies."""
    drawn = np.median(np.random.default_rng(seed).choice(sample, (repeats, len(sample))), axis=1)
    value, (low, high) = float(np.median(sample)), np.percentile(drawn, LEVELS)
    return Interval(value, min(float(low), value), max(float(high), value), len(sample))


def ratio_of_medians(base: Floats, values: Floats, repeats: int, seed: int) -> Interval:
    """The median of `base` over the median of `values`, for two unpaired samples such as latencies."""
    draw = np.random.default_rng(seed)
    medians = [np.median(draw.choice(sample, (repeats, len(sample))), axis=1) for sample in (base, values)]
    value = float(np.median(base) / np.median(values))
    low, high = np.percentile(medians[0] / medians[1], LEVELS)
    return Interval(value, min(float(low), value), max(float(high), value), min(len(base), len(values)))


def _macro_mean(weights: Floats, values: Floats) -> Floats:
    """Mean over tasks of the weighted means over intents: weights [..., intents], values [intents, tasks] -> [...]."""
    there = ~np.isnan(values)
    return _mean_of_tasks(weights @ np.where(there, values, 0), weights @ there)


def _macro_spread(weights: Floats, distances: Floats) -> Floats:
    """Mean over tasks of the weighted mean distance: weights [draws, intents], distances [tasks, intents, intents] -> [draws]."""
    sums, pairs = [], []
    for of_task in distances:
        there = ~np.isnan(of_task)
        np.fill_diagonal(there, False)  # an intent drawn twice is no pair
        sums.append(((weights @ np.where(there, of_task, 0)) * weights).sum(axis=-1))
        pairs.append(((weights @ there) * weights).sum(axis=-1))
    return _mean_of_tasks(np.stack(sums, axis=-1), np.stack(pairs, axis=-1))


def _mean_of_tasks(sums: Floats, weights: Floats) -> Floats:
    """The mean of sums / weights over the tasks that have any weight; NaN where none has."""
    has = weights > 0
    means = np.divide(sums, weights, out=np.zeros_like(sums), where=has)
    count = has.sum(axis=-1)
    return np.divide(means.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
