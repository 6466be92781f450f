"""Training in several processes: what they share is tested in one; `make cluster` (slow) starts, kills and compares them."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import small_params
from test_cluster import kill_a_node_that_holds
from udrl_pipeline import settings as settings_module
from udrl_pipeline.errors import ClusterError, SettingsError, StoreFull, StudentError
from udrl_pipeline.settings import Settings
from udrl_pipeline.student import ranks, trainer, training
from udrl_pipeline.student.initialise import Start
from udrl_pipeline.student.sequences import TrainingSequence

STEPS, BATCH = 24, 8
BASE: dict[str, object] = {
    "student.batch_rows": BATCH, "student.save_every": 4, "student.learning_rate": 1e-2, "student.warmup": 0, "student.init_from": "scratch"
}  # fmt: skip


END = {"bos_token_id": 0, "eos_token_id": 0}


class Tokenizer:
    pad_token_id = 0


def start() -> Start:
    """A GPT-2 of one layer without dropout."""
    import torch

    torch.manual_seed(3)
    shape = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **END)
    return Start(GPT2LMHeadModel(shape), Tokenizer(), {})


def sequences(steps: int = STEPS) -> list[TrainingSequence]:
    """Patterns to learn; the last batch is three short of a whole one."""
    return [
        TrainingSequence([1 + n % 7, 2 + n % 5], [(n * k) % 60 + 1 for k in range(1, 4 + n % 6)], f"k{n}") for n in range(steps * BATCH - 3)
    ]


def curve_of(settings: Settings, scratch: Path, steps: int = STEPS, held_out: int = 2) -> tuple[list[dict[str, float]], Any, int]:
    """The loss curve, the trained model and the steps of this run."""
    scratch.mkdir(exist_ok=True)
    begun = start()
    losses, _, done = training.run_trainer(begun, sequences(steps), sequences(held_out), settings, scratch, "udrl")
    return losses, begun.model, done


def farthest(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest relative difference of two curves' training losses, which have the same steps."""
    found = [[(line["step"], line["loss"]) for line in curve if "loss" in line] for curve in (one, other)]
    assert [step for step, _ in found[0]] == [step for step, _ in found[1]]
    return max(abs(a - b) / a for (_, a), (_, b) in zip(*found, strict=True))


def test_batches_must_be_shared_evenly(load: Callable[..., Settings]) -> None:
    with pytest.raises(SettingsError, match="batch_rows 32 cannot be shared evenly by 3 processes"):
        load({"student.processes": 3})
    assert load({"student.processes": 4}).student.processes == 4


