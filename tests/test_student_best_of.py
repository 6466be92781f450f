"""Of several texts to one command the best is kept; and what "best" is, is the reward of the dataset."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest

from udrl_pipeline import rewards
from udrl_pipeline.commands import Command
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.best_of import BestOf, Rewarder
from udrl_pipeline.student.decoding import Guidance
from udrl_pipeline.student.generation import Generated

RELEVANCE = {"kite in a red sky": 0.65, "red kite red kite": 0.9, "red kite above hills": 0.7, "red kite above green hills and": 0.8}


@pytest.fixture(autouse=True)
def _scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards.Scorer, "relevance", lambda self, ideas, texts: pd.Series([RELEVANCE[text] for text in texts]).to_numpy())


class Scripted:
    """Writes what it was given, one text after the other; a text that ends in "and" was cut off."""

    recipe = "udrl"

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = iter(texts)
        self.asked: list[tuple[list[Command], dict[str, Any]]] = []

    def generate(self, commands: Sequence[Command], **options: Any) -> list[Generated]:
        self.asked.append((list(commands), options))
        return [
            Generated(command, Guidance(), text, len(text.split()), 9, not text.endswith("and"), ())
            for command, text in zip(commands, self.texts, strict=False)
        ]


def test_the_reward_of_a_text_is_that_of_a_row_with_it(load: Callable[..., Settings]) -> None:
    settings = load()
    told = Rewarder(settings)(["red kite"] * 2, ["red kite above hills", "red kite red kite"])
    rows = pd.DataFrame({"intent": ["red kite"] * 2, "text": ["red kite above hills", "red kite red kite"], "relevance": [0.7, 0.9]})
    assert told == rewards.label(rows, settings.rewards).reward.tolist()


def test_the_text_of_the_highest_reward_is_kept_for_each_command(load: Callable[..., Settings]) -> None:
    """Nine in ten relevant, but said twice, is not the best."""
    student = Scripted(
        ["kite in a red sky", "red kite above hills", "red kite red kite", "red kite red kite", "kite in a red sky", "kite in a red sky"]
    )
    kite, hawk = Command("image", "red kite", 5, 4), Command("search", "red kite", None, 5)
    made = BestOf(student, 3, load()).generate([kite, hawk], seed=7, temperature=0.8)  # type: ignore[arg-type]
    assert student.asked == [([kite] * 3 + [hawk] * 3, {"seed": 7, "temperature": 0.8})]
    assert [(one.command, one.text) for one in made] == [(kite, "red kite above hills"), (hawk, "kite in a red sky")]


def test_a_text_that_was_cut_off_is_kept_only_if_all_were(load: Callable[..., Settings]) -> None:
    cut, whole = "red kite above green hills and", "kite in a red sky"
    command = Command("image", "red kite", None, None)
    for texts, kept in (([cut, whole], whole), ([cut, cut], cut)):
        assert [one.text for one in BestOf(Scripted(texts), 2, load()).generate([command])] == [kept]  # type: ignore[arg-type]
