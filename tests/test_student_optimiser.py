"""Muon and AdamW as one optimiser: which weights each has, one learning rate for both, and the same steps after a restart."""

import copy
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from udrl_pipeline.student.optimiser import muon


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    )


def llama() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **shape))


def made(model: Any) -> tuple[Any, Any]:
    optimiser = muon(model, 1e-2, 0.01)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (step + 1))


def steps(model: Any, optimiser: Any, schedule: Any, count: int) -> None:
    for _ in range(count):
        optimiser.zero_grad()
        model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize(
    ("model", "matrices"),
    [
        (gpt2(), {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        (llama(), {*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down"))}),
    ],
    ids=["gpt2", "llama"],
)
def test_muon_has_the_matrices_of_the_layers_and_adamw_all_the_rest(model: Any, matrices: set[str]) -> None:
    optimiser = muon(model, 1e-3, 0.01)
    names = {id(weight): name for name, weight in model.named_parameters()}
    of_muon, of_adamw = ([names[id(weight)] for group in part.param_groups for weight in group["params"]] for part in optimiser.parts)
    assert [type(part) for part in optimiser.parts] == [torch.optim.Muon, torch.optim.AdamW]
    assert {".".join(name.split(".")[-3:-1]) for name in of_muon} == matrices
    assert sorted(of_muon + of_adamw) == sorted(names.values())


def test_a_schedule_moves_the_learning_rate_of_both() -> None:
    model = gpt2()
    optimiser, schedule = made(model)
    steps(model, optimiser, schedule, 3)
    assert [group["lr"] for part in optimiser.parts for group in part.param_groups] == [1e-2 / 4, 1e-2 / 4]


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been() -> None:
    whole = gpt2()
    stopped = copy.deepcopy(whole)
    steps(whole, *made(whole), count=6)
    before, its_schedule = made(stopped)
    steps(stopped, before, its_schedule, 3)
    states = copy.deepcopy((before.state_dict(), its_schedule.state_dict()))
    after, schedule = made(stopped)
    after.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    steps(stopped, after, schedule, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), stopped.parameters(), strict=True))
