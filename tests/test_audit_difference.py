"""`udrl audit diff`: what happened to each row, and why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from udrl_pipeline.audit.changes import Change
from udrl_pipeline.audit.difference import difference
from udrl_pipeline.cli import main
from udrl_pipeline.errors import CorruptArtifact, UdrlError
from udrl_pipeline.intents import asset as intents_asset
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace

pytestmark = pytest.mark.usefixtures("kept_open")

Load = Callable[..., Settings]

ROWS = pd.DataFrame(
    {
        "row_key": ["k1", "k2", "k3", "k4"],
        "task": ["image", "image", "search", "search"],
        "source": "teacher",
        "split": "train",
        "intent": ["fox", "owl", "tea", "fog"],
        "text": ["a fox", "an owl", "some tea", "thick fog"],
        "relevance": [0.5, 0.6, 0.7, 0.8],
        "reward": [0.9, 1.0, 1.1, 1.2],
        "quality": [1, 2, 1, 2],
    }
)


def record(workspace: Workspace, rows: pd.DataFrame, version: str, **more: Any) -> Version:
    given: dict[str, Any] = {
        "code_version": "code1",
        "params": {"rewards": {"gain": 0.4}},
        "parents": {"teacher_corpus": "c1"},
        "facts": {},
    }
    return workspace.record(
        "labeled_dataset", version=version, fingerprint=version, rows=len(rows),
        write=lambda folder: rows.to_parquet(folder / "rows.parquet"), **(given | more),
    )  # fmt: skip


def changed(**columns: Any) -> pd.DataFrame:
    """The rows with other values in the row of k2."""
    rows = ROWS.copy()
    for column, value in columns.items():
        rows.loc[1, column] = value
    return rows


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (changed(reward=0.2), {"relabelled": {("image", "teacher"): 1}}),
        (changed(quality=5), {"re-binned": {("image", "teacher"): 1}}),
        (changed(split="test"), {"moved": {("image", "teacher"): 1}}),
        (changed(text="an owl at dusk"), {"rewritten": {("image", "teacher"): 1}}),
        (changed(relevance=0.1, quality=5), {"relabelled": {("image", "teacher"): 1}, "re-binned": {("image", "teacher"): 1}}),
        (ROWS.drop(index=[2, 3]), {"removed": {("search", "teacher"): 2}}),
        (pd.concat([ROWS, ROWS.tail(1).assign(row_key="k5", source="student/udrl@1")]), {"added": {("search", "student/udrl@1"): 1}}),
        (ROWS[::-1], {}),
    ],
)
def test_every_row_is_counted_by_what_happened_to_it(workspace: Workspace, after: pd.DataFrame, what: dict[str, Any]) -> None:
    found = difference(workspace, record(workspace, ROWS, "v1"), record(workspace, after, "v2"))
    assert found.rows == what
    assert found.samples.keys() == what.keys()


def test_a_sample_shows_what_a_row_was_and_is(workspace: Workspace) -> None:
    found = difference(workspace, record(workspace, ROWS, "v1"), record(workspace, changed(quality=5), "v2"))
    assert found.samples == {
        "re-binned": [{"row_key": "k2", "intent": "owl", "text": "an owl", "quality_before": 2, "quality_after": 5}],
    }  # fmt: skip


def test_samples_are_the_first_rows_of_all_tasks_together(workspace: Workspace) -> None:
    more = pd.concat(
        [ROWS, *(ROWS.tail(1).assign(row_key=f"k{n}", task=task) for n, task in ((9, "image"), (8, "search"), (7, "image"), (6, "search")))]
    )
    found = difference(workspace, record(workspace, ROWS.tail(-1), "v1"), record(workspace, more.tail(-2), "v2"))
    assert found.rows == {"added": {("image", "teacher"): 2, ("search", "teacher"): 2}, "removed": {("image", "teacher"): 1}}
    assert found.samples == {
        "added": [{"row_key": key, "intent": "fog", "text": "thick fog"} for key in ("k6", "k7", "k8")],
        "removed": [{"row_key": "k2", "intent": "owl", "text": "an owl"}],
    }


def test_settings_code_and_parents_are_the_causes(workspace: Workspace) -> None:
    other = {"code_version": "code2", "params": {"rewards": {"gain": 0.6}}, "parents": {"teacher_corpus": "c2", "intents": "i1"}}
    found = difference(workspace, record(workspace, ROWS, "v1"), record(workspace, ROWS, "v2", **other))
    reasons = found.reasons
    assert reasons.settings == [Change("rewards.gain", 0.4, 0.6)]
    assert (reasons.code, reasons.parents) == (("code1", "code2"), {"teacher_corpus": ("c1", "c2"), "intents": (None, "i1")})
    assert found.causes() == [
        ("parent", "intents", "none -> i1"),
        ("parent", "teacher_corpus", "c1 -> c2"),
        ("setting", "rewards.gain", "0.4 -> 0.6"),
        ("code", "", "code1 -> code2"),
    ]


def test_a_student_differs_also_by_what_changed_in_the_rows_and_ideas_that_it_comes_from(workspace: Workspace) -> None:
    def bare(asset: str, version: str, parents: dict[str, str], **params: Any) -> Version:
        return workspace.record(
            asset, version=version, fingerprint=version, code_version="code1", rows=1, params=params, parents=parents, facts={},
            write=lambda _: None,
        )  # fmt: skip

    def lived(n: int, gain: float, sources: list[str], before: dict[str, str]) -> Version:
        bare("intents", f"i{n}", {}, sources=sources)
        bare("teacher_corpus", f"c{n}", {"intents": f"i{n}"})
        rows_from = {"teacher_corpus": f"c{n}", "intents": f"i{n}"}
        record(workspace, ROWS, f"d{n}", params={"rewards": {"gain": gain}}, parents=rows_from)
        return bare("student/udrl", f"s{n}", {"labeled_dataset": f"d{n}"} | before)

    lived(0, 0.1, ["old.csv"], {})
    first = lived(1, 0.4, ["a.csv"], {"student/udrl": "s0"})
    second = lived(2, 0.6, ["a.csv", "b.csv"], {"student/udrl": "s1"})
    found = difference(workspace, first, second)
    assert found.causes() == [
        ("parent", "labeled_dataset", "d1 -> d2"),
        ("parent", "student/udrl", "s0 -> s1"),
        ("parent of labeled_dataset", "intents", "i1 -> i2"),
        ("parent of labeled_dataset", "teacher_corpus", "c1 -> c2"),
        ("setting of labeled_dataset", "rewards.gain", "0.4 -> 0.6"),
        ("setting of intents", "sources", "[a.csv] -> [a.csv, b.csv]"),
        ("parent of teacher_corpus", "intents", "i1 -> i2"),
    ]
    assert found.as_dict()["behind"]["intents"] == {
        "before": "i1",
        "after": "i2",
        "settings": [{"name": "sources", "before": ["a.csv"], "after": ["a.csv", "b.csv"]}],
        "files": [],
        "code": None,
        "parents": {},
    }


def test_a_file_of_ideas_that_was_edited_is_a_cause_by_its_name_and_digests(load: Load, params: Path) -> None:
    workspace = Workspace(load({"intents.sources": ["own.csv"]}))
    made = []
    for content in ("intent\nred fox\n", "intent\nred fox\nblue fox\n"):
        (params.parent / "own.csv").write_text(content, encoding="utf-8")
        made.append(intents_asset.build(workspace))
    before, after = (version.facts["digests"]["own.csv"] for version in made)
    found = difference(workspace, *made)
    assert found.causes() == [("file", "own.csv", f"{before[:16]} -> {after[:16]}")]
    assert found.as_dict()["files"] == [{"name": "own.csv", "before": before, "after": after}]
    assert found.rows == {"added": {("image,template,search", "own.csv"): 1}}


def test_versions_of_two_assets_cannot_be_compared(workspace: Workspace) -> None:
    one = record(workspace, ROWS, "v1")
    other = workspace.record(
        "intents", version="i1", fingerprint="i1", code_version="c", rows=1, params={}, parents={}, facts={}, write=lambda _: None
    )
    with pytest.raises(UdrlError, match="cannot be compared"):
        difference(workspace, one, other)


def test_files_that_are_gone_are_a_typed_error(workspace: Workspace) -> None:
    one, two = record(workspace, ROWS, "v1"), record(workspace, changed(quality=5), "v2")
    (workspace.version_folder("labeled_dataset", "v1") / "rows.parquet").unlink()
    with pytest.raises(UdrlError, match="the files of labeled_dataset v1 are gone"):
        difference(workspace, one, two)


def test_a_table_that_cannot_be_read_is_a_typed_error_that_names_it(workspace: Workspace) -> None:
    one, two = record(workspace, ROWS, "v1"), record(workspace, changed(quality=5), "v2")
    file = workspace.version_folder("labeled_dataset", "v2") / "rows.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(CorruptArtifact, match=r"v2: files differ from the manifest: rows.parquet \(changed\)(.|\n)*udrl audit verify"):
        difference(workspace, one, two)


def test_an_asset_without_a_table_is_compared_by_its_figures(workspace: Workspace) -> None:
    made = [
        workspace.record(
            "student/udrl", version=f"s{loss}", fingerprint=f"s{loss}", code_version="c", rows=1, params={}, parents={},
            facts={"loss": loss, "start": {"init_from": "x"}}, write=lambda _: None,
        )
        for loss in (2.5, 2.4)
    ]  # fmt: skip
    found = difference(workspace, *made)
    assert (found.rows, found.facts, found.causes()) == ({}, [Change("loss", 2.5, 2.4)], [])


@pytest.fixture
def command(workspace: Workspace, params: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["audit", "diff", *arguments, "--params", str(params)])
        assert result.exit_code == 0, result.output
        return result.stdout

    record(workspace, ROWS, "v1")
    record(workspace, changed(quality=5), "v2", params={"rewards": {"gain": 0.6}})
    record(workspace, ROWS, "v3")
    return run


def test_the_command_tells_rows_and_causes(command: Callable[..., str]) -> None:
    told = " ".join(command("v1", "v2").split())
    assert "labeled_dataset v1 -> v2 (4 rows -> 4 rows)" in told
    assert "setting rewards.gain 0.4 -> 0.6" in told
    assert "re-binned image teacher 1" in told
    assert "quality_before=2 quality_after=5" in told
    assert "the same" in command("v1", "v3")


def test_the_command_gives_json(command: Callable[..., str]) -> None:
    found = json.loads(command("v1", "v2", "--json"))
    assert found["rows"] == {"re-binned": [{"task": "image", "source": "teacher", "rows": 1}]}
    assert found["settings"] == [{"name": "rewards.gain", "before": 0.4, "after": 0.6}]
