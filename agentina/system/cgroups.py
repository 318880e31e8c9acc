"""Delegated cgroups v2 (kernel Documentation/admin-guide/cgroup-v2.rst): is there one for us, and one child per task.

A cgroup is used only where it was given to us: the directory is writable and, on a host that systemd runs, marked as
delegated, because systemd is the only other writer and must not be surprised (systemd's CGROUP_DELEGATION). Processes
that are not ours are never moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Final

_CONTROLLERS: Final = ("memory", "pids", "cpu", "io")
_PERIOD_MICROSECONDS: Final = 100_000
_PREFIX: Final = "agentina-task-"
_LEAF: Final = "agentina-daemon"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Delegation:
    """A cgroup below which tasks may get their own."""

    path: Path
    #: Controllers that children have: of memory, pids, cpu, io.
    controllers: frozenset[str]


def controllers(root: Path = Path("/sys/fs/cgroup")) -> frozenset[str]:
    """What the kernel can limit for this host's services, such as ``memory``; empty: nothing, or unknown."""
    try:
        return frozenset((root / "cgroup.controllers").read_text("ascii").split())
    except OSError:
        return frozenset()


def find(*, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> Delegation | None:
    """The cgroup delegated to this process, ready for children; None when there is none.

    Args:
        proc: Where procfs is.
        root: Where cgroups are mounted; on a hybrid host version 2 is in ``unified`` below it.

    """
    try:
        own = _own_path((proc / "self/cgroup").read_text("utf-8"))
        mount = next(place for place in (root, root / "unified") if (place / "cgroup.controllers").exists())
    except (OSError, StopIteration):
        return None
    if own is None:
        return None
    path = mount / own.lstrip("/")
    if path.name == _LEAF:  # a daemon that moved itself here before it restarted in place
        path = path.parent
    if not _is_ours(path):
        return None
    return Delegation(path=path, controllers=_enable(path))


def make(delegation: Delegation, name: str, *, memory_bytes: int, pids: int, cpus: float) -> Path | None:
    """Make the cgroup of one task with its limits; None when the kernel refuses, and the task goes without."""
    path = delegation.path / f"{_PREFIX}{name}"
    try:
        path.mkdir(mode=0o755)
    except OSError:
        return None
    if not (path / "cgroup.kill").exists():
        discard(path)  # before Linux 5.14: it would add nothing that the process tree does not give
        return None
    settings = {
        "memory.max": str(memory_bytes),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": str(pids),
        "cpu.max": f"{int(cpus * _PERIOD_MICROSECONDS)} {_PERIOD_MICROSECONDS}" if cpus > 0 else "",
    }
    for file, value in settings.items():
        if value and file.partition(".")[0] in delegation.controllers:
            with contextlib.suppress(OSError):  # memory.swap.max is absent without swap accounting
                (path / file).write_text(value)
    return path


def discard(path: Path) -> None:
    """Delete a cgroup that no process is in."""
    with contextlib.suppress(OSError):
        path.rmdir()


def remove_empty(delegation: Delegation) -> None:
    """Delete what killed supervisors left: task cgroups that no process is in."""
    for path in delegation.path.glob(f"{_PREFIX}*"):
        discard(path)


def kill(path: Path) -> None:
    """End every process in the cgroup at ``path``, if it is there."""
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")


def task_path(delegation: Delegation, name: str) -> Path:
    """Where the cgroup of a task is."""
    return delegation.path / f"{_PREFIX}{name}"


def _own_path(text: str) -> str | None:
    """The version 2 path in /proc/self/cgroup: the line of hierarchy 0."""
    for line in text.splitlines():
        if line.startswith("0::"):
            path = line[3:]
            return None if ".." in path.split("/") else path
    return None


def _is_ours(path: Path) -> bool:
    if not (os.access(path, os.W_OK) and os.access(path / "cgroup.procs", os.W_OK)):
        return False
    if not Path("/run/systemd/system").is_dir():
        return True
    for attribute in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, attribute) == b"1":
                return True
    return False


def _enable(path: Path) -> frozenset[str]:
    """Give children the controllers we have, and say which they got."""
    wanted = set((path / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
    enabled = set((path / "cgroup.subtree_control").read_text().split())
    if wanted - enabled and _leave(path):
        for controller in sorted(wanted - enabled):
            with contextlib.suppress(OSError):
                (path / "cgroup.subtree_control").write_text(f"+{controller}")
        enabled = set((path / "cgroup.subtree_control").read_text().split())
    return frozenset(enabled & set(_CONTROLLERS))


def _leave(path: Path) -> bool:
    """Move this process to a leaf: a cgroup with controllers for its children may hold no process itself."""
    try:
        inside = set((path / "cgroup.procs").read_text().split())
        if inside - {str(os.getpid())}:
            return not (path / "cgroup.type").exists()  # the root of all may hold processes; elsewhere they are others'
        leaf = path / _LEAF
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return False
    return True
