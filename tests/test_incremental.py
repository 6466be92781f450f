"""I changed X: what is made again, and which versions are others? Two tables, one row a change.

Intents, corpus, labels, bins, fingerprints, versions and the ledger are real. The teacher and the scorer answer at once, every row is
good enough, and training and evaluation leave what they were given, so that another input is another result.
"""

import importlib.resources
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import FakeEngine, small_params, stores_kept_open
from udrl_pipeline import corpus, dataset, quality
from udrl_pipeline import settings as settings_module
from udrl_pipeline.evaluation import report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.rewards import Scorer
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import training
from udrl_pipeline.versioning import canonical, content_hash, unit_draw

IDEAS = [
    "red fox in the snow", "tea house at dusk", "steam train on a bridge", "chess club birthday", "paper boats", "bakery window",
    "owl over a barn", "jazz night", "harbour in fog", "desert road",
]  # fmt: skip
OVERRIDES: dict[str, Any] = {
    "intents.builtin": 0,
    "intents.sources": ["ideas.csv"],
    "intents.validation": 0.0,
    "tasks.folder": "tasks",
    "quality.min_rows_per_task": 2,
}
pytestmark = pytest.mark.usefixtures("kept_open")
PACKAGE = Path(str(importlib.resources.files("udrl_pipeline")))


@dataclass(frozen=True)
class Work:
    """What a run did. The dataset was `kept`, made again with the `same` content, or is a `new` version."""

    written: int = 0
    scored: int = 0
    dataset: str = "kept"
    trained: bool = False
    reported: bool = False


#: What a run does that finds everything made.
NOTHING = Work()


@dataclass
class Project:
    """A project's folder, the overrides of the next run, and what the runs did."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    overrides: dict[str, Any] = field(default_factory=lambda: dict(OVERRIDES))
    engine: FakeEngine = field(default_factory=FakeEngine)
    scored: int = 0
    trained: int = 0
    reported: int = 0

    def prepare(self) -> "Project":
        """Put in what answers at once."""
        self.write_ideas(IDEAS)
        (self.folder / "tasks").mkdir(exist_ok=True)
        return self.attach()

    def attach(self) -> "Project":
        def relevance(scorer: Scorer, intents: list[str], texts: list[str]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
            self.scored += len(texts)
            return np.round([0.3 + 0.5 * unit_draw(scorer.version, text) for text in texts], 4)

        def train(workspace: Workspace, recipe: Any, rows: pd.DataFrame, edges: Any, previous: Any, scratch: Path) -> Any:
            self.trained += 1
            settings = workspace.settings
            learned = [rows.drop(columns="run_id").to_json(), edges, training._params(settings, recipe)]
            (scratch / "result").mkdir(exist_ok=True)
            (scratch / "result" / "weights").write_text(canonical(learned), encoding="utf-8")
            return {"sequences": len(rows)}, {}

        def evaluate(workspace: Workspace, parents: dict[str, str], students: dict[str, Version], in_use: dict[str, Version]) -> Any:
            self.reported += 1
            content = content_hash(sorted(parents.items()))
            return SimpleNamespace(content=lambda: content, metrics={"headline": {}}, samples=pd.DataFrame(), seconds={})

        self.monkeypatch.setattr(Scorer, "relevance", relevance)
        self.monkeypatch.setattr(quality, "judge_rows", lambda examined, _: (examined, [], []))
        self.monkeypatch.setattr(quality, "judge_version", lambda *_: [])
        self.monkeypatch.setattr(training, "_train", train)
        self.monkeypatch.setattr(report, "evaluate_students", evaluate)
        self.monkeypatch.setattr(report, "render", lambda *_, **__: "")
        self.monkeypatch.setattr(corpus, "open_engine", lambda *_: self.engine)
        return self

    def settings(self) -> Settings:
        return settings_module.load(self.folder / "params.yaml", preset="", overrides=self.overrides)

    def run(self) -> dict[str, Version]:
        """Bring everything up to date; the current versions."""
        workspace = Workspace(self.settings())
        workspace.begin_run()
        made = [
            build(workspace) for build in (intents.build, corpus.build, dataset.build, lambda w: training.build(w, "udrl"), report.build)
        ]
        assert {version.verdict for version in made} == {"PASS"}
        return {version.asset: version for version in made}

    def work(self) -> Work:
        """What a run does now."""
        last = Workspace(self.settings()).current(dataset.ASSET)
        before = self.engine.rows, self.scored, self.trained, self.reported
        made = self.run()[dataset.ASSET]
        done = "kept" if not made.made_now else "same" if last and made.version == last.version else "new"
        return Work(self.engine.rows - before[0], self.scored - before[1], done, self.trained > before[2], self.reported > before[3])

    # -- changes ------------------------------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Other settings; `teacher__samples=2` is `teacher.samples: 2`."""
        self.overrides |= {name.replace("__", "."): value for name, value in values.items()}

    def write_ideas(self, lines: list[str]) -> None:
        (self.folder / "ideas.csv").write_text("\n".join(["intent", *lines, ""]), encoding="utf-8")

    def edit_task(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """A task file of the user's own that differs from the built-in one."""
        task = yaml.safe_load((PACKAGE / "tasks" / "image.yaml").read_text(encoding="utf-8"))
        edit(task)
        (self.folder / "tasks" / "image.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")

    def edit_code(self, edit: Callable[[str], str], *files: str) -> None:
        """Another text of source files, as far as code versions see it."""
        copy, real = self.folder / "package", importlib.resources.files
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("recorded", "__pycache__"))
        for file in files:
            (copy / file).write_text(edit((copy / file).read_text(encoding="utf-8")), encoding="utf-8")
        self.monkeypatch.setattr(importlib.resources, "files", lambda package: copy if package == "udrl_pipeline" else real(package))

    def move(self) -> None:
        (self.folder / "artifacts").rename(self.folder / "elsewhere")
        self.set(artifacts="elsewhere")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A project in which everything has been made, to be copied; and its versions."""
    folder = tmp_path_factory.mktemp("made")
    small_params(folder)
    with pytest.MonkeyPatch.context() as monkeypatch, stores_kept_open():
        first = Project(folder, monkeypatch).prepare()
        versions = {asset: made.version for asset, made in first.run().items()}
        assert (first.engine.rows, first.scored, first.trained, first.reported) == (30, 30, 1, 1)
    return folder, versions


@pytest.fixture
def project(made: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """One's own copy of it."""
    return Project(shutil.copytree(made[0], tmp_path / "project"), monkeypatch).attach()