def test_what_passes_through_files_is_what_was_trained_on_in_one_process(
    load: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    here, model, done = curve_of(load(BASE), tmp_path / "here")
    monkeypatch.setattr(ranks, "_by_torchrun", lambda folder, processes: ranks.one_of_them(folder))
    scratch = tmp_path / "there"
    scratch.mkdir()
    begun, progress = start(), trainer.Progress(sequences(), BATCH, asset="student/udrl", recipe="udrl")
    there = trainer.losses(ranks.train(begun, sequences(), sequences(2), load(BASE), scratch, progress))
    assert there == here
    assert done == STEPS
    assert [line["step"] for line in progress.speed] == [line["step"] for line in here if "loss" in line]
    for one, other in zip(model.parameters(), begun.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rows_that_fill_up_a_batch_count_nothing() -> None:
    import torch

    model = start().model
    filling = {"input_ids": torch.zeros(2, 2, dtype=torch.long), "attention_mask": torch.ones(2, 2), "labels": torch.full((2, 2), -100)}
    loss = trainer.answer_loss(model, **filling, num_items_in_batch=torch.tensor(5))["loss"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert {float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None} == {0.0}
    assert all(p.grad is not None for p in model.parameters())  # DDP waits for each of them


def test_an_error_of_a_process_is_raised_here(load: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def run(folder: Path, processes: int) -> str:
        with pytest.raises(StoreFull):
            ranks.one_of_them(folder)
        return "exit code 1"

    monkeypatch.setattr(trainer, "train", full)
    monkeypatch.setattr(ranks, "_by_torchrun", run)
    with pytest.raises(StoreFull, match="the disk is full"):
        ranks.train(start(), sequences(), [], load(BASE), tmp_path, lambda *_: None)
    monkeypatch.setattr(ranks, "_by_torchrun", lambda folder, processes: "exit code 1")
    with pytest.raises(StudentError, match=r"ended 4 times before they were done \(exit code 1\)[\s\S]*from the last checkpoint"):
        ranks.train(start(), sequences(), [], load(BASE), tmp_path, lambda *_: None)


def test_training_on_a_cluster_without_ray_says_how_to_install_it(
    load: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"Ray is not installed[\s\S]*make ray"):
        curve_of(load(BASE | {"student.cluster": "ray"}), tmp_path)


# -- with real processes ----------------------------------------------------------------------------------------------------------------

#: How far a loss on two processes may be from that on one, as a share of it: sums of gradients in another order, in bf16.
NOISE = 0.02
LONG = 60
TWO = BASE | {"student.processes": 2}


def kill_when(begun: Callable[[], bool], find: Callable[[list[psutil.Process]], psutil.Process]) -> threading.Thread:
    """Kill one of this process's children, and theirs, as soon as something has begun."""

    def wait() -> None:
        while not begun():
            time.sleep(0.01)
        find(psutil.Process().children(recursive=True)).kill()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def torchrun(children: list[psutil.Process]) -> psutil.Process:
    return next(child for child in children if "torch.distributed.run" in child.cmdline())


def second_rank(children: list[psutil.Process]) -> psutil.Process:
    return next(child for child in children if child.environ().get("RANK") == "1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The curve of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return curve_of(settings_module.load(small_params(folder), preset="", overrides=BASE), folder, LONG)[0]


@pytest.mark.slow
def test_two_processes_learn_as_one_does(load: Callable[..., Settings], tmp_path: Path, alone: list[dict[str, float]]) -> None:
    shared, _, done = curve_of(load(TWO), tmp_path / "two", LONG)
    print("two processes against one:", farthest(alone, shared), alone[-2:], shared[-2:])
    assert done == LONG
    assert farthest(alone, shared) < NOISE


@pytest.mark.slow
def test_two_processes_learn_by_muon_as_one_does(load: Callable[..., Settings], tmp_path: Path) -> None:
    by_muon = {"student.optimiser": "muon"}
    one, _, _ = curve_of(load(BASE | by_muon), tmp_path / "one")
    two, _, done = curve_of(load(TWO | by_muon), tmp_path / "two")
    by_adamw, _, _ = curve_of(load(BASE), tmp_path / "adamw")
    print("by Muon, two processes against one:", farthest(one, two), one[-2:], two[-2:])
    assert done == STEPS
    assert farthest(one, two) < NOISE
    assert farthest(one, by_adamw) > NOISE  # it was Muon that both learned by
    assert two[-2]["loss"] < two[0]["loss"] - 0.5


@pytest.mark.slow
def test_the_validation_loss_is_that_of_one_process_to_the_last_digit(load: Callable[..., Settings], tmp_path: Path) -> None:
    """The weights stay as they are, so nothing but the counting could differ: 37 sequences are no even share of two, nor whole batches."""
    at_rest = {"student.learning_rate": 1e-12}
    one, _, _ = curve_of(load(BASE | at_rest), tmp_path / "one", held_out=5)
    two, _, _ = curve_of(load(TWO | at_rest), tmp_path / "two", held_out=5)
    told = [[line for line in curve if "validation_loss" in line] for curve in (one, two)]
    assert told[0] == told[1]
    assert [line["step"] for line in told[0]] == [6, 12, 18, 24]


@pytest.mark.slow
def test_a_process_that_is_killed_costs_the_steps_since_the_last_checkpoint(
    load: Callable[..., Settings], tmp_path: Path, alone: list[dict[str, float]]
) -> None:
    killer = kill_when(lambda: trainer.last_step(tmp_path / "two") > 0, second_rank)
    shared, _, _ = curve_of(load(TWO), tmp_path / "two", LONG)
    killer.join(timeout=0)
    assert not killer.is_alive()
    assert farthest(alone, shared) < NOISE


@pytest.mark.slow
def test_two_processes_go_on_from_the_checkpoint_of_one(
    load: Callable[..., Settings], tmp_path: Path, alone: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception): ...

    def stop(self: trainer.Progress, step: int, of: int, loss: float | None, now: float) -> None:
        if step > 20:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer.Progress, "__call__", stop)
        curve_of(load(BASE), tmp_path / "grown", LONG)
    resumed, _, done = curve_of(load(TWO), tmp_path / "grown", LONG)
    assert 0 < done < LONG
    assert farthest(alone, resumed) < NOISE


@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two_which_end_with_the_run(
    load: Callable[..., Settings], tmp_path: Path, alone: list[dict[str, float]]
) -> None:
    killer = kill_when(lambda: trainer.last_step(tmp_path / "shrunk") > 0, torchrun)
    with pytest.raises(StudentError, match="exit code -9"):
        curve_of(load(TWO), tmp_path / "shrunk", LONG)
    killer.join()
    resumed, _, done = curve_of(load(BASE), tmp_path / "shrunk", LONG)
    assert 0 < done < LONG
    assert farthest(alone, resumed) < NOISE
    assert [child for child in psutil.Process().children(recursive=True) if child.is_running()] == []
    assert [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "shrunk") in " ".join(p.info["cmdline"] or [])] == []


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_ray_train_learns_as_one_process_does_also_when_a_node_is_killed(
    nodes: Any, load: Callable[..., Settings], tmp_path: Path, alone: list[dict[str, float]]
) -> None:
    scratch = tmp_path / "ray"
    killer = kill_a_node_that_holds("RayTrainWorker", nodes, lambda: trainer.last_step(scratch) > 0)
    shared, _, _ = curve_of(load(TWO | {"student.cluster": "ray", "ray.address": nodes.address}), scratch, LONG)
    killer.join(timeout=0)
    assert not killer.is_alive()
    assert len(nodes.list_all_nodes()) == 2
    print("Ray Train against one process:", farthest(alone, shared))
    assert farthest(alone, shared) < NOISE
