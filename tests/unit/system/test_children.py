from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentina.system import children
from tests.fakes import deadlines


def test_run_tells_exit_code_and_output(tmp_path: Path) -> None:
    assert children.run(["sh", "-c", "pwd; echo err >&2; exit 3"], directory=tmp_path) == (3, f"{tmp_path}\nerr\n")


@pytest.mark.parametrize(("command", "code"), [(["no-such-program"], 127), (["/"], 126), (["sleep", "9"], 124)])
def test_run_never_raises(command: list[str], code: int) -> None:
    assert children.run(command, timeout_seconds=0.1)[0] == code


def test_stubborn_child_is_killed_after_its_grace(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        child = children.Child(
            ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done"], log=file, environment=dict(os.environ)
        )
    while not log.read_bytes():
        time.sleep(0.01)
    assert child.has_ended() is None
    child.stop(grace_seconds=0.1)
    assert child.has_ended() == -signal.SIGKILL


def test_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, os; from agentina.system import children\n"
        "c = children.Child(['sleep', '60'], log=open(os.devnull, 'wb'), environment={'PATH': os.environ['PATH']})\n"
        "print(c.pid, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    deadline = time.monotonic() + deadlines.HANG
    while (
        Path(f"/proc/{pid}").exists()
        and "Z" not in Path(f"/proc/{pid}/stat").read_text()
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1]
