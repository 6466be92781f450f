"""A large table worked on by several processes: the same result, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udrl_pipeline import parts
from udrl_pipeline.parts import by_parts, workers


def numbered(part: pd.DataFrame) -> pd.DataFrame:
    """The place of each row among those of its idea: right only where all of them come together, in their order."""
    return pd.DataFrame({"place": part.groupby("idea").cumcount(), "text": part.text + "!"})


def who(part: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"process": os.getpid()}, index=part.index)


def fail(part: pd.DataFrame) -> pd.DataFrame:
    raise ValueError(f"idea {part.idea.iloc[0]} cannot be read")


def wait(part: pd.DataFrame) -> pd.DataFrame:
    time.sleep(600)
    return part


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_the_rows_of_an_idea_stay_together_and_the_result_is_in_the_order_of_the_table(ideas: list[int], size: int) -> None:
    frame = pd.DataFrame({"idea": ideas, "text": [str(n) for n in range(len(ideas))]}).astype({"text": str})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "PART_ROWS", size)
        pd.testing.assert_frame_equal(by_parts(frame, "idea", numbered, cores=1), numbered(frame), check_dtype=False)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setattr(parts, "PART_ROWS", 10)
    return pd.DataFrame({"idea": [n % 20 for n in range(60)], "text": "a"})


def test_a_large_table_is_shared_out_and_gives_the_same(many: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(by_parts(many, "idea", numbered, cores=2), numbered(many))
    processes = set(by_parts(many, "idea", who, cores=2).process)
    assert os.getpid() not in processes
    assert not any(psutil.pid_exists(process) for process in processes)


def test_this_process_may_do_something_meanwhile(many: pd.DataFrame) -> None:
    done: list[int] = []
    by_parts(many, "idea", numbered, cores=2, meanwhile=lambda: done.append(os.getpid()))
    assert done == [os.getpid()]


def test_processes_that_were_started_before_are_used_for_every_table_and_end_with_their_block(many: pd.DataFrame) -> None:
    with workers(len(many), cores=2) as pool:
        assert pool is not None
        found = [set(by_parts(many, "idea", who, cores=2, pool=pool).process) for _ in range(2)]
        started = set(pool._processes)
        assert len(started) == 2
        assert all(processes <= started for processes in found)
    assert not any(psutil.pid_exists(process) for process in started)


def test_a_small_table_needs_none(many: pd.DataFrame) -> None:
    for rows, cores in ((30, 2), (60, 1)):
        with workers(rows, cores) as pool:
            assert pool is None


def test_a_small_table_stays_in_this_process(many: pd.DataFrame) -> None:
    assert set(by_parts(many.head(30), "idea", who, cores=2).process) == {os.getpid()}


def test_an_error_in_a_part_is_told(many: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="idea 0 cannot be read"):
        by_parts(many, "idea", fail, cores=2)


def test_the_processes_do_not_import_the_program_that_runs(tmp_path: Path) -> None:
    """A run's is Dagster, which takes seconds in each."""
    program = tmp_path / "program.py"
    program.write_text(
        "print('imported as', __name__)\n"
        "if __name__ == '__main__':\n"
        "    import pandas as pd; import test_parts; from udrl_pipeline import parts\n"
        "    parts.PART_ROWS = 1\n"
        "    frame = pd.DataFrame({'idea': range(8), 'text': 'a'}).astype({'text': str})\n"
        "    print(len(parts.by_parts(frame, 'idea', test_parts.numbered, cores=2)), 'rows by', __import__('__main__').__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, program], env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["imported as __main__", "8 rows by __main__"]


def test_the_processes_end_with_one_that_is_killed() -> None:
    script = (
        "import pandas as pd; from udrl_pipeline import parts; import test_parts\n"
        "if __name__ == '__main__':\n"
        "    parts.PART_ROWS = 1; parts.by_parts(pd.DataFrame({'idea': range(8)}), 'idea', test_parts.wait, cores=2)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent)
    try:
        workers: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while len(workers) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            workers = [child for child in psutil.Process(killed.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
