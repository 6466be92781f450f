"""The labelled dataset: split, bins, versions, and that a failed verdict publishes nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import FakeEngine
from udrl_pipeline import corpus, dataset
from udrl_pipeline.dataset import content_of, quality_bins, quality_edges, read_dataset
from udrl_pipeline.errors import IntentsError, QualityError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.rewards import Scorer
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.versioning import canonical, content_hash, rows_hash, unit_draw

pytestmark = pytest.mark.usefixtures("kept_open")

Load = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _fast_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    def relevance(self: Scorer, intents: list[str], texts: list[str]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        return np.round([0.3 + 0.5 * unit_draw("relevance", text) for text in texts], 4)

    monkeypatch.setattr(Scorer, "relevance", relevance)


@pytest.fixture
def made(load: Load, use_engine: Callable[[FakeEngine], FakeEngine]) -> Callable[..., Workspace]:
    """A workspace with a corpus of 30 intents, under overrides."""
    use_engine(FakeEngine())

    def make(overrides: dict[str, object] | None = None) -> Workspace:
        workspace = Workspace(load({"intents.builtin": 30, "quality.min_rows_per_task": 5, **(overrides or {})}))
        workspace.begin_run()
        intents.build(workspace)
        corpus.build(workspace)
        return workspace

    return make


def test_a_published_version_holds_labelled_rows_of_the_corpus(made: Callable[..., Workspace]) -> None:
    workspace = made()
    version = dataset.build(workspace)
    frame = read_dataset(workspace, version.version)
    assert version.verdict == "PASS"
    assert frame.columns.tolist() == dataset.COLUMNS
    assert set(frame.quality) == {1, 2, 3, 4, 5}
    assert len(frame) + version.facts["quarantined"] == version.facts["candidates"] == 90
    assert version.parents == {name: workspace.parents(name)[name] for name in ("teacher_corpus", "intents")}


def test_no_intent_is_on_two_sides(made: Callable[..., Workspace]) -> None:
    workspace = made({"intents.test": 0.3, "intents.validation": 0.3})
    frame = read_dataset(workspace, dataset.build(workspace).version)
    assert frame.groupby("intent_key").split.nunique().max() == 1


def test_the_same_inputs_make_nothing_new(made: Callable[..., Workspace]) -> None:
    workspace = made()
    first = dataset.build(workspace)
    again = dataset.build(workspace)
    assert (again.version, again.made_now, first.made_now) == (first.version, False, True)


def test_a_reward_weight_changes_the_version_without_scoring_a_text_again(made: Callable[..., Workspace]) -> None:
    before = dataset.build(made())
    after = dataset.build(made({"rewards.weights.gain": 0.9}))
    assert after.version != before.version
    assert (before.work["scored_rows"], after.work["scored_rows"]) == (90, 0)


def test_a_corpus_of_other_intents_is_refused_with_what_to_do(made: Callable[..., Workspace], load: Load) -> None:
    workspace = made()
    before = workspace.parents("intents", "teacher_corpus")
    later = Workspace(load({"intents.builtin": 31, "quality.min_rows_per_task": 5}))
    now = intents.build(later).version  # and the run ended before the corpus was made
    with pytest.raises(IntentsError) as caught:
        dataset.build(later)
    assert (
        caught.value.what == f"teacher_corpus {before['teacher_corpus']} was made from intents {before['intents']}, and {now} are current"
    )
    assert "refresh_corpus" in caught.value.remedy
    corpus.build(later)
    assert dataset.build(later).verdict == "PASS"


def test_a_failed_verdict_publishes_nothing_and_leaves_the_last_good_version_current(made: Callable[..., Workspace]) -> None:
    workspace = made()
    good = dataset.build(workspace)
    failing = made({"quality.min_rows_per_task": 5000})
    failed = dataset.build(failing)
    current = failing.current(dataset.ASSET)
    assert failed.verdict == "FAIL"
    assert current is not None
    assert current.version == good.version
    assert [e.name for e in failing.expectations(dataset.ASSET, failed.version) if not e.passed] == ["rows_per_task"]


def test_a_version_that_failed_cannot_be_read_for_training(made: Callable[..., Workspace]) -> None:
    workspace = made({"quality.min_rows_per_task": 5000})
    failed = dataset.build(workspace)
    with pytest.raises(QualityError, match="did not pass its expectations"):
        read_dataset(workspace, failed.version)


def test_a_version_that_does_not_exist_cannot_be_read(workspace: Workspace) -> None:
    with pytest.raises(QualityError, match="does not exist"):
        read_dataset(workspace, "0" * 16)


def frame_of(rewards: list[float], task: str = "image") -> pd.DataFrame:
    return pd.DataFrame({"task": task, "split": "train", "reward": rewards})


def test_quality_bins_are_quantiles_within_each_task() -> None:
    frame = pd.concat([frame_of([n / 10 for n in range(10)]), frame_of([5 + n / 10 for n in range(10)], "search")], ignore_index=True)
    edges = quality_edges(frame, 5)
    assert edges == {"image": [0.18, 0.36, 0.54, 0.72], "search": [5.18, 5.36, 5.54, 5.72]}
    assert quality_bins(frame, edges).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5] * 2


@given(st.lists(st.floats(-1, 2, allow_nan=False), min_size=5, max_size=60), st.integers(2, 10))
def test_a_higher_reward_never_has_a_lower_quality(rewards: list[float], bins: int) -> None:
    frame = frame_of(sorted(rewards))
    found = quality_bins(frame, quality_edges(frame, bins))
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 1
    assert found.max() <= bins


def test_edges_come_from_training_rows_alone() -> None:
    frame = frame_of([0.1, 0.2, 0.3, 0.4])
    held_out = frame_of([9.0, 9.5]).assign(split="test")
    assert quality_edges(pd.concat([frame, held_out]), 2) == quality_edges(frame, 2) == {"image": [0.25]}


NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 0.5, 1.0])
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def hashed(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=dataset.HASHED)


@given(st.lists(st.tuples(*[WORDS] * 5, *[NUMBER] * 5, st.integers(1, 9)), min_size=1, max_size=6))
def test_the_content_hash_is_that_of_the_rows_written_one_by_one(rows: list[tuple[object, ...]]) -> None:
    lines = [canonical(list(row)) for row in rows]
    assert content_of(hashed(rows), {"image": [0.5]}) == content_hash({"rows": rows_hash(lines), "edges": {"image": [0.5]}})


def test_a_known_dataset_has_a_known_hash(tmp_path: Path) -> None:
    frame = hashed(
        [("k1", "image", "ö", "train", 'a "b"\n', -0.0, 0.6, 0.4, 0.0, 1.0, 5), ("k2", "search", "o", "test", "", 0.0, 1, 1, 0, 1, 1)]
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    stored = pd.read_parquet(tmp_path / "rows.parquet")
    assert {content_of(rows, {"image": [0.5]}) for rows in (frame, stored)} == {"ca80bc6fad8d0c75"}


def test_a_label_that_is_no_number_has_no_hash() -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        content_of(hashed([("k1", "image", "i", "train", "t", float("nan"), 0.6, 0.4, 0.0, 0.7, 5)]), {})


@given(st.randoms(use_true_random=False))
def test_the_content_hash_does_not_depend_on_the_order_of_rows(random) -> None:  # type: ignore[no-untyped-def]
    frame = hashed([(f"k{n}", "image", f"i{n}", "train", f"text {n}", 0.5, 0.6, 0.4, 0.0, 0.7, 1 + n % 5) for n in range(8)])
    order = list(range(8))
    random.shuffle(order)
    assert content_of(frame.iloc[order], {"image": [0.5]}) == content_of(frame, {"image": [0.5]})
    assert content_of(frame.assign(quality=1), {"image": [0.5]}) != content_of(frame, {"image": [0.5]})
    assert content_of(frame, {"image": [0.6]}) != content_of(frame, {"image": [0.5]})
