"""Commands: rendering, what is covered, and clamping."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline.characters import CONTROL_TOKEN
from udrl_pipeline.commands import Command, CommandSpace, achieved
from udrl_pipeline.errors import StudentError
from udrl_pipeline.intents import problem
from udrl_pipeline.settings import CommandSettings

SPACE = CommandSpace(
    tasks=("image", "search"),
    words=(6, 40),
    quality_bins=5,
    edges={"image": [0.1, 0.2, 0.3, 0.4], "search": [0.2, 0.3, 0.4, 0.5]},
    covered={"image": (7, 30), "search": (6, 40)},
    named_words={"image": {"short": 8, "medium": 14, "long": 24}, "search": {"short": 7, "medium": 12, "long": 20}},
    best={"image": 5, "search": 4},
    guidance={"image": 1.0, "search": 2.0},
)


def test_a_prompt_is_task_intent_length_quality_text() -> None:
    command = Command("image", "lighthouse in a storm", words=18, quality=5)
    assert SPACE.render(command) == "<|task:image|> lighthouse in a storm<|words:18|><|quality:5|><|text|>"


def test_what_is_not_commanded_is_any() -> None:
    assert SPACE.render(Command("image", "a fox")) == "<|task:image|> a fox<|words:any|><|quality:any|><|text|>"


def test_an_idea_that_is_not_given_leaves_no_space() -> None:
    assert SPACE.render(Command("image", "", 18, 5)) == "<|task:image|><|words:18|><|quality:5|><|text|>"


def test_a_student_that_does_not_say_how_hard_it_presses_the_idea_writes_as_it_was_trained(tmp_path: Path) -> None:
    replace(SPACE, idea_guidance=1.5).save(tmp_path)
    assert CommandSpace.load(tmp_path) == replace(SPACE, idea_guidance=1.5)
    file = tmp_path / "commands.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "idea_guidance"}))
    assert CommandSpace.load(tmp_path) == replace(SPACE, idea_guidance=1.0)


def test_commands_can_stand_first() -> None:
    space = replace(SPACE, order="first")
    assert space.render(Command("image", "a fox", 18, 5)) == "<|words:18|><|quality:5|><|task:image|> a fox<|text|>"


def test_neighbouring_lengths_can_share_a_token() -> None:
    space = replace(SPACE, words_per_token=4)
    rendered = [space.render(Command("image", "a fox", words, 5)) for words in (6, 9, 10, 40)]
    assert [text.split("|>")[1] for text in rendered] == [" a fox<|words:6", " a fox<|words:6", " a fox<|words:10", " a fox<|words:38"]
    assert {token for token in space.control_tokens() if "words" in token} == {f"<|words:{n}|>" for n in ("any", *range(6, 41, 4))}


def test_control_tokens_are_all_that_a_prompt_can_hold() -> None:
    tokens = SPACE.control_tokens()
    assert tokens[:2] == ["<|task:image|>", "<|task:search|>"]
    assert len(tokens) == len(set(tokens)) == 2 + 36 + 6 + 1


@given(st.sampled_from(SPACE.tasks), st.integers(-5, 99), st.integers(-5, 99))
def test_a_clamped_command_is_covered_and_every_change_is_warned_of(task: str, words: int, quality: int) -> None:
    clamped, warnings = SPACE.clamp(Command(task, "a fox", words, quality))
    low, high = SPACE.covered[task]
    assert low <= (clamped.words or 0) <= high
    assert 1 <= (clamped.quality or 0) <= 5
    assert len(warnings) == (clamped.words != words) + (clamped.quality != quality)
    assert all(token in SPACE.control_tokens() for token in CONTROL_TOKEN.findall(SPACE.render(clamped)))


def test_a_command_inside_the_range_is_not_touched() -> None:
    command = Command("image", "a fox", 12, 3)
    assert SPACE.clamp(command) == (command, [])


def test_a_clamped_length_says_what_is_covered() -> None:
    assert SPACE.clamp(Command("image", "a fox", 50))[1] == ["length 50 is outside what the image rows cover (7 to 30 words): 30 is used"]


def test_an_unknown_task_names_those_that_there_are() -> None:
    with pytest.raises(StudentError, match="unknown task 'poem'") as error:
        SPACE.clamp(Command("poem", "a fox"))
    assert "image, search" in str(error.value)


def test_a_command_space_survives_its_file(tmp_path: Path) -> None:
    SPACE.save(tmp_path)
    assert CommandSpace.load(tmp_path) == SPACE


def test_a_folder_without_commands_is_no_student(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="is no student"):
        CommandSpace.load(tmp_path)


@pytest.mark.parametrize(
    ("lengths", "covered"),
    [
        ([10] * 400 + [20] * 16, (8, 22)),  # within two words of sixteen rows
        ([10] * 400 + [20] * 15, (8, 12)),
        ([10] * 400 + [18] * 8 + [22] * 8, (8, 20)),  # eight rows on either side
        ([4] * 400 + [60] * 400, (6, 6)),  # what has no token of its own does not count
        ([10] * 20 + [20] * 2, (8, 22)),  # of a small dataset a twentieth
        ([50] * 20, (50, 50)),
    ],
)
def test_a_length_is_covered_when_enough_rows_have_about_it(lengths: list[int], covered: tuple[int, int]) -> None:
    train = pd.DataFrame({"task": "image", "words": lengths})
    assert CommandSpace.measure(train, {"image": [0.1, 0.2, 0.3, 0.4]}, CommandSettings()).covered == {"image": covered}


def test_named_lengths_are_quantiles_inside_what_is_covered() -> None:
    train = pd.DataFrame({"task": "image", "words": [4] * 200 + [8] * 500 + [20] * 300 + [60] * 200})
    space = CommandSpace.measure(train, {"image": [0.1, 0.2, 0.3, 0.4]}, CommandSettings())
    assert space.named_words == {"image": {"short": 6, "medium": 8, "long": 22}}


def test_a_row_is_commanded_with_what_it_achieved() -> None:
    rows = pd.DataFrame({"task": ["image", "search"], "intent": ["a fox", "an owl"], "words": [12, 55], "quality": [3, 5]})
    assert list(achieved(rows, SPACE)) == [Command("image", "a fox", 12, 3), Command("search", "an owl", None, 5)]


@given(st.text(max_size=60))
def test_no_accepted_idea_can_hold_a_control_token(idea: str) -> None:
    if problem(idea, 200) is None:
        assert not CONTROL_TOKEN.search(idea)
