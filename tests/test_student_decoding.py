"""How tokens are drawn: guidance is the formula it says, lengths are governed, sampling follows the distribution."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from test_commands import SPACE
from test_student_initialise import TEXTS, TINY
from udrl_pipeline.commands import Command
from udrl_pipeline.errors import StudentError
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.decoding import Beginnings, Decoding, Governor, Guidance, variants
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.initialise import initialise

GREEDY = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}
ASKED = Command("search", "red fox", words=9, quality=4)


LEVELS = torch.rand(20_000, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def student(load: Callable[..., Settings]) -> Student:
    """An untrained student whose logits differ enough for greedy answers to differ."""
    start = initialise(load({**TINY, "student.init_from": "scratch"}), SPACE, TEXTS)
    with torch.no_grad():
        for parameter in start.model.parameters():
            parameter.mul_(4)
    return Student(start.model.eval(), start.tokenizer, SPACE, "udrl")


def first_logits(student: Student, command: Command) -> Any:
    with torch.inference_mode():
        return student.model(**student.tokenizer(SPACE.render(command), add_special_tokens=False, return_tensors="pt")).logits[0, -1]


@pytest.mark.parametrize(
    ("quality", "length", "idea"),
    [
        (1.0, 1.0, 1.0),
        (3.0, 1.0, 1.0),
        (1.0, 2.5, 1.0),
        (2.0, 1.5, 1.0),
        (0.0, 1.0, 1.0),
        (1.0, 1.0, 3.0),
        (2.0, 1.5, 1.5),
        (1.0, 1.0, 0.0),
    ],
)
def test_guidance_weighs_each_condition_against_the_same_without_it(student: Student, quality: float, length: float, idea: float) -> None:
    full = first_logits(student, ASKED)
    without_quality = first_logits(student, Command("search", "red fox", words=9))
    without_length = first_logits(student, Command("search", "red fox", quality=4))
    without_idea = first_logits(student, Command("search", "", words=9, quality=4))
    pressed = ((quality, without_quality), (length, without_length), (idea, without_idea))
    expected = full + sum((weight - 1) * (full - without) for weight, without in pressed)
    expected[student.tokenizer.convert_tokens_to_ids(SPACE.control_tokens())] = -float("inf")
    expected[student.tokenizer.eos_token_id] = -float("inf")  # too early for nine words
    [made] = student.generate([ASKED], **GREEDY, guidance=quality, length_guidance=length, idea_guidance=idea, max_new_tokens=1)
    assert made.text == student.tokenizer.decode([int(expected.argmax())]).strip()
    assert made.guidance == Guidance(quality, length, idea)


def test_without_a_weight_the_student_s_own_guidance_of_the_task_is_used(student: Student) -> None:
    own, given, plain = (student.generate([ASKED], **GREEDY, **options)[0] for options in ({}, {"guidance": 2.0}, {"guidance": 1.0}))
    assert [made.guidance.quality for made in (own, given, plain)] == [2.0, 2.0, 1.0]
    assert own.text == given.text != plain.text


def test_without_a_weight_the_idea_is_pressed_as_the_student_keeps_it(student: Student) -> None:
    plain, given = (student.generate([ASKED], **GREEDY, **options)[0].text for options in ({}, {"idea_guidance": 4.0}))
    student.space = replace(SPACE, idea_guidance=4.0)
    own, unpressed = (student.generate([ASKED], **GREEDY, **options)[0].text for options in ({}, {"idea_guidance": 1.0}))
    assert (own, unpressed) == (given, plain)
    assert given != plain


def test_a_weight_of_zero_leaves_the_command_out(student: Student) -> None:
    [without] = student.generate([Command("search", "red fox", words=9)], **GREEDY)
    [zero] = student.generate([ASKED], **GREEDY, guidance=0)
    assert (zero.text, without.guidance.quality) == (without.text, 1.0)


def test_nothing_is_read_twice_where_nothing_is_guided() -> None:
    assert variants([ASKED, Command("search", "red fox")], [Guidance(), Guidance(quality=3, length=3)]) == []
    assert variants([Command("search", "")], [Guidance(idea=3)]) == []
    [idea] = variants([ASKED, Command("search", "")], [Guidance(idea=3), Guidance(idea=3)])
    assert (idea.commands, idea.weights) == ([Command("search", "", 9, 4), Command("search", "")], [2.0, 0.0])
    [only] = variants([ASKED, Command("search", "red fox")], [Guidance(quality=3), Guidance(quality=3)])
    assert (only.commands, only.weights) == ([Command("search", "red fox", 9), Command("search", "red fox")], [2.0, 0.0])


def test_a_text_does_not_depend_on_what_is_guided_beside_it(student: Student) -> None:
    commands = [ASKED, Command("image", "tea", quality=2), Command("search", "tea")]
    alone = [student.generate([command], **GREEDY)[0].text for command in commands]
    assert [made.text for made in student.generate(commands, **GREEDY)] == alone


@pytest.mark.parametrize("weight", [-0.1, 10.5, float("nan")])
def test_a_weight_out_of_range_is_a_typed_error(student: Student, weight: float) -> None:
    with pytest.raises(StudentError, match="no weight for the quality command"):
        student.generate([ASKED], **GREEDY, guidance=weight)
    with pytest.raises(StudentError, match="no weight for the idea"):
        student.generate([ASKED], **GREEDY, idea_guidance=weight)
    for name in ("guidance", "length_guidance"):  # nor where there is nothing to press
        with pytest.raises(StudentError, match="is no weight for the"):
            student.generate([Command("search", "red fox")], **GREEDY, **{name: weight})


@pytest.mark.parametrize(
    ("written", "possible"),
    [
        ([1, 1, 2, 1], ["begins", "goes on"]),  # three words: the end is more than two away
        ([1, 1, 1, 1], ["begins", "goes on", "end"]),
        ([1] * 7, ["begins", "goes on", "end"]),
        ([1] * 8, ["goes on", "end"]),  # two words too long: the last word may be finished, no new one begun
    ],
)
def test_a_text_cannot_end_early_nor_go_on_for_long(written: list[int], possible: list[str]) -> None:
    tokens = {"end": 0, "begins": 1, "goes on": 2}
    governor = Governor(torch.tensor([False, True, False]), tokens["end"], [6, None], slack=2)
    governed, free = governor(torch.tensor([written, written]), torch.zeros(2, 3))
    assert [name for name, token in sorted(tokens.items()) if governed[token] == 0] == sorted(possible)
    assert free.tolist() == [0, 0, 0]


def test_no_run_of_three_tokens_is_written_twice() -> None:
    decoding = Decoding(
        prompt_tokens=2, weights=[], temperature=0.0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, silent=[], governor=None,
        levels=LEVELS,
    )  # fmt: skip
    liked = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    assert decoding(torch.tensor([[1, 1, 2, 3, 1, 2, 3]]), liked).isinf().tolist() == [[False, True, False, False]]
    assert decoding(torch.tensor([[2, 3, 1, 2, 3]]), liked).isinf().sum() == 0, "what the prompt holds may be said again"


VOCABULARY = ["ĠJazz", "ĠJ", "azz", "Ġja", "zz", ",", "▁Night", None, "Ġ"]


@pytest.mark.parametrize(
    ("written", "barred"),
    [
        ([], []),
        ([2, 4], []),  # no word has begun
        ([0], ["ĠJ", "Ġja", "ĠJazz"]),
        ([6, 1, 2, 5], ["ĠJ", "Ġja", "ĠJazz"]),
        ([0, 6], ["▁Night"]),
        ([1], ["ĠJ"]),
    ],
)
def test_no_word_stands_twice_in_a_row_whatever_its_case_and_tokens(written: list[int], barred: list[str]) -> None:
    beginnings = Beginnings(VOCABULARY)
    assert [VOCABULARY[token] for token in beginnings.stutters(written)] == barred
    decoding = Decoding(
        prompt_tokens=1, weights=[], temperature=0.0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, silent=[], governor=None,
        levels=LEVELS, beginnings=beginnings,
    )  # fmt: skip
    liked = torch.tensor([[9.0, 8.0, 0.0, 7.0, 0.0, 0.0, 6.0, 0.0, 0.0]])
    best = next(token for token in (0, 1, 3, 6) if VOCABULARY[token] not in barred)
    assert decoding(torch.tensor([[0, *written]]), liked).argmax(dim=1).tolist() == [best]


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    decoding = Decoding(
        prompt_tokens=1, weights=[], temperature=1.0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, silent=[], governor=None,
        levels=LEVELS,
    )  # fmt: skip
    drawn = decoding(torch.zeros(20_000, 1, dtype=torch.long), probabilities.log().repeat(20_000, 1)).argmax(dim=1)
    assert (drawn.bincount() / len(drawn)).tolist() == pytest.approx(probabilities.tolist(), abs=0.015)


def test_a_row_and_its_variants_draw_the_same_token() -> None:
    decoding = Decoding(
        prompt_tokens=1, weights=[[1.0] * 50], temperature=1.0, top_p=0.9, min_p=0.0, repetition_penalty=1.1, silent=[0], governor=None,
        levels=LEVELS[:50],
    )  # fmt: skip
    drawn = decoding(torch.ones(100, 1, dtype=torch.long), torch.randn(100, 30)).argmax(dim=1)
    assert drawn[:50].tolist() == drawn[50:].tolist()
    assert len(set(drawn.tolist())) > 5


def test_guidance_cannot_lift_what_the_full_command_finds_implausible() -> None:
    full, without = torch.tensor([[0.6, 0.36, 0.04]]).log(), torch.tensor([[0.7, 0.299, 0.001]]).log()
    drawn = {}
    for min_p in (0.0, 0.1, 0.7):
        decoding = Decoding(
            prompt_tokens=1, weights=[[2.0]], temperature=0.0, top_p=1.0, min_p=min_p, repetition_penalty=1.0, silent=[],
            governor=None, levels=LEVELS,
        )  # fmt: skip
        drawn[min_p] = int(decoding(torch.zeros(2, 1, dtype=torch.long), torch.cat([full, without]))[0].argmax())
    assert drawn == {0.0: 2, 0.1: 1, 0.7: 0}


def test_plausible_is_what_is_probable_among_the_tokens_that_may_follow() -> None:
    decoding = Decoding(
        prompt_tokens=1, weights=[], temperature=0.0, top_p=1.0, min_p=0.5, repetition_penalty=1.0, silent=[0], governor=None,
        levels=LEVELS,
    )  # fmt: skip
    assert decoding(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[9.0, 2.0, 1.5, 1.0]])).isfinite().tolist() == [
        [False, True, True, False]
    ]


def test_a_text_is_drawn_the_same_whatever_is_asked_beside_it(student: Student) -> None:
    commands = [ASKED, Command("image", "tea", quality=2), Command("search", "tea"), ASKED]
    drawn = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.0, "seed": 5, "max_new_tokens": 12}
    together = [made.text for made in student.generate(commands, **drawn)]
    assert together[:3] == [student.generate([command], **drawn)[0].text for command in commands[:3]]
    assert together[3] != together[0], "a command that is given twice is answered twice"
    assert together == [made.text for made in student.generate(commands, **drawn, batch_rows=1)]


def test_qualities_are_compared_on_the_same_draws(student: Student) -> None:
    drawn = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 5, "max_new_tokens": 12, "guidance": 0.0}
    texts = [made.text for made in student.generate([Command("search", "tea", quality=q) for q in (None, 1, 5)], **drawn)]
    assert len(set(texts)) == 1, "with guidance 0 the quality says nothing, and only the draws could differ"
