"""What the worker thread does with a student, a real one too: a text is the same alone, in company and in pieces."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from student_fake import FakeStudent
from test_commands import SPACE
from test_student_initialise import TEXTS, TINY
from udrl_pipeline import rewards
from udrl_pipeline.commands import Command
from udrl_pipeline.serving.batching import Knobs, Row
from udrl_pipeline.serving.writing import StudentWriter
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.initialise import initialise

KNOBS = Knobs(temperature=0.8, top_p=0.9, guidance=None, length_guidance=1.0, idea_guidance=None, max_tokens=12)
KITE = Command("search", "red kite", 8, 4)
ROWS = [Row(KITE, 7, 0), Row(KITE, 7, 1), Row(Command("search", "blue heron"), 9, 0)]


def test_rewards_are_told_only_where_they_are_wanted(load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], list[str]]] = []

    def relevance(self: rewards.Scorer, intents: list[str], texts: list[str]) -> object:
        asked.append((intents, texts))
        return np.array([0.8, 0.0, 0.4])

    monkeypatch.setattr(rewards.Scorer, "relevance", relevance)
    monkeypatch.setattr(rewards, "scorer_version", lambda settings: "none")
    plain = StudentWriter(load()).write(FakeStudent(), ROWS, KNOBS)
    assert ([text.reward for text in plain], asked) == ([None] * 3, [])
    scored = StudentWriter(load({"serve.scores": True})).write(FakeStudent(), ROWS, KNOBS)
    assert [replace(text, reward=None) for text in scored] == plain
    assert asked == [(["red kite", "red kite", "blue heron"], [text.text for text in plain])]
    first, second, third = [text.reward or 0.0 for text in scored]
    assert first == pytest.approx(second + load().rewards.weights.fidelity)
    assert third == pytest.approx(second + load().rewards.weights.fidelity / 2)


def test_a_text_is_the_same_alone_in_company_and_in_pieces(settings: Settings, load: Callable[..., Settings]) -> None:
    start = initialise(load({**TINY, "student.init_from": "scratch"}), SPACE, TEXTS)
    student, writer = Student(start.model.eval(), start.tokenizer, SPACE, "udrl"), StudentWriter(settings)
    together = writer.write(student, ROWS, KNOBS)
    assert writer.write(student, ROWS[:1], KNOBS) == together[:1]
    assert writer.write(student, ROWS[2:], KNOBS) == together[2:]
    assert together[0].text != together[1].text
    *pieces, whole = writer.stream(student, ROWS[2], KNOBS)
    assert (whole, "".join(map(str, pieces))) == (together[2], together[2].text)
