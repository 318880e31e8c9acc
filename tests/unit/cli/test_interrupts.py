from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.fakes import deadlines

BEGIN = """
import signal, sys, time
from agentina.cli import interrupts
interrupts._AGAIN = 0.05

def ready():
    print("ready", flush=True)
    time.sleep(1000)

"""


def interrupted(
    program: str, *, number: signal.Signals = signal.SIGINT, prepare: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``program`` to its end, after one signal when it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", prepare + BEGIN + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=deadlines.HANG)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_interrupt_that_a_finalizer_swallows_comes_again_until_it_is_heard() -> None:
    done = interrupted("""
interrupts.raise_until_heard()

class Swallows:
    def __del__(self):
        ready()

try:
    Swallows()
    time.sleep(1000)
except KeyboardInterrupt:
    interrupts.heard()
    print("heard")
time.sleep(0.3)
print("and not again")
""")
    assert "Exception ignored" in done.stderr
    assert done.stdout == "heard\nand not again\n"
    assert done.returncode == 0


def test_while_modules_are_imported_it_ends_the_process_without_a_word() -> None:
    done = interrupted("interrupts.end_at_once(); ready()")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("stage", ["end_at_once()", "raise_until_heard()"])
def test_who_was_told_to_ignore_interrupts_does(stage: str) -> None:
    done = interrupted(
        f"""
interrupts.{stage}
print("ready", flush=True)
time.sleep(0.3)
print("went on")
""",
        prepare="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    )
    assert done.stdout == "went on\n"


def test_cleaning_up_is_not_interrupted_by_any_of_them() -> None:
    done = interrupted(
        """
interrupts.raise_until_heard(signal.SIGTERM)
try:
    ready()
except KeyboardInterrupt:
    with interrupts.ignored():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        time.sleep(0.3)
        print("cleaned up")
try:
    signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt:
    interrupts.heard()
    print("as before")
""",
        number=signal.SIGTERM,
    )
    assert done.stdout == "cleaned up\nas before\n"
    assert done.returncode == 0
