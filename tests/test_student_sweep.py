"""The sweep behind `--quality best`: guidance under a floor of diversity, then quality, both by reward on validation intents."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from test_commands import SPACE
from udrl_pipeline.commands import Command
from udrl_pipeline.settings import Settings
from udrl_pipeline.student import sweep

INTENTS = ["red fox", "tea house", "old boat"]
VALIDATION = pd.DataFrame(
    {"row_key": [f"k{n}" for n in range(6)], "task": ["image", "search"] * 3, "intent": np.repeat(INTENTS, 2), "text": "words"}
)


class Texts:
    """A student whose text tells how it was asked."""

    space = SPACE

    def generate(self, commands: Sequence[Command], *, guidance: float, **_: Any) -> list[Any]:
        return [SimpleNamespace(text=f"{c.quality} {guidance:g} {c.intent}") for c in commands]


class Scores:
    """A scorer whose relevance and spread are functions of quality and guidance."""

    def __init__(self, relevance: Callable[[int, float], float], spread: Callable[[float], float]) -> None:
        self._relevance, self._spread = relevance, spread

    def relevance(self, intents: Sequence[str], texts: Sequence[str]) -> Any:
        return np.array([self._relevance(int(text.split()[0]), float(text.split()[1])) for text in texts])

    def embed(self, texts: Sequence[str]) -> Any:
        """Unit vectors, each two at the cosine distance that is asked for."""
        distance = self._spread(float(texts[0].split()[1])) if texts[0] != "words" else 0.5
        gram = np.full((len(texts), len(texts)), 1 - distance) + np.eye(len(texts)) * distance
        return np.linalg.cholesky(gram)


@pytest.fixture
def choose(load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def choosing(relevance: Callable[[int, float], float], spread: Callable[[float], float], **overrides: Any) -> Any:
        monkeypatch.setattr(sweep, "Scorer", lambda settings: Scores(relevance, spread))
        settings = load({"evaluation.guidance": [1, 2, 3], "evaluation.sweep_intents": 3, **overrides})
        return sweep.choose_best(Texts(), VALIDATION, settings)  # type: ignore[arg-type]

    return choosing


def test_the_guidance_with_the_highest_reward_and_then_the_quality_is_chosen(choose: Callable[..., Any]) -> None:
    space, found = choose(lambda quality, weight: 0.1 * weight - 0.05 * abs(quality - 4), lambda weight: 0.5)
    assert (space.guidance, space.best) == ({"image": 3.0, "search": 3.0}, {"image": 4, "search": 4})
    rewards = {level: tried["reward"] for level, tried in found["image"]["quality"].items()}
    assert list(rewards) == ["1", "2", "3", "4", "5"]
    assert max(rewards, key=rewards.__getitem__) == "4"
    assert found["image"]["teacher_spread"] == 0.5


@pytest.mark.parametrize(("strongest", "chosen"), [([0.6, 0.5, 0.3], 3.0), ([0.46, 0.45, 0.44], 2.0)], ids=["as good as equal", "worse"])
def test_of_guidances_within_one_standard_error_the_strongest_is_chosen(
    strongest: list[float], chosen: float, choose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    earned = {1.0: [0.3, 0.3, 0.3], 2.0: [0.5, 0.5, 0.5], 3.0: strongest}
    monkeypatch.setattr(Scores, "relevance", lambda self, intents, texts: np.array(earned[float(texts[0].split()[1])]))
    space, found = choose(lambda quality, weight: 0.0, lambda weight: 0.5)
    assert space.guidance == {"image": chosen, "search": chosen}
    assert found["image"]["guidance"]["2"]["reward"] > found["image"]["guidance"]["3"]["reward"] > found["image"]["guidance"]["1"]["reward"]


def test_a_guidance_that_makes_the_texts_alike_is_not_chosen(choose: Callable[..., Any]) -> None:
    space, found = choose(lambda quality, weight: 0.1 * weight, lambda weight: 0.5 if weight < 3 else 0.4)
    assert space.guidance == {"image": 2.0, "search": 2.0}
    assert {weight: tried["spread"] for weight, tried in found["search"]["guidance"].items()} == {"1": 0.5, "2": 0.5, "3": 0.4}


def test_where_no_guidance_is_diverse_enough_there_is_none(choose: Callable[..., Any]) -> None:
    space, found = choose(lambda quality, weight: 0.1 * weight, lambda weight: 0.1, **{"evaluation.guidance": [2, 3]})
    assert space.guidance == {"image": 1.0, "search": 1.0}
    assert list(found["image"]["quality"]) == ["1", "2", "3", "4", "5"]


def test_a_task_without_validation_intents_keeps_the_highest_quality(choose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_student_sweep.VALIDATION", VALIDATION[VALIDATION.task == "image"])
    space, found = choose(lambda quality, weight: 0.1 * weight - 0.1 * quality, lambda weight: 0.5)
    assert (space.best, space.guidance["search"], list(found)) == ({"image": 1, "search": 4}, 2.0, ["image"])
