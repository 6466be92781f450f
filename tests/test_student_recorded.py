"""Starting from the student that ships with the package: a tiny one, exported by this very code, in place of the real one."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from conftest import FakeEngine, small_params
from test_student_training import TINY, labelled
from udrl_pipeline import settings as settings_module
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.forget import forget_intent
from udrl_pipeline.audit.lineage import origin
from udrl_pipeline.errors import CorruptArtifact, StudentError
from udrl_pipeline.evaluation.report import current_students
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import recorded, training

FROM_RECORDED = {**TINY, "student.init_from": "recorded", "intents.builtin": 30}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Version]:
    """What a maintainer exports, and the version that it was."""
    folder = tmp_path_factory.mktemp("maintainer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udrl_pipeline.corpus.open_engine", lambda *_, **__: FakeEngine())
        workspace = labelled(settings_module.load(small_params(folder), preset="", overrides=TINY))
        made = training.build(workspace, "udrl")
    recorded.export(workspace, made, Book(workspace).ancestors(made), folder / "package" / "student")
    return folder / "package", made


@pytest.fixture
def package(shipped: tuple[Path, Version], monkeypatch: pytest.MonkeyPatch) -> Version:
    monkeypatch.setattr(recorded, "recorded_folder", lambda: shipped[0])
    return shipped[1]


@pytest.fixture
def workspace(package: Version, load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine]) -> Workspace:
    use_engine(FakeEngine())
    return labelled(load(FROM_RECORDED))


def test_a_student_starts_from_the_shipped_one_and_its_lineage_says_so(workspace: Workspace, package: Version) -> None:
    made = training.build(workspace, "udrl")
    assert made.facts["start"] == {"init_from": "recorded", "version": package.version, "new_tokens": 0}
    assert made.parents == {**workspace.parents("labeled_dataset"), "student/recorded": package.version}
    adopted = workspace.find("student/recorded", package.version)
    assert adopted is not None
    assert (adopted.params, adopted.code_version, adopted.rows) == (package.params, package.code_version, package.rows)
    assert [ancestor["asset"] for ancestor in adopted.facts["ancestors"]] == ["intents", "teacher_corpus", "labeled_dataset"]
    assert origin(adopted)["trained elsewhere on"]["labeled_dataset"] == package.parents["labeled_dataset"]
    workspace.check_files("student/recorded", package.version)


def test_it_is_a_start_and_not_a_student_of_the_report(workspace: Workspace) -> None:
    training.build(workspace, "udrl")
    assert list(current_students(workspace)) == ["udrl"]


def test_the_same_start_is_entered_once_and_trains_once(workspace: Workspace) -> None:
    first, again = training.build(workspace, "udrl"), training.build(workspace, "udrl")
    training.build(workspace, "sft")
    assert (again.version, again.made_now) == (first.version, False)
    assert [made.asset for made in workspace.ledger()].count("student/recorded") == 1


def test_a_start_that_knows_a_held_out_intent_is_refused(
    package: Version, load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine]
) -> None:
    use_engine(FakeEngine())
    leaky = labelled(load({**FROM_RECORDED, "intents.test": 0.4}))
    with pytest.raises(StudentError, match=r"of the .* intents held out here, such as") as error:
        training.build(leaky, "udrl")
    assert "intents.validation and intents.test" in str(error.value)
    assert leaky.current("student/udrl") is None


def test_a_start_that_has_read_what_was_forgotten_is_refused(workspace: Workspace) -> None:
    rows = pd.read_parquet(
        workspace.version_folder("labeled_dataset", workspace.parents("labeled_dataset")["labeled_dataset"]) / "rows.parquet"
    )
    forget_intent(workspace, rows[rows.split == "train"].intent.iloc[0], "asked to")
    with pytest.raises(StudentError, match="has learned from rows that were forgotten since"):
        recorded.adopt(workspace, rows)


def test_a_start_whose_bytes_changed_is_refused(workspace: Workspace, shipped: tuple[Path, Version]) -> None:
    file = shipped[0] / "student" / "loss.json"
    kept = file.read_bytes()
    file.write_bytes(b"[]")
    try:
        with pytest.raises(CorruptArtifact, match=r"files differ from the manifest: loss\.json"):
            training.build(workspace, "udrl")
    finally:
        file.write_bytes(kept)


def test_a_package_without_a_student_says_what_to_set_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "recorded_folder", lambda: tmp_path)
    with pytest.raises(StudentError, match=r"(?s)this package ships no student.*pruned-teacher"):
        recorded.manifest()


def test_what_ships_names_every_ancestor_and_every_intent_read(shipped: tuple[Path, Version]) -> None:
    folder, made = shipped[0] / "student", shipped[1]
    read = pd.read_parquet(folder / recorded.TRAINED_ON).intent_key.tolist()
    assert read == sorted(set(read))
    ancestors = {a["asset"]: a for a in json.loads((folder / recorded.ANCESTORS).read_text(encoding="utf-8"))}
    assert {asset: a["version"] for asset, a in ancestors.items() if asset == "labeled_dataset"} == made.parents
    assert ancestors["teacher_corpus"]["params"]["source"]
