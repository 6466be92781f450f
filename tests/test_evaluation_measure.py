"""Asking systems for the same intents, and commanded against achieved; with fakes for everything that needs a model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import FakeEngine
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import TeacherError, UdrlError
from udrl_pipeline.evaluation import calibration
from udrl_pipeline.evaluation.figures import Grid
from udrl_pipeline.evaluation.held_out import HeldOut, choose
from udrl_pipeline.evaluation.measure import comparator_samples, score, student_samples, teacher_samples, texts_hash
from udrl_pipeline.evaluation.statistics import Bootstrap
from udrl_pipeline.settings import LlmComparator, Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.decoding import Guidance
from udrl_pipeline.student.generation import Generated

IDEAS = ("red fox", "old barn", "tea party", "night train", "paper boat")
SPACE = CommandSpace(
    tasks=("image", "search"),
    words=(3, 40),
    quality_bins=3,
    edges={"image": [0.4, 0.6], "search": [0.3, 0.5]},
    covered={"image": (6, 30), "search": (4, 12)},
    named_words={"image": {"short": 8}, "search": {"short": 5}},
    best={"image": 3, "search": 2},
    guidance={"image": 1.0, "search": 1.0},
)


def corpus_rows(samples: int = 2) -> pd.DataFrame:
    """Teacher's rows for two tasks, the later sample a word longer; the first idea was cut off, and not kept."""
    rows = [
        (
            f"{idea}-{task}-{sample}",
            task,
            idea,
            idea,
            f"{idea} for {task}" + " more" * sample,
            7,
            "length" if idea == "red fox" else "stop",
            10,
            sample,
        )
        for idea in IDEAS
        for task in ("image", "search")
        for sample in range(samples)
    ]
    columns = ["row_key", "task", "intent", "intent_key", "text", "tokens", "finish_reason", "asked_words", "sample"]
    return pd.DataFrame(rows, columns=columns).assign(kept=lambda frame: frame.intent != "red fox")


@pytest.fixture
def held() -> HeldOut:
    return choose(corpus_rows(), ["image", "search"], 3)


def speak(commands: Sequence[Command]) -> list[Generated]:
    """A student that obeys: the commanded words, and `good` as often as the commanded quality."""
    texts = []
    for command in commands:
        clamped, warnings = SPACE.clamp(command)
        wanted = ["good"] * (clamped.quality or 0) + ["plain"] * 40
        text = " ".join(wanted[: clamped.words or 9])
        texts.append(Generated(clamped, Guidance(), text, len(text.split()), 12, True, tuple(warnings)))
    return texts


@pytest.fixture
def asked(held: HeldOut, settings: Settings) -> pd.DataFrame:
    options = settings.evaluation.model_copy(update={"intents": 3, "quality_intents": 2, "length_intents": 2, "lengths": (2, 8)})
    return student_samples("udrl", speak, SPACE, True, held, options)


def test_held_out_intents_are_the_first_of_a_fixed_draw_the_same_for_every_task(held: HeldOut) -> None:
    of_image = held.first("image", 9).intent.tolist()
    assert of_image == held.first("search", 9).intent.tolist()
    assert choose(corpus_rows().sample(frac=1, random_state=1), ["image", "search"], 2).first("image", 9).intent.tolist() == of_image[:2]
    assert held.rows.text.str.endswith(("image", "search")).all(), "the first sample of each"
    assert len(held.all_rows) == 20


def test_without_a_held_out_answer_the_error_names_the_key() -> None:
    with pytest.raises(UdrlError, match=r"intents\.test"):
        choose(corpus_rows().head(0), ["image"], 3)


def test_the_teacher_is_two_systems_all_its_answers_and_the_kept_ones() -> None:
    everything = teacher_samples(choose(corpus_rows(), ["image", "search"], 5))
    assert everything.groupby("system").size().to_dict() == {"teacher": 10, "teacher_kept": 8}
    assert everything[everything.system == "teacher"].finished.mean() == 0.8
    assert everything[everything.system == "teacher_kept"].finished.all()
    assert set(everything.commanded_words) == {10}


