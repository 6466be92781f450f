"""The gate: a student is as good as the one in use only if the whole interval of every measure says so."""

from collections.abc import Callable
from typing import Any

import pytest

from udrl_pipeline.errors import SettingsError
from udrl_pipeline.evaluation.gate import judge
from udrl_pipeline.settings import PromotionSettings, Settings

OPTIONS = PromotionSettings(margin=0.02, measures=("reward", "spread"))


def figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": 150}


@pytest.mark.parametrize(
    ("reward", "spread", "not_worse", "reason"),
    [
        (
            figure(1.01, 0.99, 1.03), figure(1.0, 0.985, 1.01), True,
            "not worse: spread 100.0% [98.5%, 101.0%] of that of the student in use, within the margin of 2.0%",
        ),
        (
            figure(1.1, 1.0, 1.2), figure(1.0, 0.979, 1.02), False,
            "not shown to be as good: spread 100.0% [97.9%, 102.0%] of that of the student in use, not within the margin of 2.0%",
        ),
        (
            figure(0.9, 0.88, 0.92), figure(1.1, 1.0, 1.2), False,
            "not shown to be as good: reward 90.0% [88.0%, 92.0%] of that of the student in use, not within the margin of 2.0%",
        ),
        (
            figure(0.99, 0.985, 0.995), figure(1.05, 0.9, 1.2), False,
            "not shown to be as good: spread 105.0% [90.0%, 120.0%] of that of the student in use, not within the margin of 2.0%",
        ),
        (
            figure(0.98, 0.98, 0.98), figure(1.0, 1.0, 1.0), True,
            "not worse: reward 98.0% [98.0%, 98.0%] of that of the student in use, within the margin of 2.0%",
        ),
    ],
)  # fmt: skip
def test_the_lowest_end_of_all_intervals_decides(reward: Any, spread: Any, not_worse: bool, reason: str) -> None:
    verdict = judge({"reward": reward, "spread": spread, "distinct_2": figure(0.1, 0.1, 0.1)}, OPTIONS)
    assert verdict.as_dict() == {"not_worse": not_worse, "reason": reason, "measures": {"reward": reward, "spread": spread}}


def test_what_could_not_be_compared_counts_as_worse() -> None:
    verdict = judge({"reward": figure(1.1, 1.0, 1.2)}, OPTIONS)
    assert (verdict.not_worse, verdict.reason) == (False, "spread could not be compared with that of the student in use")


def test_a_margin_of_1_lets_everything_through() -> None:
    assert judge({"reward": figure(0.1, 0.0, 0.2), "spread": figure(0.1, 0.0, 0.2)}, OPTIONS.model_copy(update={"margin": 1.0})).not_worse


@pytest.mark.parametrize(
    "wrong",
    [{"promotion.margin": 1.5}, {"promotion.measures": []}, {"promotion.measures": ["taste"]}, {"promotion.measures": ["reward"] * 2}],
)
def test_a_wrong_setting_is_named(load: Callable[..., Settings], wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        load(wrong)
