"""`student_export/<recipe>`: published only if it is the same student; found again when nothing changed; used where it is there."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from test_student_fast import SPACE, save_student
from test_student_initialise import TINY
from udrl_pipeline import rewards
from udrl_pipeline.audit.pending import outlook
from udrl_pipeline.errors import CorruptArtifact, StudentError
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import export, graph
from udrl_pipeline.student.decoding import Guidance
from udrl_pipeline.student.engines import engine_folder, export_of, load_student
from udrl_pipeline.student.fast import FastStudent
from udrl_pipeline.student.generation import Generated

ASSET, STUDENT = "student_export/udrl", "student/udrl"
OPTIONS = {**TINY, "student.init_from": "scratch", "export.max_length_change": 1.0, "export.max_reward_loss": 1.0}


class Scorer:
    """A scorer that finds longer texts more relevant."""

    def __init__(self, settings: Settings) -> None: ...

    def relevance(self, intents: list[str], texts: list[str]) -> Any:
        return np.array([min(1.0, len(text) / 200) for text in texts])


@pytest.fixture(scope="module")
def student_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from conftest import small_params
    from udrl_pipeline.settings import load

    settings = load(small_params(tmp_path_factory.mktemp("params")), preset="", overrides=OPTIONS)
    return {kind: save_student(kind, settings, tmp_path_factory.mktemp(kind)) for kind in ("gpt2", "llama")}


@pytest.fixture
def workspace(load: Callable[..., Settings], student_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A store with a dataset and a student of it that nobody has trained."""
    monkeypatch.setattr(rewards, "Scorer", Scorer)
    made = Workspace(load(OPTIONS), run_id="run-1")
    intents = [f"{animal} in {place}" for animal in ("red fox", "owl", "heron") for place in ("snow", "fog", "a garden")]
    rows = pd.DataFrame([(t, intent, intent, f"{t}{intent}", 9) for t in SPACE.tasks for intent in intents], columns=[
        "task", "intent", "intent_key", "row_key", "words",
    ])  # fmt: skip
    rows["split"] = ["train" if n % 3 == 0 else "validation" for n in range(len(rows))]
    made.record(
        "labeled_dataset", version="d1", fingerprint="d", code_version="c", rows=len(rows), params={}, parents={}, facts={},
        write=lambda folder: rows.to_parquet(folder / "rows.parquet"),
    )  # fmt: skip
    put_student(made, student_files["gpt2"], "s1")
    return made


def put_student(workspace: Workspace, files: Path, version: str) -> Version:
    return workspace.record(
        STUDENT, version=version, fingerprint=version, code_version="c", rows=1, params={}, parents={"labeled_dataset": "d1"}, facts={},
        write=lambda folder: export._copy(files, folder),
    )  # fmt: skip


def checks(workspace: Workspace, made: Version) -> dict[str, tuple[bool, bool]]:
    return {e.name: (e.passed, e.blocking) for e in workspace.expectations(made.asset, made.version)}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_export_is_a_version_with_its_student_as_parent_and_the_proof_that_it_is_the_same(
    workspace: Workspace, student_files: dict[str, Path], kind: str
) -> None:
    put_student(workspace, student_files[kind], f"of-{kind}")
    made = export.build(workspace, "udrl")
    assert (made.verdict, made.parents, made.facts["weights"]) == ("PASS", {STUDENT: f"of-{kind}"}, "int8")
    assert checks(workspace, made) == {
        "architecture_is_known": (True, False), "same_greedy_tokens": (True, True), "same_quality": (True, True),
    }  # fmt: skip
    assert made.facts["parity"]["prompts"] == made.facts["change"]["texts"] == 12
    assert (made.facts["parity"]["different"], made.facts["parity"]["ties"]) == (0, 0)
    assert made.facts["parity"]["tokens"] > 100
    folder = workspace.version_folder(ASSET, made.version)
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx", "export.json", "tokenizer.json", "recipe.json", "commands.json", "manifest.json",
    }  # fmt: skip
    assert type(load_student(folder)) is FastStudent
    assert not (workspace.folder / ".work" / ASSET).exists()


def test_what_is_unchanged_is_not_made_again_and_the_same_inputs_make_the_same_version(
    workspace: Workspace, load: Callable[..., Settings]
) -> None:
    first = export.build(workspace, "udrl")
    assert export.build(workspace, "udrl").made_now is False
    stricter = export.build(Workspace(load({**OPTIONS, "export.parity_prompts": 2})), "udrl")
    assert (stricter.version, stricter.made_now, stricter.facts["parity"]["prompts"]) == (first.version, True, 2)


def test_what_a_killed_export_left_of_its_work_is_removed_by_the_next_run(workspace: Workspace) -> None:
    made = export.build(workspace, "udrl")
    (workspace.scratch_folder(ASSET, made.fingerprint) / "exact").touch()
    assert export.build(workspace, "udrl").made_now is False
    assert not (workspace.folder / ".work" / ASSET).exists()


@pytest.mark.parametrize("exported", [False, True])
def test_whoever_asks_what_a_run_would_make_leaves_the_work_of_one_that_is_under_way(workspace: Workspace, exported: bool) -> None:
    if exported:
        export.build(workspace, "udrl")
    half = workspace.scratch_folder(ASSET, "under way") / "model.onnx"
    half.touch()
    told = outlook(workspace, {ASSET: partial(export.build, recipe_name="udrl")})
    assert (half.exists(), told) == (True, {} if exported else {ASSET: "has no version yet"})


