"""The sampling of vLLM on a CPU, made faster: the same numbers as the plain way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udrl_pipeline.teacher import vllm_sampling
from udrl_pipeline.teacher.vllm_sampling import keep_top_p, press_repeated

VOCABULARY = 1000


def drawn(seed: int, rows: int, sharpness: float) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * sharpness


def sorted_top_p(logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """As vLLM has it: all of the vocabulary in ascending order, and the tail cut off."""
    ordered, tokens = logits.sort(dim=-1)
    dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p.unsqueeze(1)
    dropped[:, -1] = False
    return torch.empty_like(logits).scatter_(-1, tokens, ordered.masked_fill(dropped, -torch.inf))


def counted_penalty(logits: torch.Tensor, prompt: torch.Tensor, output: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """As vLLM has it: which tokens of the whole vocabulary have stood there."""
    stood = torch.zeros(len(logits), VOCABULARY + 1).scatter_add_(1, torch.cat([prompt, output], 1), torch.ones(1).expand(len(logits), 30))
    pressed = torch.where(logits > 0, logits / by.unsqueeze(1), logits * by.unsqueeze(1))
    return torch.where(stood[:, :VOCABULARY] > 0, pressed, logits)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), sharpness=st.sampled_from([0.1, 1.0, 4.0, 30.0]), p=st.lists(st.floats(0.01, 0.999), min_size=1, max_size=5)
)
def test_the_likeliest_tokens_are_kept_as_if_all_were_sorted(seed: int, sharpness: float, p: list[float]) -> None:
    logits, wanted = drawn(seed, len(p), sharpness), torch.tensor(p)
    kept, reference = keep_top_p(logits.clone(), wanted), sorted_top_p(logits, wanted)
    assert torch.equal(kept.isfinite().any(1), torch.ones(len(p), dtype=torch.bool))
    # where a sum meets p to the last bit, one way of adding keeps a token that the other drops
    assert int((kept.isfinite() != reference.isfinite()).sum(1).max()) <= 1
    both = kept.isfinite() & reference.isfinite()
    assert torch.equal(kept[both], logits[both])


def test_a_row_whose_likeliest_tokens_do_not_suffice_is_sorted_as_a_whole() -> None:
    logits = torch.stack([torch.zeros(VOCABULARY), drawn(1, 1, 30.0)[0]])
    kept = keep_top_p(logits, torch.tensor([0.9005, 0.9]))
    assert kept.isfinite().sum(1).tolist() == [901, sorted_top_p(logits[1:], torch.tensor([0.9])).isfinite().sum().item()]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), padded=st.integers(0, 19), by=st.floats(0.5, 2.0))
def test_tokens_that_have_stood_there_are_pressed_once_and_padding_presses_none(seed: int, padded: int, by: float) -> None:
    logits = drawn(seed, 3, 2.0)
    drawing = torch.Generator().manual_seed(seed)
    prompt, output = (torch.randint(0, VOCABULARY, (3, n), generator=drawing) for n in (20, 10))
    prompt[1, 20 - padded :], output[2] = VOCABULARY, VOCABULARY
    penalties = torch.tensor([by, 1.0, 1.08])
    expected = counted_penalty(logits, prompt, output, penalties)
    assert torch.equal(press_repeated(logits, prompt, output, penalties), expected)


def test_vllm_itself_is_replaced_only_where_the_engine_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    penalties = pytest.importorskip("vllm.v1.sample.ops.penalties")
    for module, name in ((sampler, "apply_top_k_top_p_pytorch"), (penalties, "apply_penalties")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    own = sampler.apply_top_k_top_p_pytorch, penalties.apply_penalties
    monkeypatch.delenv(vllm_sampling.WANTED, raising=False)
    vllm_sampling.register()
    assert (sampler.apply_top_k_top_p_pytorch, penalties.apply_penalties) == own
    monkeypatch.setenv(vllm_sampling.WANTED, "1")
    vllm_sampling.register()
    logits, p, rows = drawn(3, 4, 4.0), torch.tensor([0.5, 0.9, 0.92, 0.999]), torch.ones(4)
    prompt, output = torch.arange(80).view(4, 20), torch.full((4, 10), VOCABULARY)
    for k in (None, torch.tensor([5, 5, 5, 5])):
        assert torch.equal(sampler.apply_top_k_top_p(logits.clone(), k, p), own[0](logits.clone(), k, p))
    for frequency in (0.0, 0.5):
        arguments = (prompt, output, rows * 0, rows * frequency, rows * 1.08)
        torch.testing.assert_close(penalties.apply_penalties(logits.clone(), *arguments), own[1](logits.clone(), *arguments))
