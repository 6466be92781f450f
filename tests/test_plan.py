"""`udrl plan`: what rows cost on paper. `python tests/test_plan.py` renews the tables of docs/scale.md."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline import plan as planning
from udrl_pipeline import settings as settings_module
from udrl_pipeline.cli import main
from udrl_pipeline.errors import PlanError
from udrl_pipeline.intents import builtin
from udrl_pipeline.plan import MEASURED, Limit, Machine, Plan, make_plan

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "docs/results"
PAGE = REPOSITORY / "docs/scale.md"
#: What stands in docs/scale.md between this line and the end of the block.
COMMAND = "    $ udrl plan\n"


def plan_of(machine: Machine | None = None, **overrides: Any) -> Plan:
    settings = settings_module.load(
        REPOSITORY / "params.yaml", preset="", overrides={k.replace("__", "."): v for k, v in overrides.items()}
    )
    return make_plan(settings, machine or Machine())


def udrl(*arguments: object) -> Result:
    chosen = ["plan", *map(str, arguments), "--params", str(REPOSITORY / "params.yaml"), "--preset", ""]
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, chosen, catch_exceptions=False)


def tables() -> str:
    """What docs/scale.md shows of the command: its output, indented as a block, without spaces at the ends."""
    told = udrl()
    assert told.exit_code == 0, told.output
    return re.sub(r"\n{3,}", "\n\n", "".join(f"    {line}".rstrip() + "\n" for line in told.stdout.splitlines()))


@pytest.fixture(scope="module")
def usual() -> Plan:
    return plan_of()


def part(plan: Plan, step: str, name: str) -> planning.Part:
    return next(part for part in plan.parts if (part.step, part.name) == (step, name))


# -- costs -------------------------------------------------------------------------------------------------------------


def test_a_million_rows_cost_what_was_measured_of_one_a_million_times(usual: Plan) -> None:
    found = usual.as_dict([])["per_million"]
    sequences = 0.7704 * 0.9 * 0.75 * 1e6  # kept rows of the training split, in three quarters of an epoch; two students are trained
    assert usual.rows_now == 4320 * 3 * 2
    assert {step: (costs["hours"], costs["tokens"], costs["bytes"]) for step, costs in found["steps"].items()} == {
        "intents": (round(41.76 / 6 / 3600, 4), 0, 0),
        "teacher_corpus": (round((31.36e6 / 171.88 + 457.27) / 3600, 4), 31_360_000, 381_960_000 + 75_670_000),
        "labeled_dataset": (round((13_501.28 + 34.54 + 0.35) / 3600, 4), 0, round(0.7704 * 75_670_000)),
        "student": (
            round((2 * sequences * (30.8 / 2230 + 617.36e-6) + 125) / 3600, 4),
            round(2 * sequences * 30.8),
            11_599_360 * (2 * 2 + 12),
        ),
        "evaluation_report": (round(225.9 / 3600, 4), 0, 406_443),
        "student_export": (round(21.1 / 3600, 4), 0, 17_700_000),
    }
    assert found["memory_bytes"] == 4_825_000_000


@given(rows=st.floats(1, 1e12), times=st.floats(1, 1e3))
def test_more_rows_never_cost_less_and_what_grows_does_so_in_proportion(usual: Plan, rows: float, times: float) -> None:
    for part in usual.parts:
        once, few, many = part.costs(0), part.costs(rows), part.costs(rows * times)
        assert all(once[name] <= few[name] <= many[name] for name in few)
        assert {name: many[name] - once[name] for name in few} == pytest.approx(
            {name: times * (few[name] - once[name]) for name in few}, rel=1e-6, abs=1e-6
        )
    assert usual.met(rows) == usual.met(rows * times)[: len(usual.met(rows))]


def test_gpus_share_the_teachers_hours_and_nobody_elses(usual: Plan) -> None:
    many = plan_of(Machine(teacher_tokens_per_s=1000, gpus=8))
    assert part(many, "teacher_corpus", "teacher").costs(1e6)["hours"] == pytest.approx(31.36e6 / 8000 / 3600)
    assert [p for p in many.parts if p.name != "teacher"] == [p for p in usual.parts if p.name != "teacher"]


def test_rates_of_the_machine_take_the_place_of_the_measured_ones() -> None:
    plan = plan_of(Machine(training_tokens_per_s=30.8e6, scored_rows_per_s=1e6, versions=3))
    assert part(plan, "student", "training").seconds_per_row == pytest.approx(2 * 0.7704 * 0.9 * 0.75 / 1e6)
    assert part(plan, "labeled_dataset", "scorer").seconds_per_row == 1e-6
    assert part(plan, "teacher_corpus", "Parquet").bytes_per_row == pytest.approx(3 * 75.67)


def test_longer_texts_cost_tokens_and_samples_are_compared_in_pairs(usual: Plan) -> None:
    longer = plan_of(teacher__asked_words=[27, 28], teacher__samples=101)
    assert longer.costs(1e6)["tokens"] - usual.costs(1e6)["tokens"] == pytest.approx(31.36e6 * (27.5 / (95 / 7) - 1))
    assert part(longer, "labeled_dataset", "near duplicates").seconds_per_row == pytest.approx(50 * 0.7e-6)
    assert longer.limits[1] == Limit("ideas: those of the package", 11_440 * 3 * 101, "intents.sources", "files with ideas of your own")


def test_a_training_that_is_cut_grows_no_further() -> None:
    plan = plan_of(student__max_steps=1000)
    training = part(plan, "student", "training")
    assert training.costs(1e9) == training.costs(1e8)
    assert training.costs(1e9)["tokens"] == pytest.approx(2 * 1000 * 32 * 30.8)
    assert not [limit for limit in plan.limits if limit.name.endswith("training")]


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_limit_lies_where_its_part_takes_all_that_there_is(usual: Plan) -> None:
    parts = {(p.step, p.name): p for p in usual.parts}
    for limit in usual.limits[1:]:
        bound, _, who = limit.name.partition(": ")
        step, name = who.split(", ")
        costs = parts[step, name].costs(limit.rows)
        assert (costs["hours"] if bound == "7 days" else costs["memory_bytes"]) == pytest.approx(7 * 24 if bound == "7 days" else 24e9)
    assert [limit.rows for limit in usual.limits] == sorted(limit.rows for limit in usual.limits)


def test_what_gives_way_first_and_what_has_no_setting_yet(usual: Plan) -> None:
    assert usual.limits[0] == Limit("ideas: those of the package", 68_640, "intents.sources", "files with ideas of your own")
    assert [(limit.name, limit.setting) for limit in usual.met(1e8)[1:]] == [
        ("7 days: teacher_corpus, teacher", "teacher.cluster: ray"),
        ("24 GB: teacher_corpus, rows", None),
        ("24 GB: labeled_dataset, labels", None),
        ("24 GB: student, sequences", "student.epochs"),
        ("7 days: student, training", "student.processes"),
        ("7 days: labeled_dataset, scorer", "rewards.cluster: ray"),
    ]
    following = usual.next(1e8)
    assert following
    assert following.name == "7 days: student, sequences"
    assert usual.met(68_640) == ()


def test_the_package_has_as_many_ideas_as_the_plan_says() -> None:
    asked = settings_module.load(REPOSITORY / "params.yaml", preset="").intents.model_copy(update={"builtin": 10**9})
    assert len(builtin(asked)) == planning.BUILTIN_IDEAS


def test_with_gpus_memory_gives_way_before_the_teacher() -> None:
    plan = plan_of(Machine(teacher_tokens_per_s=10_000, gpus=8, memory_gb=240))
    names = ["7 days: student, training", "7 days: labeled_dataset, scorer", "240 GB: teacher_corpus, rows"]
    assert [limit.name for limit in plan.met(1e8)][1:4] == names
    assert next(limit.rows for limit in plan.limits if limit.name == "240 GB: teacher_corpus, rows") == pytest.approx(240e9 / 4825)


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--gpus", 4), ("--gpus: no GPU was measured here", "--teacher-tokens-per-s")),
        (("--gpus", 0, "--teacher-tokens-per-s", 5), ("--gpus: 0 is not above 0",)),
        (("--teacher-tokens-per-s", "nan"), ("--teacher-tokens-per-s: nan is not above 0, or not finite",)),
        (("--training-tokens-per-s", -1), ("--training-tokens-per-s: -1 is not above 0",)),
        (("--scored-rows-per-s", "inf"), ("--scored-rows-per-s: inf is not above 0, or not finite",)),
        (("--memory-gb", 0), ("--memory-gb: 0 is not above 0",)),
        (("--days", 0), ("--days: 0 is not above 0",)),
        (("--versions", 0), ("--versions: 0 is not above 0",)),
        (("--rows", 0), ("--rows: 0 is no number of rows", "give one from 1 to 1e+15")),
        (("--rows", "nan"), ("--rows: nan is no number of rows",)),
        (("--rows", "many"), ("'many' is not a valid float",)),
        (("--set", "teacher.engine=transformers"), ("only the default teacher with vllm was measured", "--teacher-tokens-per-s")),
        (("--set", "teacher.model.sha256=null"), ("only the default teacher with vllm was measured",)),
        (("--set", "student.init_from=scratch"), ("only the default student was measured", "--training-tokens-per-s")),
        (("--set", "student.init_from=pruned-teacher"), ("only the default student was measured",)),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(arguments: tuple[object, ...], told: tuple[str, ...]) -> None:
    result = udrl(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(text in result.stderr for text in told)


def test_another_student_has_a_rate_of_its_own_and_no_known_size() -> None:
    plan = plan_of(Machine(training_tokens_per_s=500), student__init_from="scratch")
    assert plan.costs(1e6, "student_export")["bytes"] == 0
    assert plan.costs(1e6, "student")["bytes"] == 0
    with pytest.raises(PlanError, match="only the default student"):
        plan_of(student__optimiser="muon")


# -- the command, the page and what they rest on -----------------------------------------------------------------------


def test_json_tells_the_same_as_the_plan() -> None:
    result = udrl("--rows", "1e7", "--rows", "5e5", "--memory-gb", 64, "--json")
    machine = Machine(memory_gb=64)
    assert json.loads(result.stdout) == {
        "machine": {name: getattr(machine, name) for name in machine.__dataclass_fields__},
        **json.loads(json.dumps(plan_of(machine).as_dict([5e5, 1e7]))),
    }


def test_the_page_shows_what_the_command_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert tables() in page, "renew it: python tests/test_plan.py"


def test_the_rates_are_those_of_the_results() -> None:
    def read(name: str) -> Any:
        return json.loads((RESULTS / name).read_text(encoding="utf-8"))

    scale, teacher, ledger, assets = read("scale.json")["measures"], read("teacher.json")["asset"], read("ledger.json"), read("assets.json")
    corpus = scale["teacher_corpus without teacher"]
    store, publish = ledger["store"], ledger["measures"]["publish"]
    sequences = scale["training sequences"]
    expected = replace(
        MEASURED,
        idea_us=scale["intents, ideas"]["us_each"], corpus_us=corpus["us_each"], corpus_memory=corpus["bytes_each"],
        score_us=scale["scoring"]["us_each"], pair_us=scale["near duplicates, pairs"]["us_each"],
        sequence_us=sequences["us_each"], sequence_memory=sequences["bytes_each"],
        teacher_tokens_per_s=teacher["tokens_per_s"], tokens_per_row=teacher["tokens"] / teacher["rows"],
        label_us=publish["seconds"] / store["rows"] * 1e6, label_memory=publish["peak_mb"] * 2**20 / store["rows"],
        duckdb_bytes=store["bytes_of_ledger"] / store["rows"], parquet_bytes=store["bytes_of_versions"] / store["rows_in_snapshots"],
        kept=assets["labeled_dataset"]["rows"] / assets["teacher_corpus"]["rows"],
        report_s=assets["evaluation_report"]["seconds"],
        report_bytes=sum((RESULTS / "default" / name).stat().st_size for name in ("report.html", "metrics.json")),
        parameters=read("default/metrics.json")["sizes"]["udrl"]["parameters"],
    )  # fmt: skip
    fields = MEASURED.__dataclass_fields__
    assert {name: getattr(MEASURED, name) for name in fields} == pytest.approx({name: getattr(expected, name) for name in fields}, rel=1e-3)


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(re.escape(COMMAND) + r"(?:    .*\n|\n(?=    ))*", lambda _: COMMAND + tables(), before), encoding="utf-8")
