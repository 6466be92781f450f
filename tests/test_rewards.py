"""Rewards: honest texts earn more than texts that game the scorer."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline import rewards
from udrl_pipeline.rewards import Scorer, content_words, label, new_content, repetition, score_missing
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace

INTENT = "lighthouse in a storm"
HONEST = {
    INTENT: "A white lighthouse on black rocks in a violent storm, huge waves breaking, beam through rain, dramatic oil painting",
    "red fox in the snow": "A red fox stepping through fresh snow by a pine forest, breath visible in the cold air, telephoto photo",
    "farmers market": "Farmers market poster with crates of tomatoes and basil, chalkboard prices, striped awning, hand-lettered headline",
    "birthday of a chess club": "Chess club birthday invitation, checkerboard border, cake with a king on top, cream paper, serif title",
    "jazz night": "jazz night in a small club, saxophone player under a warm spotlight, audience at round tables",
}
PRAISED = "beautiful amazing stunning gorgeous wonderful fantastic incredible masterpiece"
GAMES = {
    "the intent itself": "{intent}",
    "the intent three times": "{intent}, {intent}, {intent}",
    "the intent's words in other forms": "{words}, {words}s, {words}y",
    "empty flourish": PRAISED,
    "the intent with empty flourish": "{intent}, " + PRAISED.replace(" ", ", "),
    "the intent with the tags of every prompt": "{intent}, masterpiece, best quality, trending on artstation, 8k, uhd, hdr, ultra",
    "one detail many times": "{intent}, neon light, neon glow, neon lights, neon glow, neon light, neon glow",
    "details of something else": "bread, bicycle, umbrella, dentist, volcano, keyboard, spinach, parliament, tennis, lantern",
    "an example pair": "Steam train crossing red desert dunes, golden hour",
}


def rewarded(settings: Settings, intent: str, texts: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame({"intent": intent, "text": texts})
    return label(frame.assign(relevance=Scorer(settings).relevance(frame.intent.tolist(), texts)), settings.rewards)


@pytest.mark.parametrize("intent", HONEST)
def test_an_honest_text_earns_more_than_every_text_that_games_the_real_scorer(settings: Settings, intent: str) -> None:
    games = [game.format(intent=intent, words=intent.split()[-1]) for game in GAMES.values()]
    frame = rewarded(settings, intent, [HONEST[intent], *games])
    assert frame.reward.idxmax() == 0, frame[["text", "relevance", "gain", "repetition", "reward"]].to_string()


def test_relevance_puts_a_text_about_the_intent_above_one_about_something_else(settings: Settings) -> None:
    about, other = Scorer(settings).relevance([INTENT, INTENT], [HONEST[INTENT], "Fresh croissants in a bakery window"])
    assert about > 0.5 > other


def test_relevance_of_nothing_is_nothing(settings: Settings) -> None:
    assert Scorer(settings).relevance([], []).tolist() == []


def test_content_words_leave_out_stop_words_and_make_plurals_one() -> None:
    assert content_words("The waves of a wave, and the sailor's boats") == ["wave", "wave", "sailor", "boat"]


def test_what_an_apostrophe_joins_is_no_content() -> None:
    assert content_words("it's what she's got, the baker's bread") == ["got", "baker", "bread"]


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_short_way_for_plain_texts_finds_the_same_words(text: str) -> None:
    assert content_words(text) == content_words(f"{text} ß")[:-1]  # one umlaut, and the long way is taken


def test_counting_once_for_quality_and_reward_gives_the_same_reward(settings: Settings) -> None:
    frame = pd.DataFrame({"intent": list(HONEST), "text": list(HONEST.values()), "relevance": 0.7})
    counted = rewards.count(frame)
    assert counted.words.tolist() == [19, 19, 15, 16, 16]
    assert counted.added.tolist() == [len(new_content(i, t)) for i, t in HONEST.items()]
    assert counted.repeated.tolist() == [repetition(t) for t in HONEST.values()]
    pd.testing.assert_frame_equal(label(counted, settings.rewards)[label(frame, settings.rewards).columns], label(frame, settings.rewards))


def test_praise_is_no_new_content() -> None:
    assert new_content("red fox", "A stunning red fox, breathtaking beauty, fresh snow") == {"fresh", "snow"}


def test_new_content_is_what_the_intent_does_not_hold() -> None:
    assert new_content("red cats in snow", "A red cat in deep snow at dawn") == {"deep", "dawn"}


def test_repetition_is_the_share_of_repeated_content_words() -> None:
    assert repetition("neon lights, neon glow, neon") == 0.4
    assert repetition("") == 0.0


@given(st.text(max_size=80), st.text(max_size=80), st.floats(-1, 1))
def test_labels_stay_in_their_ranges(intent: str, text: str, relevance: float) -> None:
    from udrl_pipeline.settings import ModelRef, RewardSettings

    settings = RewardSettings(scorer=ModelRef(ref="path:x"))
    row = label(pd.DataFrame({"intent": [intent], "text": [text], "relevance": [relevance]}), settings).iloc[0]
    assert 0 <= row.fidelity <= 1
    assert 0 <= row.gain <= 1
    assert 0 <= row.repetition <= 1
    assert -0.5 <= row.reward <= 1.6


def test_only_rows_without_a_score_of_the_current_scorer_are_scored(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def relevance(self: Scorer, intents: list[str], texts: list[str]) -> list[float]:
        asked.extend(texts)
        return [0.5] * len(texts)

    monkeypatch.setattr(Scorer, "relevance", relevance)
    rows = pd.DataFrame({"row_key": ["a", "b"], "intent": ["x", "y"], "text": ["one", "two"]})
    scored, count = score_missing(workspace, rows)
    assert (scored.relevance.tolist(), count, asked) == ([0.5, 0.5], 2, ["one", "two"])
    more = pd.DataFrame({"row_key": ["a", "b", "c"], "intent": ["x", "y", "z"], "text": ["one", "two", "three"]})
    scored, count = score_missing(workspace, more)
    assert (scored.relevance.tolist(), count, asked) == ([0.5, 0.5, 0.5], 1, ["one", "two", "three"])


def test_another_scorer_scores_every_row_anew(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "relevance", lambda self, intents, texts: [0.5] * len(texts))
    rows = pd.DataFrame({"row_key": ["a", "b"], "intent": ["x", "y"], "text": ["one", "two"]})
    score_missing(workspace, rows)
    monkeypatch.setattr(rewards, "SCORER_REVISION", rewards.SCORER_REVISION + 1)
    assert score_missing(workspace, rows)[1] == 2
