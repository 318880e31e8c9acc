"""What runs on this machine, proc(5), while processes come and go beside the test.

Not by ``Path("/proc").glob()``: that, and ``Path.exists()``, fail when a process ends while they look (ESRCH).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agentina.gateway import launching


def command_lines() -> dict[int, bytes]:
    """The words of each process's command, each followed by a NUL, by PID; empty for the kernel's own and zombies."""
    return _each("cmdline")


def environments() -> dict[int, bytes]:
    """The variables each process began with, each followed by a NUL, by PID; without those nobody may ask for."""
    return _each("environ")


def gateways(root: Path) -> set[int]:
    """The processes that serve as gateways of the hosts below ``root``."""
    ways = command_lines().items()
    own = {pid: line for pid, line in ways if b"agentina.gateway.process" in line and os.fsencode(root) in line}
    return {pid for pid, line in own.items() if os.fsencode(launching.CHECK) not in line}


def memory_mib(pid: int, name: str = "VmRSS") -> float:
    """What of a process is in memory, or was at most (``VmHWM``), proc(5)."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(found[name].split()[0]) / 1024


def share_mib(pid: int) -> float:
    """What of memory is a process's own, and its part of what it shares (Pss); nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def waits_for_lock(pid: int) -> bool:
    """Whether a process waits for a flock(2)."""
    words = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(line[1:3] == ["->", "FLOCK"] and line[5] == str(pid) for line in words)


def _each(name: str) -> dict[int, bytes]:
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - names are wanted, not paths
        with contextlib.suppress(OSError):
            found[int(pid)] = Path("/proc", pid, name).read_bytes()
    return found
