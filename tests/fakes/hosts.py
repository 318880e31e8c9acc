"""A real host for tests of what only systemd does: is this one, and its instance made for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from agentina.executors import fields
from tests.fakes import deadlines

#: Made by whoever sets the host up (tests/vm), and the daemon's user's own.
STATE = Path("/var/lib/agentina/contract")


def is_prepared() -> bool:
    """Whether this process is the daemon's user on a host with agentina's units and the instance for tests."""
    return STATE.is_dir() and os.getuid() == STATE.stat().st_uid != 0


def fresh_instance() -> Path:
    """The instance's state directory, without tasks; earlier ones have ended."""
    deadline = time.monotonic() + deadlines.HANG
    while units():
        assert time.monotonic() < deadline, units()
        subprocess.run(["systemctl", "stop", *units()], check=False)
    shutil.rmtree(STATE / "tasks", ignore_errors=True)
    (STATE / "tasks").mkdir()
    return STATE


def units() -> list[str]:
    """Units of the instance's tasks that are not at rest."""
    listed = subprocess.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "agentina-task@contract-S*"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [line.split()[0] for line in listed.stdout.splitlines()]


def unit_of(directory: Path) -> str:
    """The unit a task runs in."""
    (name,) = fields.decode((directory / "started").read_bytes())["slot"]
    return f"agentina-task@{name}.service"


def kill_supervisor(directory: Path) -> None:
    """SIGKILL for the main process of a task's unit."""
    subprocess.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit_of(directory)], check=True)
