"""The rubric judge: pairs in drawn order, verdicts read from chat, ties and silence counted as what they are."""

from collections.abc import Callable

import pandas as pd
import pytest

from udrl_pipeline.errors import TeacherError
from udrl_pipeline.evaluation import rubric, systems
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.tasks import Task, load_tasks
from udrl_pipeline.teacher import Refusal, Reply, Request

PAIRS = pd.DataFrame(
    [("image", f"idea {n}", f"idea {n}", f"a vivid text {n}", f"a dull text {n}") for n in range(60)],
    columns=["task", "intent", "intent_key", "text", "teacher_text"],
)


class Judge:
    """Answers each question by a function of (first answer, second answer)."""

    name, version = "fake", "1"

    def __init__(self, answer: Callable[[str, str], str | None]) -> None:
        self.answer, self.questions = answer, list[str]()

    def generate(self, requests: list[Request]) -> list[Reply | Refusal]:
        self.questions += [request.messages[0]["content"] for request in requests]
        replies = [self.answer(*(line.split(": ", 1)[1] for line in q.split("\n") if line.startswith("Answer "))) for q in self.questions]
        return [Refusal("too long") if reply is None else Reply(reply, 3, "stop") for reply in replies]

    def close(self) -> None: ...


@pytest.fixture
def tasks(settings: Settings) -> dict[str, Task]:
    return load_tasks(settings)


def test_a_judge_that_knows_what_it_likes_prefers_it_in_either_place(tasks: dict[str, Task]) -> None:
    preferred, tally = rubric.compare(PAIRS, tasks, Judge(lambda first, second: "A" if "vivid" in first else "Answer B."))
    assert preferred.tolist() == [1.0] * 60
    assert (tally["verdicts"], tally["no_verdict"], tally["ties"]) == (60, 0, 0.0)
    assert 0.3 < tally["first_place"] < 0.7


def test_a_judge_that_likes_a_place_shows_it(tasks: dict[str, Task]) -> None:
    preferred, tally = rubric.compare(PAIRS, tasks, Judge(lambda *_: "A"))
    assert tally["first_place"] == 1.0
    assert 0.3 < preferred.mean() < 0.7


def test_a_tie_counts_half_and_no_verdict_not_at_all(tasks: dict[str, Task]) -> None:
    answers = iter(["tie", "I cannot say", None, "B or A"] * 15)
    preferred, tally = rubric.compare(PAIRS, tasks, Judge(lambda *_: next(answers)))
    assert preferred.iloc[::4].tolist() == [0.5] * 15
    assert preferred.isna().sum() == 30
    assert tally == {"verdicts": 30, "no_verdict": 30, "ties": 0.5, "first_place": 0.0}


def test_the_question_holds_idea_task_and_both_answers(tasks: dict[str, Task]) -> None:
    judge = Judge(lambda *_: "tie")
    rubric.compare(PAIRS.head(1), tasks, judge)
    assert all(part in judge.questions[0] for part in ("Idea: idea 0\n", tasks["image"].label, "a vivid text 0", "a dull text 0"))


def test_the_order_of_a_pair_does_not_depend_on_the_others(tasks: dict[str, Task]) -> None:
    all_of_them, one = Judge(lambda *_: "tie"), Judge(lambda *_: "tie")
    rubric.compare(PAIRS, tasks, all_of_them)
    rubric.compare(PAIRS.iloc[[7]], tasks, one)
    assert one.questions == [all_of_them.questions[7]]


def test_a_judge_that_refuses_everything_is_an_error(tasks: dict[str, Task]) -> None:
    with pytest.raises(TeacherError, match="refused every request"):
        rubric.compare(PAIRS, tasks, Judge(lambda *_: None))


SAMPLES = pd.DataFrame(
    [
        (system, part, task, f"idea {n}", f"key {n}", f"{adjective} text {n}")
        for system, adjective in (("teacher", "dull"), ("teacher_kept", "dull"), ("udrl", "vivid"), ("sft", "plain"))
        for part in ("compare", "quality")
        for task in ("image", "search")
        for n in range(5)
    ],
    columns=["system", "part", "task", "intent", "intent_key", "text"],
)
JUDGED = {"evaluation.rubric_judge": {"name": "Fake 8B", "model": {"ref": "path:nowhere"}}, "evaluation.judge_rows": 3}


def test_every_other_system_is_compared_with_the_teacher(load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(lambda first, second: "tie" if "plain" in first + second else "A" if "vivid" in first else "B")
    monkeypatch.setattr(systems, "open_engine", lambda *_: judge)
    done = systems.Progress()
    found = systems.judge_by_rubric(done, SAMPLES, Workspace(load(JUDGED)))
    means = found.groupby(["system", "part"]).preferred.agg(["count", "mean"]).query("count > 0")
    assert means.to_dict("index") == {("sft", "compare"): {"count": 6, "mean": 0.5}, ("udrl", "compare"): {"count": 6, "mean": 1.0}}
    assert found.drop(columns="preferred").equals(SAMPLES)
    assert (done.rubric["judge"], done.rubric["verdicts"], done.rubric["ties"]) == ("Fake 8B", 12, 0.5)


def test_a_judge_that_cannot_be_had_is_a_reason_and_no_error(load: Callable[..., Settings]) -> None:
    done = systems.Progress()
    found = systems.judge_by_rubric(done, SAMPLES, Workspace(load(JUDGED)))
    assert found.preferred.isna().all()
    assert "nothing is there" in done.rubric["not_measured"]
