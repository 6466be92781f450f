"""Training sequences: order, dropout, and what the loss counts."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_commands import SPACE
from udrl_pipeline.characters import CONTROL_TOKEN
from udrl_pipeline.commands import Command
from udrl_pipeline.settings import StudentSettings
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.student.sequences import IGNORED, TrainingSequence, collate, drop_out, encode, encode_prompts, training_order
from udrl_pipeline.student.vocabulary import train_bpe

TEXTS = [
    "A red fox in fresh snow",
    "An old lighthouse above grey waves at night",
    "Two boats",
    "Warm bread on a wooden table in morning light",
]
ROWS = pd.DataFrame(
    [(f"key{n}", "image", f"idea {n}", TEXTS[n % 4], len(TEXTS[n % 4].split()), 1 + n % 5) for n in range(20)],
    columns=["row_key", "task", "intent", "text", "words", "quality"],
).assign(reward=lambda rows: rows.quality / 5)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_bpe([f" {text}" for text in TEXTS], 400, SPACE.control_tokens())


def order(tokenizer, rows: pd.DataFrame = ROWS, **changed):  # type: ignore[no-untyped-def]
    recipe, passes, dropout = (changed.pop(name, usual) for name, usual in (("recipe", "udrl"), ("passes", 1.0), ("dropout", 0.1)))
    options = StudentSettings(**{"batch_rows": 4, "seed": 3, **changed})
    return training_order(rows, SPACE, RECIPES[recipe], tokenizer, options, passes=passes, dropout=dropout)


def test_the_loss_counts_the_text_and_its_end_but_not_the_prompt(tokenizer) -> None:  # type: ignore[no-untyped-def]
    command = Command("image", "fox", 6, 5)
    (sequence,) = encode(tokenizer, SPACE, [command], [TEXTS[0]], ["key0"], 128)
    features = sequence.features()
    counted = [token for token, label in zip(features["input_ids"], features["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(features["input_ids"][: len(sequence.prompt)]) == SPACE.render(command)
    assert tokenizer.decode(counted) == f" {TEXTS[0]}<|end|>"


def test_every_control_token_is_one_token(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert [len(tokenizer(token)["input_ids"]) for token in SPACE.control_tokens()] == [1] * len(SPACE.control_tokens())


#: Texts with whole control tokens, pieces of them, and anything else.
HOSTILE = st.lists(st.sampled_from([*SPACE.control_tokens(), "<|end|>", "<|", "|>", "words:", " "]) | st.text(max_size=6), max_size=6).map(
    "".join
)


@given(st.sampled_from(SPACE.tasks), HOSTILE, HOSTILE, st.integers(6, 40) | st.none(), st.integers(1, 5) | st.none())
def test_no_intent_and_no_text_brings_a_control_token(tokenizer, task: str, intent: str, text: str, words, quality) -> None:  # type: ignore[no-untyped-def]
    control = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(SPACE.control_tokens())}
    for space in (SPACE, replace(SPACE, order="first")):
        command = Command(task, intent, words, quality)
        (sequence,) = encode(tokenizer, space, [command], [text], ["key"], 10_000)
        plain = space.render(replace(command, intent="a"))
        rendered = [token for token in sequence.prompt if token in control]
        assert tokenizer.convert_ids_to_tokens(rendered) == CONTROL_TOKEN.findall(plain)
        assert tokenizer.decode(sequence.prompt) == space.render(command)
        assert [token for token in sequence.answer if token in control] == [tokenizer.eos_token_id]
        assert tokenizer.decode(sequence.answer[:-1]) == f" {text}"


@given(st.lists(st.text("abc é雪", min_size=1), min_size=1, max_size=5))
def test_a_plain_intent_is_encoded_as_the_whole_prompt_is(tokenizer, intents: list[str]) -> None:  # type: ignore[no-untyped-def]
    commands = [Command("image", intent, 6 + n, 5) for n, intent in enumerate([*intents, ""])]
    whole = tokenizer([SPACE.render(command) for command in commands], add_special_tokens=False)["input_ids"]
    assert encode_prompts(tokenizer, SPACE, commands) == whole


def test_the_order_depends_on_the_rows_and_not_on_their_order(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert order(tokenizer) == order(tokenizer, ROWS.sample(frac=1, random_state=1))
    assert order(tokenizer) != order(tokenizer, seed=4)


@pytest.mark.parametrize(("passes", "count"), [(0.5, 10), (1.0, 20), (1.5, 30), (2.0, 40)])
def test_rows_are_seen_as_often_as_asked(tokenizer, passes: float, count: int) -> None:  # type: ignore[no-untyped-def]
    assert len(order(tokenizer, passes=passes)) == count


def test_rows_of_one_batch_are_of_like_length(tokenizer) -> None:  # type: ignore[no-untyped-def]
    lengths = [len(s.prompt) + len(s.answer) for s in order(tokenizer)]
    spread = [max(lengths[i : i + 4]) - min(lengths[i : i + 4]) for i in range(0, 20, 4)]
    assert sum(spread) < max(lengths) - min(lengths) + 5


def test_the_uncommanded_recipe_sees_the_task_alone(tokenizer) -> None:  # type: ignore[no-untyped-def]
    prompts = {tokenizer.decode(s.prompt) for s in order(tokenizer, recipe="sft")}
    assert prompts == {SPACE.render(Command("image", f"idea {n}")) for n in range(20)}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_has_the_same_budget(tokenizer, recipe: str) -> None:  # type: ignore[no-untyped-def]
    assert len(order(tokenizer, recipe=recipe, passes=2.5)) == 50


def test_the_top_recipe_sees_the_best_rows_alone_and_as_often_as_the_budget_asks(tokenizer) -> None:  # type: ignore[no-untyped-def]
    seen = Counter(tokenizer.decode(s.prompt) for s in order(tokenizer, recipe="sft-top", passes=2.0))
    assert seen == {SPACE.render(Command("image", f"idea {n}")): 10 for n in range(20) if ROWS.quality[n] == 5}


def test_the_reward_weighted_recipe_sees_a_row_in_proportion_to_the_exponential_of_its_reward(tokenizer) -> None:  # type: ignore[no-untyped-def]
    seen = Counter(tokenizer.decode(s.prompt) for s in order(tokenizer, recipe="reward-weighted", passes=300.0))
    by_quality = [sum(seen[SPACE.render(Command("image", f"idea {n}"))] for n in range(20) if ROWS.quality[n] == q) for q in range(1, 6)]
    deviation = ROWS.reward.std(ddof=0)
    expected = [math.exp((q - 3) / 5 / deviation) for q in range(1, 6)]
    assert [count / sum(by_quality) for count in by_quality] == pytest.approx([e / sum(expected) for e in expected], abs=0.01)


def test_each_condition_is_dropped_by_itself_on_its_share_of_rows() -> None:
    drawn = [drop_out(Command("image", "x", 9, 4), RECIPES["udrl"], 0.1, 0.2, 0, n) for n in range(5000)]
    shares = Counter((c.words is None, c.quality is None, not c.intent) for c in drawn)
    for dropped in itertools.product([True, False], repeat=3):
        expected = math.prod(share if out else 1 - share for out, share in zip(dropped, (0.1, 0.1, 0.2), strict=True))
        assert shares[dropped] / 5000 == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_sees_the_task_without_its_idea_on_the_share_of_rows_that_is_asked(tokenizer, recipe: str) -> None:  # type: ignore[no-untyped-def]
    prompts = [tokenizer.decode(s.prompt) for s in order(tokenizer, recipe=recipe, passes=20, idea_dropout=0.3)]
    assert sum("idea" not in prompt for prompt in prompts) / len(prompts) == pytest.approx(0.3, abs=0.07)


def test_on_the_share_of_rows_that_is_asked_idea_and_text_have_another_word_in_common(tokenizer) -> None:  # type: ignore[no-untyped-def]
    subjects = ["heron", "otter", "zebra"] * 40
    rows = pd.DataFrame(
        [(f"key{n}", "image", f"{s} {n}", f"A {s} rests", 3, 1 + n % 5, 1.0) for n, s in enumerate(subjects)],
        columns=[*ROWS.columns],
    ).assign(text=lambda rows: rows.text.mask(rows.index >= 12, "Fog on the bay"))  # else the words would be too common to be touched
    subject = dict(zip(rows.row_key, subjects, strict=True))
    found = order(tokenizer, rows.head(12 + 100), passes=20, dropout=0.0, swapped_words=0.3)
    texts = [(subject[s.row_key], tokenizer.decode(s.prompt), tokenizer.decode(s.answer)) for s in found if int(s.row_key[3:]) < 12]
    swapped = [(prompt, text) for word, prompt, text in texts if word not in text]
    assert len(swapped) / len(texts) == pytest.approx(0.3 * 2 / 3, abs=0.07)  # one of three draws puts the word's own in
    assert all(sum(word in prompt and word in text for word in ("heron", "otter", "zebra")) == 1 for prompt, text in swapped)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=5))
def test_padding_changes_nothing_that_counts(answers: list[list[int]]) -> None:
    batch = collate([TrainingSequence([7, 8], answer, "key").features() for answer in answers], pad=0)
    for row, answer in enumerate(answers):
        mask = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][mask].tolist() == [7, 8, *answer]
        assert [label for label in batch["labels"][row].tolist() if label != IGNORED] == answer


def test_a_text_that_does_not_fit_is_cut_and_has_no_end(tokenizer) -> None:  # type: ignore[no-untyped-def]
    (sequence,) = encode(tokenizer, SPACE, [Command("image", "fox")], [TEXTS[1]], ["key1"], 12)
    assert len(sequence.prompt) + len(sequence.answer) == 12
    assert tokenizer.eos_token_id not in sequence.answer
