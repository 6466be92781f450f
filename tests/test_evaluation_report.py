"""The evaluation report as an asset, with a tiny random student and teacher: what it holds, and when it is made anew."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import FakeEngine
from udrl_pipeline import corpus, dataset, promotion, rewards
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.verify import verify
from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.errors import CorruptArtifact, SettingsError, UdrlError
from udrl_pipeline.evaluation import plots, report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.initialise import initialise
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.versioning import content_hash, unit_draw

#: Small in every respect, with a teacher from a folder and a comparator that is not there.
OVERRIDES: dict[str, object] = {
    "intents.builtin": 40,
    "intents.test": 0.3,
    "intents.validation": 0.1,
    "teacher.model": {"ref": "path:teacher", "file": "", "sha256": None},
    "quality.min_rows_per_task": 5,
    "student.init_from": "scratch",
    "student.scratch": {"layers": 1, "width": 16, "heads": 2, "vocabulary": 400},
    "evaluation.intents": 4,
    "evaluation.quality_intents": 2,
    "evaluation.length_intents": 2,
    "evaluation.lengths": [3, 10],
    "evaluation.judge_rows": 3,
    "evaluation.bootstrap": 100,
    "evaluation.latency_repeats": 2,
    "evaluation.latency_tokens": 4,
    "evaluation.latency_batch": 2,
    "evaluation.comparators": [{"name": "Qwen3 8B", "model": {"ref": "path:nowhere"}, "engine": "transformers"}],
}
#: What a student tells of its choice of guidance.
TRIED = {"1": {"reward": 1.0, "spread": 0.75}, "2": {"reward": 1.234, "spread": 0.6}}
SWEEP = {task: {"guidance": TRIED, "quality": {}, "teacher_spread": 0.8} for task in ("image", "template", "search")}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 with a chat template."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from udrl_pipeline.student.vocabulary import train_bpe

    folder = tmp_path_factory.mktemp("models") / "teacher"
    tokenizer = train_bpe([" red fox in the snow", " you write prompts about old barns"], 400, [])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=4096, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def load_small(load: Callable[..., Settings], teacher_folder: Path) -> Callable[..., Settings]:
    own = OVERRIDES | {"teacher.model": {"ref": f"path:{teacher_folder}", "file": "", "sha256": None}}
    return lambda **overrides: load(own | {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.fixture
def made(load_small: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a dataset and both students, and a scorer that draws its scores."""

    def relevance(self: object, asked: list[str], texts: list[str]) -> np.ndarray:
        return np.round([0.3 + 0.5 * unit_draw("relevance", text) for text in texts], 4)

    def embed(self: object, texts: list[str]) -> np.ndarray:
        vectors = np.array([[unit_draw(text, dimension) for dimension in range(8)] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    monkeypatch.setattr(rewards.Scorer, "relevance", relevance)
    monkeypatch.setattr(rewards.Scorer, "embed", embed)
    use_engine(FakeEngine())
    workspace = Workspace(load_small(), run_id="run-1")
    workspace.begin_run()
    intents.build(workspace)
    corpus.build(workspace)
    assert dataset.build(workspace).verdict == "PASS"
    for recipe in ("sft", "udrl"):
        record_student(workspace, recipe)
    return workspace


def record_student(workspace: Workspace, recipe: str, seed: int = 1) -> Version:
    """An untrained student of a recipe in the ledger."""
    import torch

    parents = workspace.parents(dataset.ASSET)
    frame = dataset.read_dataset(workspace, parents[dataset.ASSET])
    edges = workspace.find(dataset.ASSET, parents[dataset.ASSET]).facts["edges"]  # type: ignore[union-attr]
    space = CommandSpace.measure(frame[frame.split == "train"], edges, workspace.settings.commands)
    commanded = RECIPES[recipe].commanded
    space = space.with_best(space.best, space.guidance | {"image": 2.0}) if commanded else space.with_best({}, space.guidance)
    start = initialise(workspace.settings, space, sorted({*frame.intent, *frame.text}))
    with torch.no_grad():
        start.model.transformer.wpe.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))

    def write(folder: Path) -> None:
        start.model.save_pretrained(folder)
        start.tokenizer.save_pretrained(folder)
        space.save(folder)
        recipe_file = {"name": recipe, "description": RECIPES[recipe].description}
        (folder / "recipe.json").write_text(json.dumps(recipe_file), encoding="utf-8")
        (folder / "loss.json").write_text(json.dumps([{"step": 1, "loss": 6.0}, {"step": 1, "validation_loss": 6.1}]), encoding="utf-8")

    version = content_hash([recipe, seed])
    return workspace.record(
        f"student/{recipe}", version=version, fingerprint=version, code_version="code", rows=1, params={"seed": seed},
        parents=parents, facts={"sweep": SWEEP} if commanded else {}, write=write,
    )  # fmt: skip


