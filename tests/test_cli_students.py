"""`udrl students`: lists at 80 columns, records what a user says with the reason, and refuses what has none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from test_promotion import SETTINGS, UDRL, Store
from udrl_pipeline.cli import main
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace

pytestmark = pytest.mark.usefixtures("kept_open")


@pytest.fixture
def store(load: Callable[..., Settings]) -> Store:
    """Two students with names as long as they are: the first is in use, the gate has refused the second."""
    store = Store(Workspace(load(SETTINGS), run_id="run-1"))
    store.student("a" * 16)
    store.report()
    store.run()
    store.student("b" * 16)
    store.report(low=0.9)
    store.run()
    return store


@pytest.fixture
def students(store: Store, params: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(params.parent)
    return lambda *arguments: CliRunner(env={"COLUMNS": "80"}).invoke(main, ["students", *arguments], catch_exceptions=False)


def test_the_list_reads_well_at_80_columns(students: Callable[..., Result], store: Store) -> None:
    store.student("c" * 16, "student/reward-weighted")
    lines = students("list").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0::4] for line in lines if line.startswith("student/")] == [
        [UDRL, "refused"], [UDRL, "current"], ["student/reward-weighted", "candidate"],
    ]  # fmt: skip
    report = store.workspace.current("evaluation_report")
    assert report
    assert lines[1:3] == ["  from     labeled_dataset d", f"  reward   1.200, relevance 0.800, report {report.version}"]
    assert "not within the margin" in " ".join(lines[3:6])
    assert lines[-1] == "  why      not judged yet"


def test_the_list_is_also_json(students: Callable[..., Result]) -> None:
    told = json.loads(students("list", "udrl", "--json").stdout)
    assert [(s["version"][0], s["state"], s["by"], s["made_from"], s["reward"]) for s in told] == [
        ("b", "refused", "gate", {"labeled_dataset": "d"}, 1.2), ("a", "current", "gate", {"labeled_dataset": "d"}, 1.2),
    ]  # fmt: skip


def test_a_user_promotes_by_place_and_rolls_back_both_with_a_reason(students: Callable[..., Result], store: Store) -> None:
    result = students("promote", UDRL, "--reason", "people like it")
    assert (result.exit_code, result.stdout) == (0, f"{UDRL} {'b' * 16} is in use from now on, in place of {'a' * 16}\n")
    assert students("rollback", "--reason", "they do not").stdout == f"{UDRL} {'a' * 16} is in use from now on, in place of {'b' * 16}\n"
    told = json.loads(students("promote", f"{UDRL}~0", "--reason", "or do they", "--json").stdout)
    assert (told["version"], told["action"], told["by"], told["reason"]) == ("b" * 16, "promoted", "user", "or do they")
    assert [e.reason for e in store.workspace.promotions()][2:] == ["people like it", "they do not", "or do they"]


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (("promote", "b"), "a reason is needed", "--reason TEXT"),
        (("rollback", "--reason", "  "), "a reason is needed", "--reason TEXT"),
        (("promote", "x", "--reason", "y"), "there is no version 'x'", "udrl audit versions"),
        (("promote", f"{UDRL}~1", "--reason", "y"), "is in use already", "udrl students list"),
        (("promote", "evaluation_report", "--reason", "y"), "is no student", "udrl students list"),
        (("rollback", "--reason", "y"), "no student of recipe udrl was in use before", "udrl students promote"),
        (("list", "sft"), "there is no student of recipe 'sft'", "recipes with students: udrl"),
    ],
)
def test_what_cannot_be_done_is_an_error_with_its_remedy(
    students: Callable[..., Result], store: Store, arguments: tuple[str, ...], what: str, remedy: str
) -> None:
    before = store.told()
    result = students(*arguments)
    told = " ".join(result.stderr.split())
    assert (result.exit_code, result.stdout, store.told()) == (2, "", before)
    assert what in told
    assert remedy in told.partition("->")[2]


def test_a_damaged_report_is_an_error_and_no_traceback(students: Callable[..., Result], store: Store) -> None:
    report = store.workspace.current("evaluation_report")
    assert report
    (store.workspace.version_folder(report.asset, report.version) / "metrics.json").write_text("{", encoding="utf-8")
    result = students("list")
    assert result.exit_code == 2
    assert "metrics.json: is not valid JSON" in " ".join(result.stderr.split())
    assert "udrl audit verify" in " ".join(result.stderr.split())


def test_the_audit_tells_what_was_decided_about_a_student(students: Callable[..., Result], store: Store) -> None:
    def audit(*arguments: str) -> str:
        return CliRunner().invoke(main, ["audit", *arguments], catch_exceptions=False).stdout

    assert [line for line in audit("versions", UDRL).splitlines() if "state" in line] == ["  state    refused", "  state    in use"]
    report = store.workspace.current("evaluation_report")
    assert report
    told = json.loads(audit("trace", f"{UDRL}~1", "--json"))["down"]
    assert [(d["action"], d["version"], d["in_use"]) for d in told["decisions"]] == [("promoted", "a" * 16, "a" * 16)]
    assert report.version in [node["version"] for node in told["next"]]  # the report compares the newest one with it
    assert "refused bbbbbbbbbbbbbbbb by gate" in audit("trace", UDRL)


def test_the_list_of_an_empty_store_says_what_trains_one(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(params.parent)
    assert CliRunner().invoke(main, ["students", "list"]).stdout == "no student yet: `udrl run` trains one\n"
