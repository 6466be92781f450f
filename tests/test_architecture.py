"""The floors: the library works without Dagster, and loading the definitions loads nothing heavy."""

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
HEAVY = {
    "torch", "transformers", "vllm", "sentence_transformers", "great_expectations", "evaluate", "datasets", "matplotlib", "scipy",
}  # fmt: skip
LOADS_WITHIN_S = 3.0


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_nothing_in_the_library_imports_dagster_or_the_assets() -> None:
    guilty = {
        f"{file.relative_to(REPOSITORY)}: {name}"
        for file in (REPOSITORY / "udrl_pipeline").rglob("*.py")
        for name in imported(ast.parse(file.read_text(encoding="utf-8")))
        if name.split(".")[0] in ("dagster", "dagster_shared", "assets")
    }
    assert guilty == set()


def loaded_by(module: str) -> tuple[set[str], float]:
    """The packages that importing a module loads in a fresh interpreter, and its processor seconds."""
    script = f"import {module}, json, sys, time; print(json.dumps([sorted({{n.split('.')[0] for n in sys.modules}}), time.process_time()]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names, seconds = json.loads(done.stdout)
    return set(names), seconds


def test_the_definitions_load_in_under_3_s_and_import_nothing_heavy() -> None:
    loaded_by("assets.definitions")  # writes the compiled files that a second load finds
    loads = [loaded_by("assets.definitions") for _ in range(3)]
    assert loads[0][0] & HEAVY == set()
    assert min(seconds for _, seconds in loads) < LOADS_WITHIN_S  # the others tell of what else the machine does


def test_the_command_answers_without_loading_what_it_does_not_need() -> None:
    names, seconds = loaded_by("udrl_pipeline.cli")
    assert names & {*HEAVY, "dagster", "pandas", "duckdb"} == set()
    assert seconds < 1.5


@pytest.mark.parametrize("folder", ["udrl_pipeline", "assets"])
def test_every_module_tells_what_it_is_for(folder: str) -> None:
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert [str(file.relative_to(REPOSITORY)) for file in files if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))] == []


def test_every_source_that_a_code_version_counts_exists() -> None:
    """And a package file that an asset's code needs is not forgotten when it moves."""
    from udrl_pipeline import corpus, dataset, promotion
    from udrl_pipeline.evaluation import report
    from udrl_pipeline.intents import asset
    from udrl_pipeline.student import export, training
    from udrl_pipeline.versioning import code_version

    for module in (asset, corpus, dataset, training, export, report, promotion):
        started = time.process_time()
        assert len(code_version(module.SOURCES)) == 12
        assert time.process_time() - started < 1


def test_a_question_to_the_ledger_loads_no_tables_library() -> None:
    names, _ = loaded_by("udrl_pipeline.cli_audit, udrl_pipeline.audit.history, udrl_pipeline.audit.impact, udrl_pipeline.audit.lineage")
    assert names & {*HEAVY, "pandas", "numpy", "pyarrow"} == set()
