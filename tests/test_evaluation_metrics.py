"""The `evaluate` modules: their values, and that each stands alone and needs no network."""

import ast
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udrl_pipeline.evaluation.metrics import METRICS, load_metric, metric_file

texts = st.lists(st.lists(st.sampled_from(["fox", "barn", "red", "old", "sea"]), max_size=7).map(" ".join), max_size=6)


def test_every_file_of_the_folder_is_listed() -> None:
    assert sorted(path.stem for path in metric_file("copying").parent.glob("*.py") if path.stem != "__init__") == list(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_module_imports_the_standard_library_datasets_evaluate_and_numpy_alone(name: str) -> None:
    tree = ast.parse(metric_file(name).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in imported} - set(sys.stdlib_module_names) <= {"datasets", "evaluate", "numpy"}


def test_a_module_loads_by_its_path_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import evaluate

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    metric = evaluate.load(str(metric_file("distinct_n")), keep_in_memory=True)
    assert metric.compute(predictions=["a red fox", "a red barn"]) == {"distinct_1": 4 / 6, "distinct_2": 3 / 4, "distinct_3": 1.0}


@settings(max_examples=8)
@given(texts)
def test_distinct_n_lies_between_0_and_1_and_falls_when_a_text_is_repeated(given_texts: list[str]) -> None:
    once = load_metric("distinct_n").compute(predictions=given_texts)
    twice = load_metric("distinct_n").compute(predictions=given_texts * 2)
    assert all(0 <= value <= 1 for value in once.values())
    assert twice == {name: value / 2 for name, value in once.items()}


def test_self_bleu_is_1_for_copies_0_for_strangers_and_ignores_order() -> None:
    metric = load_metric("self_bleu")
    assert metric.compute(predictions=["an old red fox", "An old red fox"]) == {"self_bleu": 1.0}
    assert metric.compute(predictions=["an old red fox", "some very blue sea"]) == {"self_bleu": 0.0}
    assert metric.compute(predictions=["alone"]) == {"self_bleu": 0.0}
    sentences = ["an old red fox runs", "an old red barn", "the sea and an old fox", "red red red"]
    values = {metric.compute(predictions=list(order))["self_bleu"] for order in itertools.permutations(sentences)}
    assert max(values) - min(values) < 1e-12
    assert 0.1 < max(values) < 0.9


def test_self_bleu_clips_a_repeated_word_by_the_other_texts() -> None:
    # of four times `red` one other text has two: (2/4 * 2/4 * 1/3 * 1/2) ** (1/4), orders above 1 smoothed by one
    both = load_metric("self_bleu").compute(predictions=["red red red red", "red red"], max_order=4)["self_bleu"]
    long = (2 / 4 * (1 + 1) / (3 + 1) * (0 + 1) / (2 + 1) * (0 + 1) / (1 + 1)) ** 0.25
    short = np.exp(1 - 4 / 2) * (2 / 2 * 2 / 2 * 1 / 1 * 1 / 1) ** 0.25
    assert both == pytest.approx((long + short) / 2)


def test_embedding_spread_is_the_mean_distance_of_all_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.mean([1 - unit[i] @ unit[j] for i in range(7) for j in range(7) if i != j])
    found = load_metric("embedding_spread").compute(predictions=vectors.tolist())
    assert found == {"embedding_spread": pytest.approx(expected, abs=1e-6)}
    assert load_metric("embedding_spread").compute(predictions=[[1.0, 0.0]]) == {"embedding_spread": 0.0}


def test_length_error_counts_words_and_keeps_the_sign_apart() -> None:
    found = load_metric("length_error").compute(predictions=["one two three", "one", "one two"], references=[2, 4, 2])
    assert found == {"mean_absolute_error": 4 / 3, "mean_error": -2 / 3, "mean_words": 2.0}


def test_copying_counts_word_pairs_of_the_intent_and_the_longest_common_run() -> None:
    predictions = ["An old tractor, in a field of snow", "tractor", "old tractor in a snowstorm", "sunlit dunes", ""]
    references = ["old tractor in a snowstorm", "tractor", "Old tractor in a snowstorm", "sunlit", "fox"]
    assert load_metric("copying").compute(predictions=predictions, references=references) == {
        "copied": pytest.approx((0.75 + 1 + 1 + 1 + 0) / 5),
        "copied_run": pytest.approx((4 / 8 + 1 + 1 + 1 / 2 + 0) / 5),
        "copied_each": [0.75, 1.0, 1.0, 1.0, 0.0],
        "copied_run_each": [0.5, 1.0, 1.0, 0.5, 0.0],
    }


def test_finished_share_counts_what_ended_by_itself() -> None:
    assert load_metric("finished_share").compute(predictions=[True, True, False, True]) == {"finished_share": 0.75}
    assert load_metric("finished_share").compute(predictions=[]) == {"finished_share": 0.0}


def test_metric_files_are_found_wherever_the_package_is() -> None:
    assert all(Path(metric_file(name)).is_file() for name in METRICS)
