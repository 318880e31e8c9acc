"""Launches for executor tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentina.executors import contract
from agentina.system import clock


def make(parent: Path, *argv: str, name: str = "job_0123456789abcdef.1", **changes: Any) -> contract.Launch:
    """A launch in a task directory of its own below ``parent``, with limits that do not matter unless changed."""
    directory = parent / name
    (directory / "workspace").mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "task_id": name,
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