def test_a_commanded_student_is_asked_for_the_comparison_and_both_calibrations(asked: pd.DataFrame) -> None:
    assert asked.groupby(["system", "part", "task"]).size().to_dict() == {
        ("udrl", "compare", "image"): 3,
        ("udrl", "compare", "search"): 3,
        ("udrl", "length", "image"): 4,
        ("udrl", "length", "search"): 4,
        ("udrl", "quality", "image"): 6,
        ("udrl", "quality", "search"): 6,
        ("udrl_uncommanded", "compare", "image"): 3,
        ("udrl_uncommanded", "compare", "search"): 3,
    }
    best = asked[(asked.system == "udrl") & (asked.part == "compare")]
    assert best.groupby("task").commanded_quality.unique().map(list).to_dict() == {"image": [3], "search": [2]}
    assert best.commanded_words.isna().all()
    assert asked[asked.system == "udrl_uncommanded"].commanded_quality.isna().all()


def test_every_quality_is_commanded_on_the_same_intents(asked: pd.DataFrame) -> None:
    intents = asked[asked.part == "quality"].groupby(["task", "commanded_quality"]).intent.unique().map(tuple)
    assert {len(set(of_task)) for _, of_task in intents.groupby("task")} == {1}
    assert intents.index.tolist() == [(task, quality) for task in ("image", "search") for quality in (1, 2, 3)]


def test_a_student_that_is_only_compared_is_asked_at_its_best_quality_alone(held: HeldOut, settings: Settings, asked: pd.DataFrame) -> None:
    options = settings.evaluation.model_copy(update={"intents": 3})
    frame = student_samples("udrl_promoted", speak, SPACE, True, held, options, calibrated=False)
    compared = asked[(asked.system == "udrl") & (asked.part == "compare")].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, compared.assign(system="udrl_promoted"))


def test_an_uncommanded_student_is_given_the_task_alone(held: HeldOut, settings: Settings) -> None:
    options = settings.evaluation.model_copy(update={"intents": 2})
    frame = student_samples("sft", speak, SPACE, False, held, options)
    assert frame.groupby(["system", "part", "task"]).size().to_dict() == {("sft", "compare", "image"): 2, ("sft", "compare", "search"): 2}
    assert frame.commanded_quality.isna().all()


def test_a_comparator_gets_the_teachers_very_chats_and_its_refusals_are_counted(held: HeldOut, workspace: Workspace) -> None:
    engine = FakeEngine(refuses=(str(held.rows.intent.iloc[0]),))
    comparator = LlmComparator.model_validate({"name": "other", "model": {"ref": "path:nowhere"}})
    frame, refused = comparator_samples(comparator, engine, workspace.tasks, held, workspace.settings.teacher)
    assert (len(frame), refused) == (4, 2)
    row = held.rows.iloc[-1]
    task = workspace.tasks[row.task]
    examples = task.drawn_examples(10, workspace.settings.teacher.examples, row.intent_key, 0)
    assert engine.requests[-1].messages == task.messages(row.intent, 10, examples)
    assert frame.columns.tolist() == teacher_samples(held).columns.tolist()


def test_a_comparator_that_refuses_everything_is_an_error_with_its_reason(held: HeldOut, workspace: Workspace) -> None:
    comparator = LlmComparator.model_validate({"name": "other", "model": {"ref": "path:nowhere"}})
    with pytest.raises(TeacherError, match="does not like it"):
        comparator_samples(comparator, FakeEngine(refuses=("",)), workspace.tasks, held, workspace.settings.teacher)


