"""The gate: is a new student worse than the one in use? Answered by the paired intervals of the report, and by nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from udrl_pipeline.settings import PromotionSettings

#: The role in which the student in use stands among the parents of a report.
ROLE = "promoted"


def key_of(recipe: str) -> str:
    """The key in metrics.json of the student in use, which the newest one of the recipe is compared with."""
    return f"{recipe}_{ROLE}"


@dataclass(frozen=True)
class Verdict:
    """What the intervals say.

    Attributes:
        not_worse: Whether every measure says so.
        reason: The measure that decides: the one that is lowest, with its interval.
        measures: Each measure as a share of the mean of the student in use: {value, low, high, n}.
    """

    not_worse: bool
    reason: str
    measures: dict[str, Mapping[str, float]]

    def as_dict(self) -> dict[str, Any]:
        return {"not_worse": self.not_worse, "reason": self.reason, "measures": self.measures}


def judge(ratios: Mapping[str, Mapping[str, float]], options: PromotionSettings) -> Verdict:
    """The verdict on a student.

    Args:
        ratios: Its figures over those of the student in use, as the report's `against` has them for all tasks.
    """
    measures: dict[str, Mapping[str, float]] = {name: ratios[name] for name in options.measures if name in ratios}
    if missing := [name for name in options.measures if name not in ratios]:
        return Verdict(False, f"{' and '.join(missing)} could not be compared with that of the student in use", measures)
    lowest = min(measures, key=lambda name: measures[name]["low"])
    not_worse = measures[lowest]["low"] >= 1 - options.margin
    told = f"{lowest} {_share(measures[lowest])} of that of the student in use, "
    told += f"{'within' if not_worse else 'not within'} the margin of {options.margin:.1%}"
    return Verdict(not_worse, f"{'not worse' if not_worse else 'not shown to be as good'}: {told}", measures)


def _share(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}]"
