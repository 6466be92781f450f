"""The bootstrap: paired, seeded, and its intervals hold what they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from udrl_pipeline.evaluation.metrics import load_metric
from udrl_pipeline.evaluation.statistics import Bootstrap, Interval, median, percent, ratio_of_medians

NAN = np.nan
values = arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 3)), elements=st.floats(0.1, 1.0) | st.just(NAN))


@given(values)
def test_an_interval_holds_its_estimate_and_counts_the_intents_behind_it(array: np.ndarray) -> None:
    interval = Bootstrap(len(array), 200, seed=1).mean(array)
    assert interval.n == (~np.isnan(array)).any(axis=1).sum()
    if interval.n:
        assert interval.low <= interval.value <= interval.high
        columns = [column[~np.isnan(column)].mean() for column in array.T if not np.isnan(column).all()]
        assert interval.value == pytest.approx(np.mean(columns))


@given(values)
def test_a_system_against_itself_is_exactly_as_good(array: np.ndarray) -> None:
    bootstrap = Bootstrap(len(array), 200, seed=1)
    ratio, difference = bootstrap.ratio(array, array), bootstrap.difference(array, array)
    if ratio.n:
        assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_a_pair_counts_only_where_both_systems_have_a_text() -> None:
    system, base = np.array([[0.5], [0.9], [NAN]]), np.array([[1.0], [NAN], [0.2]])
    assert Bootstrap(3, 100, seed=0).ratio(system, base) == Interval(0.5, 0.5, 0.5, 1)


def test_pairing_makes_the_interval_of_a_ratio_narrower_than_that_of_its_parts() -> None:
    base = np.random.default_rng(0).uniform(0.3, 0.9, (80, 1))
    system = base * 0.97 + np.random.default_rng(1).normal(0, 0.01, (80, 1))
    bootstrap = Bootstrap(80, 1000, seed=3)
    ratio, mean = bootstrap.ratio(system, base), bootstrap.mean(base)
    assert 0.96 < ratio.low < ratio.value < ratio.high < 0.98
    assert ratio.high - ratio.low < (mean.high - mean.low) / 5


def test_the_interval_of_a_mean_is_about_that_of_the_normal_theory() -> None:
    sample = np.random.default_rng(5).normal(10, 2, (200, 1))
    interval = Bootstrap(200, 4000, seed=7).mean(sample)
    half = 1.96 * sample.std() / np.sqrt(200)
    assert (interval.low, interval.high) == (pytest.approx(sample.mean() - half, abs=0.03), pytest.approx(sample.mean() + half, abs=0.03))


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    sample = np.random.default_rng(5).normal(10, 2, (50, 2))
    assert Bootstrap(50, 300, seed=7).mean(sample) == Bootstrap(50, 300, seed=7).mean(sample)
    assert Bootstrap(50, 300, seed=7).mean(sample) != Bootstrap(50, 300, seed=8).mean(sample)


def _distances(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (1 - unit @ unit.T)[None]


def test_the_spread_is_that_of_the_evaluate_module_and_missing_texts_do_not_count() -> None:
    vectors = np.random.default_rng(2).normal(size=(20, 6))
    expected = load_metric("embedding_spread").compute(predictions=vectors[:15].tolist())["embedding_spread"]
    distances = _distances(vectors)
    distances[:, 15:, :] = distances[:, :, 15:] = NAN
    interval = Bootstrap(20, 500, seed=0).spread(distances)
    assert interval.value == pytest.approx(expected, abs=1e-6)
    assert interval.low < interval.value < interval.high
    assert interval.n == 15


def test_the_spread_of_a_collapsed_system_is_a_small_share_of_the_others() -> None:
    draw = np.random.default_rng(3)
    wide, narrow = _distances(draw.normal(size=(30, 8))), _distances(np.ones((30, 8)) + draw.normal(0, 0.1, (30, 8)))
    bootstrap = Bootstrap(30, 500, seed=0)
    assert bootstrap.spread_ratio(narrow, wide).high < 0.05
    assert bootstrap.spread_ratio(wide, wide) == Interval(1.0, 1.0, 1.0, 30)


def test_the_ratio_of_distinct_n_is_that_of_the_evaluate_module() -> None:
    draw = np.random.default_rng(4)
    many, few = [f"w{n}" for n in range(60)], [f"w{n}" for n in range(12)]
    rich: list[str | None] = [" ".join(draw.choice(many, 10)) for _ in range(40)]
    poor: list[str | None] = [" ".join(draw.choice(few, 10)) for _ in range(40)]
    distinct = [load_metric("distinct_n").compute(predictions=texts, orders=[2])["distinct_2"] for texts in (poor, rich)]
    interval = Bootstrap(40, 500, seed=0).distinct_ratio([poor], [rich], 2)
    assert interval.value == pytest.approx(distinct[0] / distinct[1])
    assert interval.low < interval.value < interval.high < 0.6
    assert Bootstrap(40, 500, seed=0).distinct_ratio([rich], [rich], 2) == Interval(1.0, 1.0, 1.0, 40)
    some: list[str | None] = [None] * 10
    assert Bootstrap(40, 500, seed=0).distinct_ratio([some + rich[10:]], [rich], 2) == Interval(1.0, 1.0, 1.0, 30)


def test_medians_have_intervals_too() -> None:
    slow, fast = np.array([2.0, 2.1, 1.9, 2.0]), np.array([0.5, 0.5, 0.5])
    ratio = ratio_of_medians(slow, fast, 500, seed=0)
    assert (ratio.value, ratio.n) == (4.0, 3)
    assert 3.7 < ratio.low <= 4.0 <= ratio.high < 4.3
    assert median(fast, 500, seed=0) == Interval(0.5, 0.5, 0.5, 3)


@pytest.mark.parametrize(
    ("value", "digits", "told"),
    [
        (1.1755, 1, "117.6%"),
        (1.17553, 1, "117.6%"),
        (1.17547, 1, "117.6%"),
        (0.945, 0, "95%"),
        (0.0, 0, "0%"),
        (-0.005, 1, "-0.5%"),
        (None, 1, "–"),
    ],
)
def test_a_share_reads_the_same_with_all_its_digits_and_with_four(value: float | None, digits: int, told: str) -> None:
    assert percent(value, digits) == told
