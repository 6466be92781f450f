"""Training and asking a student: a real Trainer on a tiny GPT-2, killed, resumed, warm-started."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from conftest import FakeEngine, small_params
from udrl_pipeline import corpus, dataset, metrics
from udrl_pipeline import settings as settings_module
from udrl_pipeline.commands import Command
from udrl_pipeline.errors import QualityError, StudentError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.sequences import collate

TINY: dict[str, object] = {
    "intents.builtin": 40,
    "intents.validation": 0.2,
    "quality.min_rows_per_task": 5,
    "student.init_from": "scratch",
    "student.scratch.layers": 2,
    "student.scratch.width": 32,
    "student.scratch.heads": 2,
    "student.scratch.vocabulary": 600,
    "student.batch_rows": 8,
    "student.epochs": 2.0,
    "student.save_every": 4,
    "commands.quality_bins": 2,
    "evaluation.sweep_intents": 2,
    "evaluation.guidance": [1],
}
GREEDY = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}


def labelled(settings: Settings) -> Workspace:
    workspace = Workspace(settings)
    workspace.begin_run()
    intents.build(workspace)
    corpus.build(workspace)
    dataset.build(workspace)
    return workspace


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled dataset's artifacts, made once for all tests of this file."""
    folder = tmp_path_factory.mktemp("labelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udrl_pipeline.corpus.open_engine", lambda *_, **__: FakeEngine())
        return labelled(settings_module.load(small_params(folder), preset="", overrides=TINY)).folder


@pytest.fixture
def workspace(once: Path, load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine]) -> Workspace:
    use_engine(FakeEngine())
    settings = load(TINY)
    shutil.copytree(once, settings.artifacts_folder)
    workspace = Workspace(settings)
    workspace.begin_run()
    return workspace


