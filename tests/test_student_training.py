"""Training and asking a student: a real Trainer on a tiny GPT-2, killed, resumed, warm-started."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from conftest import REPOSITORY, FakeEngine, small_params
from udrl_pipeline import corpus, dataset, metrics
from udrl_pipeline import settings as settings_module
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import QualityError, StudentError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.names import SEEN_FILE
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import trainer, training
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


@pytest.fixture(scope="module")
def trained(once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Version]:
    """And its student, for tests that only look."""
    settings = settings_module.load(small_params(tmp_path_factory.mktemp("trained")), preset="", overrides=TINY)
    shutil.copytree(once, settings.artifacts_folder)
    workspace = Workspace(settings)
    workspace.begin_run()
    return workspace, training.build(workspace, "udrl")


@pytest.fixture(scope="module")
def student(trained: tuple[Workspace, Version]) -> Student:
    workspace, made = trained
    return Student.load(workspace.version_folder("student/udrl", made.version))


@pytest.fixture
def grown(trained: tuple[Workspace, Version], load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine]) -> Version:
    """The same in one's own folder, to train another one after it."""
    use_engine(FakeEngine())
    shutil.copytree(trained[0].folder, load(TINY).artifacts_folder)
    return trained[1]


@pytest.fixture
def workspace(once: Path, load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine]) -> Workspace:
    use_engine(FakeEngine())
    settings = load(TINY)
    shutil.copytree(once, settings.artifacts_folder)
    workspace = Workspace(settings)
    workspace.begin_run()
    return workspace


def test_a_student_is_a_folder_that_plain_transformers_loads(trained: tuple[Workspace, Version]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    workspace, made = trained
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
    for loss in (model(**batch).loss, trainer.answer_loss(model, **batch)["loss"]):
        model.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(trainer.answer_loss(model, **batch, num_items_in_batch=10)["loss"], model(**batch).loss * 5 / 10)


def test_the_loss_falls_and_the_curve_is_kept(trained: tuple[Workspace, Version]) -> None:
    workspace, made = trained
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


def test_a_student_keeps_which_rows_it_has_read_and_how_often(trained: tuple[Workspace, Version]) -> None:
    workspace, made = trained
    seen = pd.read_parquet(workspace.version_folder("student/udrl", made.version) / SEEN_FILE)
    rows = dataset.read_dataset(workspace, made.parents["labeled_dataset"])
    assert seen.row_key.tolist() == sorted(rows.row_key[rows.split == "train"])
    assert set(seen.times) == {2}  # student.epochs
    assert seen.times.sum() == made.rows


def test_the_same_inputs_take_no_training_step(grown: Version, load: Callable[..., Settings]) -> None:
    first, again = grown, training.build(Workspace(load(TINY)), "udrl")
    assert first.work["train_steps"] > 0
    assert (again.version, again.made_now, again.work) == (first.version, False, {})


def test_the_same_seed_trains_the_same_student(
    trained: tuple[Workspace, Version], load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine]
) -> None:
    use_engine(FakeEngine())
    assert training.build(labelled(load(TINY)), "udrl").version == trained[1].version


def test_a_student_answers_the_same_for_the_same_seed(student: Student) -> None:
    commands = [Command("image", "red fox", words, quality) for words in (7, 12) for quality in (1, 2)]
    sampled = {**GREEDY, "temperature": 1.0}
    first = student.generate(commands, **sampled)
    assert [g.text for g in first] == [g.text for g in student.generate(commands, **sampled)]
    assert [g.text for g in first] != [g.text for g in student.generate(commands, **{**sampled, "seed": 1})]
    assert [g.command for g in first] == [student.space.clamp(c)[0] for c in commands]


@pytest.mark.parametrize("recipe", ["udrl", "sft"])
def test_a_student_keeps_how_hard_it_presses_the_idea_and_is_another_where_that_changes(
    load: Callable[..., Settings], workspace: Workspace, recipe: str
) -> None:
    made = training.build(workspace, recipe)
    space = CommandSpace.load(workspace.version_folder(made.asset, made.version))
    assert (space.idea_guidance, made.facts["idea_guidance"], made.params["sweep"]["idea_guidance"]) == (1.5, 1.5, 1.5)
    changed = Workspace(load({**TINY, "evaluation.idea_guidance": 3.0}))
    changed.begin_run()
    other = training.build(changed, recipe)
    assert (other.facts["idea_guidance"], other.version == made.version) == (3.0, False)


def test_a_student_without_commands_leaves_them_out_and_says_so(workspace: Workspace) -> None:
    made = training.build(workspace, "sft")
    student = Student.load(workspace.version_folder("student/sft", made.version))
    assert (made.facts["best_quality"], made.facts["sweep"], student.commanded) == ({}, {}, False)
    [plain] = student.generate([Command("image", "red fox")], **GREEDY)
    [commanded] = student.generate([Command("image", "red fox", 9, 2)], **GREEDY)
    assert (commanded.text, commanded.command, plain.warnings) == (plain.text, Command("image", "red fox"), ())
    assert commanded.warnings == ("a student of recipe sft was trained without length and quality: both are left out",)


def test_a_student_never_writes_a_control_token(student: Student) -> None:
    texts = student.generate([Command("image", "red fox")] * 20, **{**GREEDY, "temperature": 2.0})
    assert not [g.text for g in texts if "<|" in g.text]


def test_only_new_rows_warm_start_the_next_student(grown: Version, load: Callable[..., Settings], tmp_path: Path) -> None:
    ideas = tmp_path / "ideas.csv"
    ideas.write_text("intent\nclockwork owl\npaper submarine\n", encoding="utf-8")
    second = training.build(labelled(load({**TINY, "intents.sources": [str(ideas)]})), "udrl")
    assert second.facts["start"]["version"] == grown.version
    assert second.parents["student/udrl"] == grown.version


@pytest.mark.usefixtures("grown")
def test_another_parameter_starts_anew(load: Callable[..., Settings]) -> None:
    again = training.build(Workspace(load({**TINY, "student.seed": 99})), "udrl")
    assert (again.made_now, again.facts["start"]["init_from"]) == (True, "scratch")


@pytest.mark.usefixtures("grown")
def test_other_code_starts_anew(load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "code_version", lambda sources: "changed")
    again = training.build(Workspace(load(TINY)), "udrl")
    assert (again.made_now, again.facts["start"]["init_from"]) == (True, "scratch")


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


KILLED = """
import json, sys
from pathlib import Path
from benchmarks.torture.moments import CHECKPOINT, Moment, arm
from udrl_pipeline import settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import training
arm(Moment(CHECKPOINT, "student/udrl", "renamed, the one before still there", number=2), lambda line: None)
training.build(Workspace(settings.load(Path(sys.argv[1]), preset="", overrides=json.loads(sys.argv[2]))), "udrl")
"""


def test_a_killed_training_resumes_from_its_checkpoint(workspace: Workspace, params: Path, load: Callable[..., Settings]) -> None:
    muon, environment = TINY | {"student.optimiser": "muon"}, os.environ | {"PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(params), json.dumps(muon)], env=environment, capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    work = workspace.folder / ".work"
    assert {path.name for path in work.rglob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    made = training.build(Workspace(load(muon)), "udrl")
    assert made.work["train_steps"] == -(-made.facts["sequences"] // 8) - 8
    assert not list(work.rglob("checkpoint-*"))