def with_comment(text: str) -> str:
    return f"# a comment\n{text}\n# and another one\n"


def with_spaces(text: str) -> str:
    return text.replace("\n\n\n", "\n\n\n\n\n").replace("(settings: ", "( settings : ")


def with_another_constant(text: str) -> str:
    return f"{text}\nANOTHER = 1\n"


def another_example(task: dict[str, Any]) -> None:
    task["examples"][0]["text"] += ", at night"


def another_label(task: dict[str, Any]) -> None:
    task["label"] = "Picture"


CODE = ("corpus.py", "rewards.py", "quality.py", "dataset.py", "student/training.py", "evaluation/report.py", "intents/asset.py")
AFTER_THE_DATA = Work(dataset="new", trained=True, reported=True)

DONE: dict[str, tuple[Callable[[Project], None], Work]] = {
    "nothing": (lambda p: None, NOTHING),
    "a comment in the code": (lambda p: p.edit_code(with_comment, *CODE), NOTHING),
    "spaces in the code": (lambda p: p.edit_code(with_spaces, *CODE), NOTHING),
    "the code of the rewards": (lambda p: p.edit_code(with_another_constant, "rewards.py"), Work(dataset="same", reported=True)),
    "the code of the training": (lambda p: p.edit_code(with_another_constant, "student/training.py"), Work(trained=True)),
    "the code of the corpus": (lambda p: p.edit_code(with_another_constant, "corpus.py"), NOTHING),
    "an example pair of one task": (lambda p: p.edit_task(another_example), replace(AFTER_THE_DATA, written=10, scored=10)),
    "the label of a task": (lambda p: p.edit_task(another_label), NOTHING),
    "a reward weight": (lambda p: p.set(rewards__weights__gain=0.9), AFTER_THE_DATA),
    "the number of bins": (lambda p: p.set(commands__quality_bins=4), AFTER_THE_DATA),
    "the scorer": (lambda p: p.set(rewards__scorer__sha256="0" * 64), replace(AFTER_THE_DATA, scored=30)),
    "the teacher": (lambda p: p.set(teacher__model__sha256="0" * 64), replace(AFTER_THE_DATA, written=30, scored=30)),
    "the temperature of the teacher": (lambda p: p.set(teacher__temperature=0.9), replace(AFTER_THE_DATA, written=30, scored=30)),
    "a second sample": (lambda p: p.set(teacher__samples=2), replace(AFTER_THE_DATA, written=30, scored=30)),
    "an idea more": (lambda p: p.write_ideas([*IDEAS, "red kite"]), replace(AFTER_THE_DATA, written=3, scored=3)),
    "an idea less": (lambda p: p.write_ideas(IDEAS[:-1]), AFTER_THE_DATA),
    "the order of the ideas": (lambda p: p.write_ideas(IDEAS[::-1]), NOTHING),
    "spaces around the ideas": (lambda p: p.write_ideas([f"  {idea.replace(' ', '   ')} " for idea in IDEAS]), NOTHING),
    "the epochs of the student": (lambda p: p.set(student__epochs=3.0), Work(trained=True, reported=True)),
    "a setting of the evaluation": (lambda p: p.set(evaluation__bootstrap=500), Work(reported=True)),
    "how the students are sampled": (lambda p: p.set(evaluation__temperature=0.7), Work(trained=True, reported=True)),
    "the chunk size": (lambda p: p.set(teacher__chunk_rows=5), NOTHING),
    # the report compares the students' speed with the teacher's, on its engine
    "the engine": (lambda p: p.set(teacher__engine="vllm"), Work(reported=True)),
    "the folder of the artifacts": (Project.move, NOTHING),
}


