"""The second judge and the clock, with a tiny random GPT-2 in the teacher's place."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from udrl_pipeline.evaluation.judges import PROMPT, WITHHELD, TeacherJudge
from udrl_pipeline.evaluation.latency import MIN_REQUESTS, time_requests


class Letters:
    """A tokenizer of letters."""

    pad_token_id = 0

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) % 127 for letter in text] for text in texts]}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=256, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    ).eval()


def reference(model: Any, prompt: list[int], answer: list[int]) -> float:
    """log p(answer | prompt), alone and unpadded."""
    with torch.inference_mode():
        logs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


def test_a_batch_of_unequal_lengths_gives_what_each_pair_gives_alone(model: Any) -> None:
    prompts = [[5, 6, 7], [9] * 20, [4], [8, 8, 30, 31, 32]]
    answers = [[11], [12, 13, 14, 15], [16, 17], [18] * 9]
    found = TeacherJudge(model, Letters(), batch_rows=3).log_likelihood(prompts, answers)
    assert found == pytest.approx([reference(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)], abs=1e-4)


def test_information_is_what_the_text_adds_per_intent_token(model: Any) -> None:
    ids = lambda text: [ord(letter) % 127 for letter in text]  # noqa: E731
    intents, texts = ["red fox", "old barn"], ["a red fox in the snow", "waves"]
    found = TeacherJudge(model, Letters()).information(intents, texts)
    expected = [
        (
            reference(model, ids(PROMPT.format(text=text)), ids(f" {intent}"))
            - reference(model, ids(PROMPT.format(text=WITHHELD)), ids(f" {intent}"))
        )
        / (len(intent) + 1)
        for intent, text in zip(intents, texts, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_text_that_says_nothing_informs_of_nothing(model: Any) -> None:
    assert TeacherJudge(model, Letters()).information(["red fox"], [WITHHELD]) == pytest.approx([0.0], abs=1e-5)


def test_what_the_teacher_makes_of_a_text_does_not_depend_on_its_batch(model: Any) -> None:
    texts = ["a red fox", "waves", "an old barn in the morning", "fog", "seven boats"]
    alone = TeacherJudge(model, Letters(), batch_rows=1).hidden(texts)
    assert TeacherJudge(model, Letters(), batch_rows=4).hidden(texts) == pytest.approx(alone, abs=1e-4)
    assert np.linalg.norm(alone, axis=1) == pytest.approx(np.ones(5))


def test_a_text_is_placed_by_how_many_other_intents_it_is_more_like(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    intents = ["red fox", "old barn", "fog"]
    likeness = {"text of the fox": [0.9, 0.1, 0.2], "text of the barn": [0.5, 0.3, 0.4], "text of fog": [0.5, 0.2, 0.3]}
    hidden = lambda self, texts: np.array([likeness.get(t, np.eye(3)[intents.index(t)] if t in intents else 0) for t in texts])  # noqa: E731
    monkeypatch.setattr(TeacherJudge, "hidden", hidden)
    found = TeacherJudge(model, Letters()).reciprocal_ranks(intents, list(likeness), [*intents, "fog"])
    assert found.tolist() == [1.0, pytest.approx(1 / 3), 0.5]


def test_every_timed_request_makes_exactly_the_same_number_of_new_tokens(model: Any) -> None:
    made: list[tuple[int, int]] = []
    generate = model.generate

    def counting(**options: Any) -> Any:
        output = generate(**options)
        made.append((len(output), output.shape[1] - options["input_ids"].shape[1]))
        return output

    watched = SimpleNamespace(generate=counting, device=model.device)
    found = time_requests(watched, Letters(), [["one"], ["three"], ["fifteen"]], new_tokens=4, batch_rows=5).as_dict()
    assert made == [(1, 4)] * 4 + [(5, 4)]
    assert (found["requests"], found["new_tokens"], found["batch_rows"], found["prompt_tokens"]) == (3, 4, 5, 5.0)
    assert found["tokens_per_s"] == pytest.approx(4 / found["p50_s"], rel=0.05)
    assert 0 < found["p50_s"] <= found["p95_s"]


def test_a_slow_model_gets_fewer_requests(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udrl_pipeline.evaluation.latency.BUDGET_S", 0.0)
    found = time_requests(model, Letters(), [["a"]] * 9, new_tokens=2, batch_rows=1)
    assert len(found.seconds) == MIN_REQUESTS
    assert np.all(np.array(found.seconds) > 0)