def test_a_student_is_a_folder_that_plain_transformers_loads(workspace: Workspace) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = training.build(workspace, "udrl")
    folder = workspace.version_folder("student/udrl", made.version)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("<|task:image|> red fox<|words:8|><|quality:2|><|text|>", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] == prompt.input_ids.shape[1] + 3
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".jinja", ".parquet"}
    assert made.parents == {"labeled_dataset": workspace.parents("labeled_dataset")["labeled_dataset"]}
    assert workspace.manifest("student/udrl", made.version)["facts"]["covered_words"].keys() == {"image", "template", "search"}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_loss_and_its_gradients_are_those_of_the_model_itself(architecture: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32, "intermediate_size": 32}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **shape)).eval()
    features = [{"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]}, {"input_ids": [6, 7, 8], "labels": [-100, 7, 8]}]
    batch = collate(features, pad=0)
    found = []
    for loss in (model(**batch).loss, training.answer_loss(model, **batch)["loss"]):
        model.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(training.answer_loss(model, **batch, num_items_in_batch=10)["loss"], model(**batch).loss * 5 / 10)


def test_the_loss_falls_and_the_curve_is_kept(workspace: Workspace) -> None:
    made = training.build(workspace, "udrl")
    curve = json.loads((workspace.version_folder("student/udrl", made.version) / "loss.json").read_text())
    losses = [point["loss"] for point in curve if "loss" in point]
    assert losses[-1] < losses[0]
    assert [point for point in curve if "validation_loss" in point]


def test_how_fast_it_learns_is_told_with_the_loss(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, float] = {}
    labels = {"asset": "student/udrl", "recipe": "udrl"}

    def add(self: metrics.Counter, amount: float, **found: str) -> None:
        if found == labels:
            told[self.name] = told.get(self.name, 0) + amount

    monkeypatch.setattr(metrics.Counter, "add", add)
    with caplog.at_level("INFO", logger="udrl_pipeline"):
        made = training.build(workspace, "udrl")
    assert told == {"udrl.train.steps": made.work["train_steps"], "udrl.train.tokens": made.facts["tokens"]}
    curve = json.loads((workspace.version_folder("student/udrl", made.version) / "loss.json").read_text())
    assert [point["step"] for point in made.facts["speed"]] == [point["step"] for point in curve if "loss" in point]
    assert all(point["tokens_per_s"] > 0 for point in made.facts["speed"])
    assert re.search(r"step \d+ of \d+, loss \d\.\d{3}, \d+ tokens/s, \d+ s left", caplog.text)


def test_a_student_keeps_which_rows_it_has_read_and_how_often(workspace: Workspace) -> None:
    made = training.build(workspace, "udrl")
    seen = pd.read_parquet(workspace.version_folder("student/udrl", made.version) / training.SEEN)
    rows = dataset.read_dataset(workspace, made.parents["labeled_dataset"])
    assert seen.row_key.tolist() == sorted(rows.row_key[rows.split == "train"])
    assert set(seen.times) == {2}  # student.epochs
    assert seen.times.sum() == made.rows


def test_the_same_inputs_take_no_training_step(workspace: Workspace) -> None:
    first = training.build(workspace, "udrl")
    again = training.build(workspace, "udrl")
    assert first.work["train_steps"] > 0
    assert (again.version, again.made_now, again.work) == (first.version, False, {})


def test_the_same_seed_trains_the_same_student(workspace: Workspace) -> None:
    first = training.build(workspace, "udrl")
    other = labelled(Settings.model_validate(workspace.settings.model_dump() | {"artifacts": str(workspace.folder / "other")}))
    assert training.build(other, "udrl").version == first.version


def test_a_student_answers_the_same_for_the_same_seed(workspace: Workspace) -> None:
    made = training.build(workspace, "udrl")
    student = Student.load(workspace.version_folder("student/udrl", made.version))
    commands = [Command("image", "red fox", words, quality) for words in (7, 12) for quality in (1, 2)]
    sampled = {**GREEDY, "temperature": 1.0}
    first = student.generate(commands, **sampled)
    assert [g.text for g in first] == [g.text for g in student.generate(commands, **sampled)]
    assert [g.text for g in first] != [g.text for g in student.generate(commands, **{**sampled, "seed": 1})]
    assert [g.command for g in first] == [student.space.clamp(c)[0] for c in commands]


def test_a_student_without_commands_leaves_them_out_and_says_so(workspace: Workspace) -> None:
    made = training.build(workspace, "sft")
    student = Student.load(workspace.version_folder("student/sft", made.version))
    assert (made.facts["best_quality"], made.facts["sweep"], student.commanded) == ({}, {}, False)
    [plain] = student.generate([Command("image", "red fox")], **GREEDY)
    [commanded] = student.generate([Command("image", "red fox", 9, 2)], **GREEDY)
    assert (commanded.text, commanded.command, plain.warnings) == (plain.text, Command("image", "red fox"), ())
    assert commanded.warnings == ("a student of recipe sft was trained without length and quality: both are left out",)


def test_a_student_never_writes_a_control_token(workspace: Workspace) -> None:
    made = training.build(workspace, "udrl")
    student = Student.load(workspace.version_folder("student/udrl", made.version))
    texts = student.generate([Command("image", "red fox")] * 20, **{**GREEDY, "temperature": 2.0})
    assert not [g.text for g in texts if "<|" in g.text]


def test_only_new_rows_warm_start_the_next_student(workspace: Workspace, load: Callable[..., Settings], tmp_path: Path) -> None:
    first = training.build(workspace, "udrl")
    ideas = tmp_path / "ideas.csv"
    ideas.write_text("intent\nclockwork owl\npaper submarine\n", encoding="utf-8")
    grown = labelled(load({**TINY, "intents.sources": [str(ideas)]}))
    second = training.build(grown, "udrl")
    assert second.facts["start"]["version"] == first.version
    assert second.parents["student/udrl"] == first.version


def test_another_parameter_starts_anew(workspace: Workspace, load: Callable[..., Settings]) -> None:
    training.build(workspace, "udrl")
    again = training.build(Workspace(load({**TINY, "student.seed": 99})), "udrl")
    assert again.facts["start"]["init_from"] == "scratch"


def test_other_code_starts_anew(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    training.build(workspace, "udrl")
    monkeypatch.setattr(training, "code_version", lambda sources: "changed")
    assert training.build(workspace, "udrl").facts["start"]["init_from"] == "scratch"


def test_a_dataset_that_did_not_pass_is_not_trained_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    current = workspace.parents("labeled_dataset")
    with workspace.database.writer() as connection:
        connection.execute("UPDATE versions SET verdict = 'FAIL' WHERE asset = 'labeled_dataset'")
    monkeypatch.setattr(Workspace, "parents", lambda self, *assets: current)
    with pytest.raises(QualityError, match="did not pass its expectations"):
        training.build(workspace, "udrl")


def test_an_unknown_recipe_names_those_that_there_are(workspace: Workspace) -> None:
    with pytest.raises(StudentError, match="unknown recipe 'magic'") as error:
        training.build(workspace, "magic")
    assert "udrl, sft, sft-top, reward-weighted" in str(error.value)


def test_a_killed_training_resumes_from_its_checkpoint(workspace: Workspace, params: Path) -> None:
    overrides = json.dumps(TINY | {"student.epochs": 40.0})
    script = textwrap.dedent(
        f"""
        import json
        from udrl_pipeline import settings
        from udrl_pipeline.store.workspace import Workspace
        from udrl_pipeline.student import training
        workspace = Workspace(settings.load({str(params)!r}, preset="", overrides=json.loads({overrides!r})))
        training.build(workspace, "udrl")
        """
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = workspace.folder / ".work"
    deadline = time.monotonic() + 120
    while not list(work.rglob("checkpoints/checkpoint-*")):
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    settings = Settings.model_validate(
        json.loads(workspace.settings.model_dump_json()) | {"student": workspace.settings.student.model_dump() | {"epochs": 40.0}}
    )
    settings._root = workspace.settings.root
    made = training.build(Workspace(settings), "udrl")
    total = -(-made.facts["sequences"] // 8)
    assert 0 < made.work["train_steps"] <= total - 4
    assert not list(work.rglob("checkpoint-*"))
