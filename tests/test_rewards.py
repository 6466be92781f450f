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
HONEST = "A white lighthouse on black rocks in a violent storm, huge waves breaking, beam of light through rain, dramatic oil painting"
GAMED = {
    "the intent itself": INTENT,
    "the intent three times": " ".join([INTENT] * 3),
    "keywords of the intent": "lighthouse, storm, lighthouses, storms, stormy, lighthouse storm",
    "empty flourish": "beautiful amazing stunning gorgeous wonderful fantastic incredible masterpiece",
    "an example pair": "Steam train crossing red desert dunes, golden hour",
}


def rewarded(settings: Settings, texts: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame({"intent": INTENT, "text": texts})
    return label(frame.assign(relevance=Scorer(settings).relevance(frame.intent.tolist(), texts)), settings.rewards)


def test_an_honest_text_earns_more_than_every_text_that_games_the_real_scorer(settings: Settings) -> None:
    frame = rewarded(settings, [HONEST, *GAMED.values()])
    assert frame.reward.idxmax() == 0, frame[["text", "relevance", "reward"]].to_string()


def test_relevance_puts_a_text_about_the_intent_above_one_about_something_else(settings: Settings) -> None:
    about, other = Scorer(settings).relevance([INTENT, INTENT], [HONEST, "Fresh croissants in a bakery window"])
    assert about > 0.5 > other


def test_relevance_of_nothing_is_nothing(settings: Settings) -> None:
    assert Scorer(settings).relevance([], []).tolist() == []


def test_content_words_leave_out_stop_words_and_make_plurals_one() -> None:
    assert content_words("The waves of a wave, and the sailor's boats") == ["wave", "wave", "sailor", "boat"]


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
