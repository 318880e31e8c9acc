"""What a supervisor sees of its task's processes, and how it ends all of them.

A supervisor is a child subreaper (prctl(2)): whatever the task leaves behind becomes its child, so the tree below it
is the task, and ``wait4`` answering ECHILD is the kernel's word that nothing of it is left.

Standard library only: this is loaded into the nursery, whose memory every supervisor shares.
"""
# pathlib would add to the memory of the nursery; paths here are plain strings.
# ruff: noqa: PTH106, PTH110, PTH208

from __future__ import annotations

import errno
import os
import signal
import time
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_BLOCK = 512
#: A walk ends after this many processes; who ends a larger tree walks again.
MOST = 4096
#: Most processes collected before anything else is looked at.
_REAPED = 512
#: Longest /proc or cgroup file read.
_MAX_READ = 1 << 16


_TICKS = os.sysconf("SC_CLK_TCK")


class Tree(NamedTuple):
    """Everything below one process."""

    pids: list[int]
    #: Threads of all of them, at least one each.
    threads: int


def read_small(path: str) -> bytes:
    """The content of a small file of the kernel's or of a task's directory; empty when it cannot be read.

    A task may put a FIFO in the place of one: opening that must not wait for a writer, for limits are held meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MAX_READ)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def tree_below(root: int, *, most: int = MOST, apart_from: frozenset[int] = frozenset()) -> Tree:
    """Descendants of ``root``, without ``root`` itself, up to a few more than ``most``.

    ``apart_from`` are processes that are left out with everything below them. A snapshot: a forking tree may be larger
    by now, and one that forks quickly would be walked without end.
    """
    if not os.path.exists(f"/proc/{root}/task/{root}/children"):
        return _tree_by_parents(root, apart_from)
    found: list[int] = []
    threads = 0
    todo = [root]
    while todo and len(found) <= most:
        pid = todo.pop()
        try:
            tids = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        if pid != root:
            threads += len(tids) or 1
        for tid in tids:
            children = [int(child) for child in _read_list(f"/proc/{pid}/task/{tid}/children", most).split()]
            children = [child for child in children if child not in apart_from]
            found += children
            todo += children
    return Tree(found, max(threads, len(found)))  # those of a walk cut short were not looked into


def _read_list(path: str, most: int) -> bytes:
    """A kernel file with a list of numbers, up to about ``most`` of them: it may grow faster than it is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    left = most * 8
    try:
        while left > 0 and (part := os.read(descriptor, 4096)):
            parts.append(part)
            left -= len(part)
    except OSError:
        pass
    finally:
        os.close(descriptor)
    text = b"".join(parts)
    # Cut where it is certain that a number ends.
    return text if left > 0 else text[: text.rfind(b" ") + 1]


def _tree_by_parents(root: int, apart_from: frozenset[int] = frozenset()) -> Tree:
    """The same from every process's parent, for kernels built without CONFIG_PROC_CHILDREN."""
    children: dict[int, list[int]] = {}
    threads: dict[int, int] = {}
    for name in os.listdir("/proc"):
        # Field 2 (the command's name) may hold spaces and parentheses; what follows its last ')' does not.
        fields = read_small(f"/proc/{name}/stat").rpartition(b")")[2].split() if name.isdecimal() else []
        if len(fields) > 17:  # noqa: PLR2004 - proc(5): field 20 is num_threads
            children.setdefault(int(fields[1]), []).append(int(name))
            threads[int(name)] = int(fields[17])
    found: list[int] = []
    todo = [root]
    while todo:
        below = [pid for pid in children.pop(todo.pop(), []) if pid not in apart_from]
        found += below
        todo += below
    return Tree(found, sum(threads[pid] for pid in found))


def resident_bytes(pids: list[int]) -> int:
    """Resident set sizes added up: cheap, and too high by what the processes share."""
    pages = 0
    for pid in pids:
        fields = read_small(f"/proc/{pid}/statm").split()
        if len(fields) > 1:
            pages += int(fields[1])
    return pages * _PAGE