class CountingScorer:
    """Relevance: the share of `good` words."""

    def __init__(self) -> None:
        self.scored = 0

    def relevance(self, intents: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        self.scored += len(texts)
        return np.array([text.split().count("good") / max(len(text.split()), 1) for text in texts])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(len(texts), dtype=np.float32)


def test_a_text_is_scored_once_however_often_it_stands_there(asked: pd.DataFrame, settings: Settings) -> None:
    scorer = CountingScorer()
    scored = score(asked, scorer, settings.rewards)
    assert len(scored) == len(asked)
    assert scorer.scored == len(asked[["intent", "text"]].drop_duplicates())
    assert scored.columns.tolist()[len(asked.columns) :] == [
        "relevance",
        "fidelity",
        "gain",
        "repetition",
        "reward",
        "copied",
        "copied_run",
    ]


def test_the_hash_of_texts_ignores_their_order_and_sees_every_change(asked: pd.DataFrame) -> None:
    version = texts_hash(asked)
    assert texts_hash(asked.sample(frac=1, random_state=3)) == version
    for column, value in {"text": "other", "finished": False, "commanded_quality": 1, "system": "sft"}.items():
        changed = asked.copy()
        changed.loc[changed.index[0], column] = value
        assert texts_hash(changed) != version, column


def test_judges_agree_as_far_as_they_rank_the_same_texts_alike() -> None:
    judged = pd.DataFrame(
        {"relevance": [0.1, 0.2, 0.3, 0.9], "information": [1, 2, 3, None], "retrieval": [1.0, 0.5, 0.25, 0.1], "preferred": None}
    )
    assert calibration.agreement(judged) == {
        "relevance": {"information": 1.0, "retrieval": -1.0},
        "information": {"relevance": 1.0, "retrieval": -1.0},
        "retrieval": {"relevance": -1.0, "information": -1.0},
    }
    assert calibration.agreement(judged.assign(information=None, preferred=[0, 0.5, 0.5, 1]))["relevance"] == {
        "retrieval": -1.0,
        "preferred": 0.9487,
    }


def test_quality_calibration_says_whether_reward_rises_at_every_step(asked: pd.DataFrame) -> None:
    grid = Grid.of(asked)
    rows = asked[asked.part == "quality"].assign(reward=lambda frame: frame.commanded_quality.astype(float) / 10)
    found = calibration.quality(rows, grid, Bootstrap(len(grid.intents), 100, 0))
    level = {"low": 0.1, "high": 0.1, "n": 2}
    assert found["image"]["levels"]["1"] == {"value": 0.1} | level
    assert (found["image"]["spearman"], found["image"]["rises"]) == (1.0, True)
    flat = calibration.quality(rows.assign(reward=0.5), grid, Bootstrap(len(grid.intents), 100, 0))
    assert (flat["image"]["spearman"], flat["image"]["rises"]) == (None, False)


def test_a_clamped_length_is_shown_but_not_counted_in_the_error(asked: pd.DataFrame) -> None:
    grid = Grid.of(asked)
    rows = asked[asked.part == "length"].copy()
    counted = (rows.task == "image") & (rows.commanded_words == 8)
    rows.loc[counted, "text"] = [text + " and more" for text in rows.loc[counted, "text"]]
    rows.loc[counted, "words"] += 2
    found = calibration.length(rows, grid, Bootstrap(len(grid.intents), 100, 0))["image"]
    shown = {
        name: {key: of_length[key] for key in ("value", "mean_absolute_error", "given", "clamped")}
        for name, of_length in found["lengths"].items()
    }
    assert shown == {
        "2": {"value": 6.0, "mean_absolute_error": 4.0, "given": 6, "clamped": True},
        "8": {"value": 10.0, "mean_absolute_error": 2.0, "given": 8, "clamped": False},
    }
    assert (found["mean_absolute_error"], found["spearman"]) == (2.0, None)


def test_where_every_length_is_clamped_there_is_no_error_to_report(asked: pd.DataFrame) -> None:
    grid = Grid.of(asked)
    rows = asked[(asked.part == "length") & (asked.commanded_words == 2)]
    found = calibration.length(rows, grid, Bootstrap(len(grid.intents), 100, 0))
    assert {(of_task["mean_absolute_error"], of_task["spearman"]) for of_task in found.values()} == {(None, None)}


def test_the_teachers_own_obedience_counts_all_its_held_out_rows(held: HeldOut) -> None:
    found = calibration.asked(held.all_rows)["image"]
    words = held.all_rows[held.all_rows.task == "image"].words
    assert found == {
        "lengths": {"10": {"value": words.mean(), "n": 10}},
        "spearman": None,
        "mean_absolute_error": (10 - words).abs().mean(),
    }


def test_a_space_that_knows_fewer_tasks_is_asked_for_those_alone(held: HeldOut, settings: Settings) -> None:
    space = replace(SPACE, tasks=("image",))
    assert set(student_samples("udrl", speak, space, True, held, settings.evaluation).task) == {"image"}