def test_in_fp32_it_is_the_exact_graph_and_nothing_is_compared(workspace: Workspace, load: Callable[..., Settings]) -> None:
    made = export.build(Workspace(load({**OPTIONS, "export.weights": "fp32"})), "udrl")
    assert (made.facts["weights"], made.facts["change"]) == ("fp32", {"texts": 0})
    assert json.loads((workspace.version_folder(ASSET, made.version) / "export.json").read_text())["weights"] == "fp32"
    assert checks(workspace, made)["same_quality"] == (True, True)


def test_a_graph_that_writes_other_tokens_is_not_published(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = graph.to_onnx

    def wrong(model: Any, block: int | None = None) -> Any:
        import copy

        model = copy.deepcopy(model)
        model.transformer.h[1].mlp.c_proj.weight.data.mul_(0.9)
        return whole(model, block)

    monkeypatch.setattr(graph, "to_onnx", wrong)
    made = export.build(workspace, "udrl")
    assert (made.verdict, checks(workspace, made)["same_greedy_tokens"]) == ("FAIL", (False, True))
    assert workspace.current(ASSET) is None
    [observed] = [e.observed for e in workspace.expectations(ASSET, made.version) if e.name == "same_greedy_tokens"]
    assert observed["different"] > 0
    assert observed["first"][0].startswith(("image, ", "search, "))
    student = workspace.find(STUDENT, "s1")
    assert student is not None
    assert engine_folder(workspace, student, "auto") == workspace.version_folder(STUDENT, "s1")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reward_fp32": 1.2, "reward_int8": 1.18, "words_fp32": 10.0, "words_int8": 10.4}, []),
        ({"reward_fp32": 1.2, "reward_int8": 1.3, "words_fp32": 10.0, "words_int8": 10.0}, []),
        ({"reward_fp32": 1.2, "reward_int8": 1.1, "words_fp32": 10.0, "words_int8": 10.0}, ["the mean reward fell by 0.100"]),
        ({"reward_fp32": 1.2, "reward_int8": 1.2, "words_fp32": 10.0, "words_int8": 9.0}, ["the mean length changed by -10.0%"]),
    ],
)
def test_int8_may_not_lose_more_than_the_settings_allow(change: dict[str, float], told: list[str]) -> None:
    found = export.quality_faults({"texts": 300, **change}, 0.03, 0.05)
    assert [fault.partition(", more than export.")[0] for fault in found] == told


def test_an_export_that_loses_quality_is_not_published(
    workspace: Workspace, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {"texts": 9, "reward_fp32": 1.0, "reward_int8": 0.5, "words_fp32": 9.0, "words_int8": 9.0}
    monkeypatch.setattr(export, "quality_change", lambda *_: lost)
    made = export.build(Workspace(load({**OPTIONS, "export.max_reward_loss": 0.1})), "udrl")
    assert (made.verdict, checks(workspace, made)["same_quality"]) == ("FAIL", (False, True))


def test_a_token_that_is_a_tie_for_transformers_counts_as_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def generate(self, commands: list[Any], **_: Any) -> list[Generated]:
            return [Generated(command, Guidance(), f"text {n}", 2, 3, True, (), (4, 5, n)) for n, command in enumerate(commands)]

    gaps = [[0.0, 0.0, 0.0], [0.0, 5e-4, 0.0], [0.0, 2e-3, 7.0]]
    monkeypatch.setattr(export, "lost_to_the_likeliest", lambda *_: gaps)
    from udrl_pipeline.commands import Command

    found = export.parity(Same(), Same(), [Command("image", "fox")] * 3, 1.0)  # type: ignore[arg-type]
    assert found == {"prompts": 3, "tokens": 9, "ties": 1, "different": 1, "first": ["image, 'fox': token 2 of 'text 2'"]}


def test_a_student_of_an_unknown_architecture_is_published_as_not_exported(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "refusal", lambda config: "models of its type are not supported")
    made = export.build(workspace, "udrl")
    assert (made.verdict, made.facts) == ("PASS", {"exported": False, "reason": "models of its type are not supported"})
    assert checks(workspace, made) == {"architecture_is_known": (False, False)}
    student = workspace.find(STUDENT, "s1")
    assert student is not None
    assert export_of(workspace, student) is None
    assert engine_folder(workspace, student, "auto") == workspace.version_folder(STUDENT, "s1")


def test_the_export_of_just_this_student_is_used_and_a_damaged_one_is_told(workspace: Workspace, student_files: dict[str, Path]) -> None:
    made = export.build(workspace, "udrl")
    first, second = workspace.find(STUDENT, "s1"), put_student(workspace, student_files["llama"], "s2")
    assert first is not None
    folder = workspace.version_folder(ASSET, made.version)
    assert [engine_folder(workspace, first, engine) for engine in ("auto", "export")] == [folder, folder]
    assert engine_folder(workspace, first, "transformers") == workspace.version_folder(STUDENT, "s1")
    assert engine_folder(workspace, second, "auto") == workspace.version_folder(STUDENT, "s2")
    with pytest.raises(StudentError, match=r"there is no export of student/udrl s2\n  -> run `udrl run --select student_export/udrl`"):
        engine_folder(workspace, second, "export")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CorruptArtifact, match=r"model.onnx \(changed\)"):
        engine_folder(workspace, first, "auto")