def cpu_seconds(pids: list[int]) -> float:
    """Processor time of the processes and of their children that they have waited for (proc_pid_stat(5))."""
    ticks = 0
    for pid in pids:
        # The name may hold anything, also a parenthesis; what follows the last one are the fields from the third on.
        fields = read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def proportional_bytes(pids: list[int]) -> int:
    """Memory with shared pages counted once in all (PSS): exact, and about 50 times dearer than the above."""
    total = 0
    for pid in pids:
        text = read_small(f"/proc/{pid}/smaps_rollup")
        at = text.find(b"\nPss:")
        if at >= 0:
            total += int(text[at + 5 :].split(None, 1)[0]) * 1024
        else:
            total += resident_bytes([pid])
    return total


def send(pids: list[int], number: int) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue


def kill_groups(pids: list[int]) -> None:
    """End the process groups that ``pids`` are in, which must be descendants with sessions of their own."""
    groups = set()
    for pid in pids:
        try:
            groups.add(os.getpgid(pid))
        except OSError:
            continue
    for group in groups - {os.getpgrp()}:
        send_group(group, signal.SIGKILL)


def send_group(group: int, number: int) -> None:
    """Send a signal to a process group, if it is still there."""
    try:
        os.killpg(group, number)
    except OSError:
        return


def kill_tree(apart_from: frozenset[int]) -> bool:
    """Signal everything below this process to end; returns whether anything was there. Orphans are for the next look.

    Groups first: the kernel signals a whole group at once, so nobody in it forks away. What is left is stopped before
    it is killed: what is stopped cannot fork, so after a look that finds nobody new the tree is complete.
    """
    kill_groups(tree_below(os.getpid(), apart_from=apart_from).pids)
    stopped: set[int] = set()
    for _ in range(50):
        new = [pid for pid in tree_below(os.getpid(), apart_from=apart_from).pids if pid not in stopped]
        if not new:
            break
        send(new, signal.SIGSTOP)
        stopped.update(new)
    send(list(stopped), signal.SIGKILL)
    return bool(stopped)