def read(workspace: Workspace, version: Version) -> tuple[str, dict[str, Any], pd.DataFrame]:
    folder = workspace.version_folder(report.ASSET, version.version)
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "metrics.json", "report.html", "samples.parquet"]
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return (folder / "report.html").read_text(encoding="utf-8"), metrics, pd.read_parquet(folder / "samples.parquet")


class Evaluated(Exception):
    """Raised in place of an evaluation, with the students that it was asked for, and those in use."""

    def __init__(self, students: dict[str, Version], in_use: dict[str, Version]) -> None:
        self.students, self.in_use = students, in_use

    @classmethod
    def instead(cls, workspace: Workspace, parents: dict[str, str], students: dict[str, Version], in_use: dict[str, Version]) -> None:
        raise cls(students, in_use)


def test_a_report_compares_every_current_student_with_the_teacher(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    version = report.build(made)
    html, metrics, samples = read(made, version)

    assert version.parents == made.parents("labeled_dataset", "teacher_corpus", "student/udrl", "student/sft")
    assert list(metrics["systems"]) == ["teacher", "teacher_kept", "udrl", "udrl_uncommanded", "sft", "Qwen3 8B"]
    assert set(samples.system) == {"teacher", "teacher_kept", "udrl", "udrl_uncommanded", "sft"}
    assert metrics["intents"] == {"image": 4, "template": 4, "search": 4}
    compared = samples[(samples.part == "compare") & (samples.system != "teacher_kept")]
    assert {tuple(rows.intent_key) for _, rows in compared.groupby(["system", "task"])} == {tuple(compared.intent_key[:4])}
    assert samples[samples.system == "udrl"].groupby("part").size().to_dict() == {"compare": 12, "length": 12, "quality": 30}
    assert samples[samples.part == "compare"].groupby(["system", "task"]).information.count().max() == 3

    # the main student against every other one, the others against the teacher; and how the guidance was chosen
    assert list(metrics["against"]["udrl"]) == ["teacher", "teacher_kept", "udrl_uncommanded", "sft"]
    assert list(metrics["against"]["sft"]) == ["teacher", "teacher_kept"]
    assert {"value", "low", "high", "n"} == metrics["against"]["udrl"]["sft"]["mean"]["reward"].keys()
    assert metrics["choice"].keys() == {"udrl"}
    assert metrics["choice"]["udrl"]["guidance"] == {"image": 2.0, "template": 1.0, "search": 1.0}
    assert "<b>1.234</b><small>75.0%</small>" in html

    # every version that the report stands on is named on the page, which asks nobody for anything
    for asset, parent in {**version.parents, **made.parents("intents")}.items():
        assert asset in html
        assert parent in html
    assert re.findall(r"""(?:src|href|action)=["'](?!#|data:)[^"']*|url\((?!#)[^)]*\)|@import|<script""", html) == []

    # what cannot be had is shown with its reason, and never counted as measured
    assert "nothing is there" in metrics["systems"]["Qwen3 8B"]["not_measured"]
    assert metrics["systems"]["Qwen3 8B"]["not_measured"].split(":")[0] in html
    assert metrics["claims"]["80_times_smaller/Qwen3 8B"]["verdict"] == "not measured"
    assert set(metrics["latency"]) == {"udrl", "sft", "teacher", "teacher_without_examples"}
    assert metrics["claims"]["338_tokens_per_s"]["verdict"] == "not measured"

    # the ledger's facts are the headline, flat
    assert version.facts == metrics["headline"]
    assert {type(value) for value in version.facts.values()} <= {int, float, str}
    assert version.facts["student"] == "udrl"
    assert version.facts["relevance_ratio_low"] <= version.facts["relevance_ratio"] <= version.facts["relevance_ratio_high"]
    phases = ("texts of udrl", "scores", "second judge", "latency", "statistics")
    assert set(version.work) >= {f"seconds/{phase}" for phase in phases}

    # -- an unchanged rerun loads nothing; the same inputs measured again make the same version, whatever the clock said
    again = report.build(made)
    assert (again.version, again.made_now, again.work) == (version.version, False, {})
    (made.version_folder(report.ASSET, version.version) / "manifest.json").unlink()
    anew = report.build(made)
    assert (anew.version, anew.made_now) == (version.version, True)

    # -- a new student is evaluated, a damaged one stops the report
    record_student(made, "udrl", seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(report, "evaluate_students", Evaluated.instead)
        with pytest.raises(Evaluated) as evaluated:
            report.build(made)
    assert evaluated.value.students["udrl"].version == content_hash(["udrl", 2])
    damaged = record_student(made, "udrl", seed=3)
    (made.version_folder(damaged.asset, damaged.version) / "commands.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CorruptArtifact, match=r"commands\.json \(changed\)"):
        report.build(made)


def test_a_newer_student_is_compared_with_the_one_in_use(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report.build(made)
    promotion.build(made)
    assert report.build(made).version == first.version  # that it is in use now changes nothing
    before = read(made, first)[2]
    newer = record_student(made, "udrl", seed=2)
    version = report.build(made)
    html, metrics, samples = read(made, version)
    in_use = content_hash(["udrl", 1])
    assert version.parents == made.parents("labeled_dataset", "teacher_corpus", "student/udrl", "student/sft") | {
        "student/udrl (promoted)": in_use
    }

    # it answers the same intents as before, and is asked nothing else
    assert list(metrics["systems"]) == ["teacher", "teacher_kept", "udrl", "udrl_uncommanded", "sft", "udrl_promoted", "Qwen3 8B"]
    texts = samples[samples.system == "udrl_promoted"]
    assert set(texts.part) == {"compare"}
    compared = before[(before.system == "udrl") & (before.part == "compare")]
    columns = ["task", "intent_key", "text", "reward"]
    assert texts[columns].to_dict("records") == compared[columns].to_dict("records")
    assert list(metrics["against"]["udrl"]) == ["teacher", "teacher_kept", "udrl_uncommanded", "sft", "udrl_promoted"]
    assert "udrl_promoted" not in {*metrics["against"], *metrics["latency"], *metrics["sizes"]}

    # the verdict is in the figures, on the page and in the ledger
    verdict, found = metrics["promotion"]["udrl"], metrics["against"]["udrl"]["udrl_promoted"]["mean"]
    assert (verdict["candidate"], verdict["in_use"], verdict["margin"]) == (newer.version, in_use, 0.02)
    assert verdict["measures"] == {name: found[name] for name in ("reward", "relevance", "spread", "finished") if name in found}
    assert verdict["reason"] in html
    assert in_use in html
    assert {(v.asset, v.version) for v in Book(made).children(made.find("student/udrl", in_use))} >= {(report.ASSET, version.version)}  # type: ignore[arg-type]
    assert [fault for fault in verify(made) if fault.asset == report.ASSET] == []
    promotion.build(made)
    entry = made.promotions()[-1]
    assert (entry.version, entry.figures["against"], entry.reason) == (newer.version, in_use, verdict["reason"])

    # whoever is in use then, what was compared stays compared; other settings ask anew, and only if there is a question
    other = Workspace(made.settings.model_copy(update={"promotion": made.settings.promotion.model_copy(update={"margin": 0.03})}))
    monkeypatch.setattr(report, "evaluate_students", Evaluated.instead)
    promotion.promote(made, newer, "so it shall be")
    assert (report.build(made).version, promotion.build(made).parents["student/udrl"]) == (version.version, newer.version)
    with pytest.raises(Evaluated) as evaluated:
        report.build(other)
    assert evaluated.value.in_use == {}
    promotion.rollback(made, "udrl", "or not")
    assert report.build(made).version == version.version
    with pytest.raises(Evaluated) as evaluated:
        report.build(other)
    assert {recipe: v.version for recipe, v in evaluated.value.in_use.items()} == {"udrl": in_use}


def test_a_student_in_use_that_is_damaged_is_not_measured_and_its_fellow_not_promoted(made: Workspace) -> None:
    report.build(made)
    promotion.build(made)
    damaged = made.version_folder("student/udrl", content_hash(["udrl", 1])) / "commands.json"
    damaged.write_text("{}", encoding="utf-8")
    record_student(made, "udrl", seed=2)
    _, metrics, _ = read(made, report.build(made))
    assert "commands.json (changed)" in metrics["systems"]["udrl_promoted"]["not_measured"]
    promotion.build(made)
    entry = made.promotions()[-1]
    assert entry.action == "refused"
    assert "the student in use could not be measured" in entry.reason
    assert "commands.json (changed)" in entry.reason


def test_without_a_student_the_error_says_how_to_train_one(load_small: Callable[..., Settings]) -> None:
    with pytest.raises(UdrlError, match=r"(?s)no student yet.*udrl run"):
        report.build(Workspace(load_small()))


def test_a_comparator_cannot_take_a_students_name(load_small: Callable[..., Settings]) -> None:
    workspace = Workspace(load_small(evaluation__comparators=[{"name": "udrl_uncommanded", "model": {"ref": "path:nowhere"}}]))
    workspace.record(
        "student/udrl", version="1", fingerprint="1", code_version="1", rows=1, params={}, parents={}, facts={}, write=lambda folder: None
    )
    with pytest.raises(SettingsError, match="udrl_uncommanded"):
        report.build(workspace)


@pytest.mark.parametrize("names", [["teacher"], ["one", "one"]])
def test_comparators_names_are_their_own(load_small: Callable[..., Settings], names: list[str]) -> None:
    with pytest.raises(SettingsError, match="comparator"):
        load_small(evaluation__comparators=[{"name": name, "model": {"ref": "path:nowhere"}} for name in names])


def test_a_plot_is_one_scalable_element_whose_colours_are_the_pages() -> None:
    points = [(1.0, 0.4, 0.3, 0.5), (2.0, 0.6, 0.5, 0.7)]
    drawn = [
        plots.quality_panel("a", 'Prompts & "more"', {"udrl": points}, ("teacher's mean", 0.5), 2),
        plots.length_panel("b", "Images", {"udrl": points}, [(1.0, 3.0), (2.0, 4.0)], (1, 2)),
        plots.relevance_panel("c", "Images", {"teacher": (0.5, 0.4, 0.6), "udrl": (0.4, 0.3, 0.5)}),
        plots.reward_panel("d", "Images", {"teacher": [0.1, 0.5, 0.9], "udrl": [0.2, 0.3]}, [0.3, 0.6]),
        plots.loss_panel("e", "udrl", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "validation_loss": 2.5}]),
    ]
    for name, svg in zip("abcde", drawn, strict=True):
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg")
        assert root.get("role") == "img"
        assert (root.get("width"), root.get("height")) == (None, None)
        assert all(element.get("id", name).startswith(name) for element in root.iter())
        assert re.findall(r"#[0-9a-f]{6}", svg) == []
        assert "var(--hue-" in svg
        assert "font-family" not in svg
    assert plots.loss_panel("e", "udrl", [{"step": 1, "loss": 3.0}]) == plots.loss_panel("e", "udrl", [{"step": 1, "loss": 3.0}])
