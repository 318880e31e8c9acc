"""Launches for executor tests."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Final

from agentina.executors import contract
from agentina.system import clock

#: Ends every id: what a killed supervisor leaves is found, and ended, by its task's id, on the whole machine.
_RUN: Final = f".{secrets.token_hex(4)}"


def make(parent: Path, *argv: str, name: str = "job_0123456789abcdef", **changes: Any) -> contract.Launch:
    """A launch in a task directory of its own below ``parent``, with limits that do not matter unless changed."""
    directory = parent / f"{name}{_RUN}"
    (directory / "workspace").mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "task_id": directory.name,
        "directory": directory,
        "argv": list(argv),
        "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
        "workspace": directory / "workspace",
        "memory_bytes": 1 << 30,
        "cpus": 1.0,
        "pids": 1000,
        "disk_bytes": 1 << 30,
        "output_bytes": 1 << 20,
        "timeout_seconds": 60.0,
        "grace_seconds": 5.0,
        "lease_deadline": clock.SystemClock().boot() + 600.0,
        **changes,
    }
    return contract.Launch(**fields)