class Usage:
    """What the reaped processes used, added up as they end."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.largest_bytes = 0
        self.read_bytes = 0
        self.written_bytes = 0

    def add(self, used: os.struct_rusage) -> None:  # type: ignore[name-defined]  # typeshed: resource.struct_rusage
        """Count a reaped process and those it had waited for."""
        self.cpu_seconds += used.ru_utime + used.ru_stime
        self.largest_bytes = max(self.largest_bytes, used.ru_maxrss * 1024)
        self.read_bytes += used.ru_inblock * _BLOCK
        self.written_bytes += used.ru_oublock * _BLOCK


class Children:
    """The processes of one task, below the calling process, which must be a subreaper and block SIGCHLD."""

    def __init__(self, cgroup: str = "") -> None:
        self.usage = Usage()
        self.cgroup = cgroup
        self._statuses: dict[int, int] = {}
        self._watched: set[int] = set()

    def watch(self, pid: int) -> None:
        """Keep the wait status of ``pid``, a group's leader, for :meth:`status`; with it its group is ended."""
        self._watched.add(pid)

    def status(self, pid: int) -> int | None:
        """The wait status of a watched process that has ended."""
        return self._statuses.get(pid)

    def reap(self) -> bool:
        """Collect what has ended; returns whether any process may be left.

        Bounded: the orphans of a fork bomb can end faster than they are collected.
        """
        for pid in self._watched - self._statuses.keys():
            self._collect(pid)
        try:
            for _ in range(_REAPED):
                if not self._collect(-1):
                    break
        except ChildProcessError:
            return False
        return True

    def _collect(self, pid: int) -> bool:
        """Collect one ended process; returns whether there was one."""
        which = os.P_ALL if pid == -1 else os.P_PID
        found = os.waitid(which, max(pid, 0), os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        pid = found.si_pid
        watched = pid in self._watched
        if watched:
            # The last moment at which its number is certain to be its group's; what forks quickly outruns a walk.
            send_group(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
        self.usage.add(used)
        if watched:
            self._statuses[pid] = status
        return True

    def terminate(self) -> None:
        """Ask every process to end. Stopped ones are continued, so that they can."""
        pids = tree_below(os.getpid()).pids
        send(pids, signal.SIGTERM)
        send(pids, signal.SIGCONT)

    def kill(self) -> None:
        """End every process and return when none is left, however fast they fork."""
        pause = 0.001
        for pid in self._watched - self._statuses.keys():
            # Not waited for yet, so the number is still its own and its group's. No walk first: a bomb outruns it.
            send_group(pid, signal.SIGKILL)
        while self.reap():
            if self.cgroup:
                write_text(f"{self.cgroup}/cgroup.kill", "1")
            kill_tree(frozenset())
            signal.sigtimedwait({signal.SIGCHLD}, pause)
            # One in uninterruptible sleep ends when the kernel lets it; until then there is no result.
            pause = min(0.25, pause * 2)


def write_text(path: str, text: str) -> bool:
    """Write a kernel file; returns whether it took the value."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, text.encode("ascii"))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


class CgroupUsage(NamedTuple):
    """What a task's cgroup counted; None where its controller is not there."""

    cpu_seconds: float | None
    memory_peak_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None
    operations: int | None
    oom_kills: int


def cgroup_usage(path: str) -> CgroupUsage:
    """Read what the kernel counted for the cgroup at ``path``."""
    keyed = dict(_pairs(read_small(f"{path}/cpu.stat")))
    peak = read_small(f"{path}/memory.peak").strip()
    io = read_small(f"{path}/io.stat")
    events = dict(_pairs(read_small(f"{path}/memory.events")))
    totals = {b"rbytes": 0, b"wbytes": 0, b"rios": 0, b"wios": 0}
    for field in io.split():
        key, _, value = field.partition(b"=")
        if key in totals and value.isdigit():
            totals[key] += int(value)
    counted = os.path.exists(f"{path}/io.stat")
    return CgroupUsage(
        cpu_seconds=keyed[b"usage_usec"] / 1e6 if b"usage_usec" in keyed else None,
        memory_peak_bytes=int(peak) if peak.isdigit() else None,
        read_bytes=totals[b"rbytes"] if counted else None,
        written_bytes=totals[b"wbytes"] if counted else None,
        operations=totals[b"rios"] + totals[b"wios"] if counted else None,
        oom_kills=events.get(b"oom_kill", 0),
    )


def _pairs(text: bytes) -> list[tuple[bytes, int]]:
    pairs = []
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        if value.isdigit():
            pairs.append((key, int(value)))
    return pairs


def remove_cgroup(path: str) -> None:
    """Delete an emptied cgroup; the kernel may need a moment after the last process (EBUSY)."""
    for _ in range(20):
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.005)
        else:
            return


class DiskWalk:
    """Adds up what directories take on disk, some entries at a time, so that a large one delays nothing else."""

    def __init__(self, *roots: str) -> None:
        self.used = 0
        self._todo = [*roots]
        #: Files with several names are counted once.
        self._linked: set[tuple[int, int]] = set()

    def step(self, entries: int = 2000) -> bool:
        """Go on for about that many entries; returns whether the walk is complete."""
        while self._todo and entries > 0:
            try:
                with os.scandir(self._todo.pop()) as listing:
                    for entry in listing:
                        entries -= 1
                        self._count(entry)
            except OSError:
                continue
        return not self._todo

    def _count(self, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                self._todo.append(entry.path)
            elif status.st_nlink > 1:
                if (status.st_dev, status.st_ino) in self._linked:
                    return
                self._linked.add((status.st_dev, status.st_ino))
            self.used += status.st_blocks * _BLOCK
        except OSError:
            return
