"""What a step takes: its seconds and its memory, that of its child processes included."""

import subprocess
import sys
import time

import pytest

from udrl_pipeline.usage import Usage, memory

MEGABYTE = 2**20


def test_memory_that_was_freed_again_is_in_the_peak() -> None:
    """In a fresh process: one that has run other tests gives back what they left while it is watched."""
    script = (
        "import time; from udrl_pipeline.usage import Usage, memory; before = memory()\n"
        "with Usage(every_s=0.01) as usage:\n"
        "    held = bytearray(b'x') * (64 * 2**20); time.sleep(0.3); del held\n"
        "print(usage.peak - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 50 * MEGABYTE < int(done.stdout) < 100 * MEGABYTE


def test_the_seconds_are_those_of_the_work() -> None:
    with Usage(every_s=0.01) as usage:
        time.sleep(0.1)
    assert usage.seconds == pytest.approx(0.2, abs=0.1)


def test_the_memory_of_a_child_process_counts() -> None:
    """In a fresh process, for the same reason: what other tests left and is given back hid the child's share."""
    script = (
        "import subprocess, sys; from udrl_pipeline.usage import Usage, memory; before = memory()\n"
        "held = \"held = bytearray(b'x') * (80 * 2**20); print('ready', flush=True); input()\"\n"
        "with Usage(every_s=0.01) as usage:\n"
        "    child = subprocess.Popen([sys.executable, '-c', held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
        "    assert child.stdout.readline() == 'ready\\n'\n"
        "    print(usage.peak - before)\n"
        "    child.communicate('\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 70 * MEGABYTE < int(done.stdout) < 130 * MEGABYTE


def test_the_seconds_stand_still_once_the_work_has_ended() -> None:
    with Usage() as usage:
        pass
    ended = usage.seconds
    time.sleep(0.02)
    assert usage.seconds == ended


def test_an_error_in_the_work_passes_and_ends_the_watch() -> None:
    with pytest.raises(ZeroDivisionError), Usage(every_s=0.01) as usage:
        raise ZeroDivisionError
    assert not usage._watcher.is_alive()


def test_a_process_that_is_gone_holds_nothing() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert memory(done.pid) == 0
