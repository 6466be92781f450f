"""Texts judged as they come: the reward of each, and of several to one command the best."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from udrl_pipeline.commands import Command
from udrl_pipeline.settings import Settings

if TYPE_CHECKING:
    from udrl_pipeline.student.generation import Generated, Student


class Rewarder:
    """The reward of texts that no store holds, by the scorer and the weights of the dataset; the scorer is loaded on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._scorer = settings, None  # type: Settings, Any

    def __call__(self, ideas: Sequence[str], texts: Sequence[str]) -> list[float]:
        import pandas as pd

        from udrl_pipeline import rewards

        self._scorer = self._scorer or rewards.Scorer(self._settings)
        frame = pd.DataFrame({"intent": list(ideas), "text": list(texts), "relevance": self._scorer.relevance(ideas, texts)})
        return [float(reward) for reward in rewards.label(frame, self._settings.rewards).reward]


class BestOf:
    """A student that writes `number` texts to each command and keeps the one of the highest reward; one that it ended goes before one
    that was cut off. It writes and scores `number` times as much."""

    def __init__(self, student: "Student", number: int, settings: Settings) -> None:
        self._student, self._number, self._rewards = student, number, Rewarder(settings)
        self.recipe = student.recipe

    def generate(self, commands: Sequence[Command], **options: Any) -> "list[Generated]":
        """One text per command, in order; the options are those of the student."""
        made = self._student.generate([command for command in commands for _ in range(self._number)], **options)
        rewards = self._rewards([one.command.intent for one in made], [one.text for one in made])
        places = [range(start, start + self._number) for start in range(0, len(made), self._number)]
        return [made[max(among, key=lambda place: (made[place].finished, rewards[place]))] for among in places]
