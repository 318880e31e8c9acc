"""How busy the host is: memory, load, disks, and pressure stall information (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Final, Literal

#: What is answered for pressure where the kernel measures none.
UNKNOWN: Final = -1.0
_PROC: Final = Path("/proc")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of main memory."""

    total: int
    #: What can be given to programs without swapping (MemAvailable).
    available: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Bytes of one file system."""

    total: int
    #: What an unprivileged user can still write.
    free: int


def some_avg10(kind: Literal["cpu", "memory", "io"], *, proc: Path = _PROC) -> float:
    """Share of the last ten seconds, in percent, in which some process waited for ``kind``; :data:`UNKNOWN` if none."""
    try:
        return parse_some_avg10((proc / "pressure" / kind).read_text("ascii", "replace"))
    except OSError:  # no PSI in this kernel, or switched off: reading answers EOPNOTSUPP
        return UNKNOWN


def parse_some_avg10(text: str) -> float:
    """``avg10`` of the ``some`` line of a pressure file; :data:`UNKNOWN` when it is not there."""
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        for field in rest.split() if kind == "some" else ():
            name, _, value = field.partition("=")
            if name == "avg10":
                with contextlib.suppress(ValueError):
                    return min(100.0, max(0.0, float(value)))
    return UNKNOWN


def memory(*, proc: Path = _PROC, cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """The memory of this host, or of the container it is: the cgroup's limit when that is lower."""
    try:
        host = parse_meminfo((proc / "meminfo").read_text("ascii", "replace"))
    except OSError:
        host = Memory(total=0, available=0)
    limit = _number(cgroup / "memory.max")
    current = _number(cgroup / "memory.current")
    if limit is None or current is None or limit >= host.total > 0:
        return host
    return Memory(total=limit, available=max(0, min(host.available, limit - current)))


def parse_meminfo(text: str) -> Memory:
    """Total and available memory in /proc/meminfo; 0 for what is not there."""
    found = {"MemTotal": 0, "MemAvailable": 0}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        value = rest.split()
        if name in found and value and value[0].isascii() and value[0].isdecimal():
            found[name] = int(value[0]) * 1024
    return Memory(total=found["MemTotal"], available=min(found["MemTotal"], found["MemAvailable"]))


def load1() -> float:
    """Processes running or waiting for a disk, averaged over a minute."""
    return os.getloadavg()[0]


def cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def disk(path: Path) -> Disk:
    """The file system that holds ``path``, or its nearest existing parent; zeros when it cannot be asked."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            status = os.statvfs(place)
            return Disk(total=status.f_blocks * status.f_frsize, free=status.f_bavail * status.f_frsize)
    return Disk(total=0, free=0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):  # no limit reads "max"
        return None
