"""Quality: which rows may be trained on, and which versions may be published."""

import pandas as pd
import pytest

from udrl_pipeline import quality, rewards
from udrl_pipeline.quality import EXPECTATIONS, examine, judge_rows, judge_version
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Expected, Quarantined
from udrl_pipeline.tasks import load_tasks

pytestmark = pytest.mark.usefixtures("kept_open")

GOOD = [
    "Lighthouse on black rocks, violent waves, dramatic oil painting",
    "White lighthouse in driving rain at night, beam over the sea",
    "Old lighthouse tower, thunder clouds, watercolor with grey tones",
    "Storm breaking over a small harbour, lighthouse glowing far away",
]
BAD = {
    "finished": ("Lighthouse keeper climbing wet stairs with a lantern and", "length"),
    "length": ("Lighthouse glow", "stop"),
    "latin_script": ("маяк во время шторма Lighthouse", "stop"),
    "no_repetition_loop": ("neon light, neon light, neon light, neon light, tower", "stop"),
    "no_copy_of_intent": ("a lighthouse in the storm", "stop"),
    "no_leaked_example": ("Steam train crossing red desert dunes, golden hour", "stop"),
    "no_template_marker": ("Lighthouse with tall waves. Words: 9", "stop"),
    "no_control_token": ("Lighthouse <|quality:5|> with tall grey waves", "stop"),
}


def rows(texts: list[tuple[str, str]], intent: str = "lighthouse in a storm") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row_key": [f"{n:03}" for n in range(len(texts))],
            "task": "image",
            "intent": intent,
            "intent_key": intent,
            "text": [text for text, _ in texts],
            "finish_reason": [finish for _, finish in texts],
        }
    )


def judged(settings: Settings, texts: list[tuple[str, str]]) -> tuple[pd.DataFrame, list[Expected], list[Quarantined]]:
    return judge_rows(examine(rows(texts), load_tasks(settings)), settings.quality)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_goes_to_quarantine_with_the_expectation_that_it_broke(settings: Settings, name: str) -> None:
    kept, _, quarantined = judged(settings, [(text, "stop") for text in GOOD] + [BAD[name]])
    assert kept.text.tolist() == GOOD
    assert [(q.item, q.reason, q.text) for q in quarantined] == [("004", name, BAD[name][0])]


@pytest.mark.parametrize(
    ("hidden", "fault"),
    [
        ("\x1b[31m", "control characters"),
        ("\x00", "control characters"),
        ("\u202e", "bidirectional control"),
        ("\u200b", "invisible characters"),
        ("[/INST]", "control token"),
    ],
)
def test_a_text_that_hides_something_is_quarantined_with_what_it_hides(settings: Settings, hidden: str, fault: str) -> None:
    text = f"Lighthouse with tall {hidden} grey waves, oil on canvas"
    kept, _, quarantined = judged(settings, [(text, "stop"), *((text, "stop") for text in GOOD)])
    assert kept.text.tolist() == GOOD
    assert quarantined == [Quarantined("000", "no_control_token", f"fault = {fault}", text)]


def test_good_rows_are_all_kept(settings: Settings) -> None:
    kept, expected, quarantined = judged(settings, [(text, "stop") for text in GOOD])
    assert (kept.text.tolist(), quarantined, {e.passed for e in expected}) == (GOOD, [], {True})


def test_of_two_rows_that_say_the_same_the_smaller_key_stays(settings: Settings) -> None:
    twin = "Violent waves, black rocks; dramatic lighthouse oil painting on"
    kept, _, quarantined = judged(settings, [(GOOD[0], "stop"), (twin, "stop"), (GOOD[1], "stop")])
    assert kept.text.tolist() == [GOOD[0], GOOD[1]]
    assert [(q.item, q.reason, q.detail) for q in quarantined] == [("001", "no_near_duplicate", "similar = 1.0")]


def test_a_row_that_breaks_two_expectations_is_listed_under_both(settings: Settings) -> None:
    _, _, quarantined = judged(settings, [(text, "stop") for text in GOOD] + [("storm", "length")])
    assert [q.reason for q in quarantined] == ["finished", "length", "no_copy_of_intent"]


def test_an_expectation_fails_as_a_whole_when_too_many_rows_break_it(settings: Settings) -> None:
    texts = [(GOOD[0], "stop"), *((f"{text} and then", "length") for text in GOOD[1:])]
    _, expected, _ = judged(settings, texts)
    failed = [(e.name, e.blocking, e.observed) for e in expected if not e.passed]
    assert failed == [("finished", True, {"rows": 4, "broken": 3, "share": 0.75})]


def kept_rows(settings: Settings, count: int = 60) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "task": [task for task in settings.tasks.names for _ in range(count)],
            "split": "train",
            "intent_key": [f"idea {n}" for n in range(count)] * len(settings.tasks.names),
            "reward": [n / count for n in range(count)] * len(settings.tasks.names),
            "similar": 0.0,
        }
    )
    return frame


def verdicts(settings: Settings, examined: pd.DataFrame, kept: pd.DataFrame, last: dict[str, float] | None = None) -> dict[str, bool]:
    return {e.name: e.passed for e in judge_version(examined, kept, load_tasks(settings), settings.quality, last or {})}


def test_a_healthy_version_passes_every_version_expectation(settings: Settings) -> None:
    frame = kept_rows(settings)
    assert verdicts(settings, frame, frame) == {spec.name: True for spec in quality.VERSION_EXPECTATIONS}


@pytest.mark.parametrize(
    ("name", "examined", "kept"),
    [
        ("rows_per_task", lambda f: f[f.task != "image"], lambda f: f[f.task != "image"]),
        ("no_intent_on_two_sides", lambda f: f, lambda f: f.assign(split=["test" if n == 0 else "train" for n in range(len(f))])),
        ("reward_spread", lambda f: f, lambda f: f.assign(reward=0.5)),
        ("duplicate_rate", lambda f: f.assign(similar=[1.0 if n % 3 == 0 else 0.0 for n in range(len(f))]), lambda f: f),
        ("quarantined_share", lambda f: pd.concat([f, f, f]), lambda f: f),
    ],
)
def test_a_sick_version_fails_the_expectation_that_names_its_sickness(settings: Settings, name: str, examined, kept) -> None:  # type: ignore[no-untyped-def]
    frame = kept_rows(settings)
    assert not verdicts(settings, examined(frame), kept(frame))[name]


def test_a_moved_mean_reward_is_reported_as_drift_but_does_not_block(settings: Settings) -> None:
    frame = kept_rows(settings)
    found = judge_version(frame, frame, load_tasks(settings), settings.quality, {"image": 0.9, "search": 0.5, "template": 0.5})
    drift = next(e for e in found if e.name == "reward_drift")
    assert (drift.passed, drift.blocking) == (False, False)


def test_expectations_are_listed_in_the_order_in_which_they_are_judged(settings: Settings) -> None:
    _, expected, _ = judged(settings, [(text, "stop") for text in GOOD])
    assert [e.name for e in expected] + [s.name for s in quality.VERSION_EXPECTATIONS] == [s.name for s in EXPECTATIONS]


def test_words_are_what_stands_between_spaces() -> None:
    assert rewards.words(" A red-haired  sailor, at sea ") == 5