@pytest.mark.parametrize("changed", DONE)
def test_a_change_makes_again_what_depends_on_it_and_nothing_else(project: Project, changed: str) -> None:
    change, expected = DONE[changed]
    change(project)
    assert project.work() == expected
    assert project.work() == NOTHING


@pytest.mark.parametrize("changed", ["a reward weight", "an idea less", "the epochs of the student", "the temperature of the teacher"])
def test_what_is_changed_back_is_there_already(project: Project, made: tuple[Path, dict[str, str]], changed: str) -> None:
    before = dict(project.overrides)
    DONE[changed][0](project)
    project.run()
    project.overrides = before
    project.write_ideas(IDEAS)
    assert project.work() == NOTHING
    assert {asset: version.version for asset, version in project.run().items()} == made[1]


# -- versions: made elsewhere, from nothing, and compared ------------------------------------------------------------------


def another_machine(project: Project) -> None:
    project.monkeypatch.setattr(platform, "machine", lambda: "another")
    project.monkeypatch.setattr(platform, "system", lambda: "Another")
    project.monkeypatch.setattr("os.cpu_count", lambda: 96)


def another_engine(project: Project) -> None:
    project.engine = FakeEngine(version="2")
    project.engine.name = "another"


DATA = {"labeled_dataset", "student/udrl", "evaluation_report"}
ALL = {"intents", "teacher_corpus", *DATA}

OTHERS: dict[str, tuple[Callable[[Project], None], set[str]]] = {
    "the time and the run": (lambda p: None, set()),
    "the machine": (another_machine, set()),
    "the order of the rows": (lambda p: p.write_ideas(IDEAS[::-1]), set()),
    "the chunk size": (lambda p: p.set(teacher__chunk_rows=3), set()),
    "who ran the teacher": (another_engine, set()),
    "spaces in the code": (lambda p: p.edit_code(with_spaces, *CODE), set()),
    "a comment in the code": (lambda p: p.edit_code(with_comment, *CODE), set()),
    "code that changes no row": (lambda p: p.edit_code(with_another_constant, "corpus.py", "dataset.py", "student/training.py"), set()),
    "the label of a task": (lambda p: p.edit_task(another_label), set()),
    "the seed of the teacher's sampler, where the texts are the same": (lambda p: p.set(teacher__seed=8), set()),
    "an example pair": (lambda p: p.edit_task(another_example), {"teacher_corpus", *DATA}),
    "the temperature of the teacher": (lambda p: p.set(teacher__temperature=0.9), {"teacher_corpus", *DATA}),
    "the share of an idea's split": (lambda p: p.set(intents__test=0.5), {"intents", *DATA}),
    "an idea": (lambda p: p.write_ideas([*IDEAS[:-1], "desert roads"]), ALL),
    "a reward weight": (lambda p: p.set(rewards__weights__repetition=0.9), DATA),
    "a bin edge": (lambda p: p.set(commands__quality_bins=6), DATA),
    "the scorer": (lambda p: p.set(rewards__scorer__sha256="0" * 64), DATA),
    "the seed of the training": (lambda p: p.set(student__seed=12), {"student/udrl", "evaluation_report"}),
    "the seed of the evaluation": (lambda p: p.set(evaluation__seed=6), {"student/udrl", "evaluation_report"}),
    # it says that it was measured with other code
    "the code of the evaluation": (lambda p: p.edit_code(with_another_constant, "evaluation/report.py"), {"evaluation_report"}),
}


@pytest.mark.parametrize("changed", OTHERS)
def test_a_version_changes_with_its_content_alone(
    made: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    small_params(tmp_path)
    project = Project(tmp_path, monkeypatch).prepare()
    change, expected = OTHERS[changed]
    change(project)
    versions = {asset: version.version for asset, version in project.run().items()}
    assert {asset for asset in versions if versions[asset] != made[1][asset]} == expected
    assert versions.keys() == ALL
