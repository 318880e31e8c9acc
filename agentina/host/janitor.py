"""Deletes what is no longer needed: forgotten task directories, and kept ones when their time or the disk is up.

A directory is renamed out of ``tasks`` first, so that a crash leaves it whole or gone for the next daemon. Nobody waits
for it, while tasks wait for the processor: many directories are deleted at once, and not in a hurry. Most hold the few
small files that every task leaves. They are deleted on the event loop while that is fast
(:mod:`agentina.system.pace`): in a thread each system call would hand the interpreter's lock over twice. All others are
deleted in a thread. Some, emptied, are kept for the next tasks (:mod:`agentina.host.work.spares`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from pathlib import Path
from typing import Final

from agentina.host.work import spares
from agentina.system import files, pace, paths, pressure

#: Seconds between looks at the kept directories.
_LOOK_SECONDS: Final = 3600.0
#: The same while there is something that could not be put away.
_AGAIN_SECONDS: Final = 60.0
_DAY: Final = 86_400.0
#: Seconds for which directories to delete are gathered.
_GATHER_SECONDS: Final = 0.5
#: Levels of directories below a task's that are deleted the quick way.
_QUICK_LEVELS: Final = 3
#: What every task leaves, and the most bytes of output that are deleted on the event loop.
_PLAIN_FILES: Final = ("output.log", "supervisor", "result.json")
_PLAIN_BYTES: Final = 64 << 10
#: Directories deleted on the event loop before others have their turn.
_AT_ONCE: Final = 4
#: Directories kept for the next tasks: as many as end, at the most, while directories to delete are gathered.
_MOST_SPARES: Final = 512
#: One expected to take less is: generous, for in the thread, where it is found out, it waits for the interpreter too.
_FAST_SECONDS: Final = 0.002

_log = logging.getLogger(__name__)


class Janitor:
    """Deletes for one instance."""

    def __init__(self, instance: paths.InstancePaths, *, keep_days: float, disk_reserve: int, spare: int = 0) -> None:
        """``spare``: directories to have ready for the next tasks; 0: none may be used again."""
        self._tasks = instance.tasks
        self._kept = instance.state / "tasks-kept"
        self._trash = instance.state / "trash"
        #: Directories for the next tasks.
        self.spares = spares.Spares(self._trash, most=_MOST_SPARES if spare else 0)
        self._spare = spare
        self.use(keep_days=keep_days, disk_reserve=disk_reserve)
        self._queue: list[tuple[Path, bool]] = []
        #: What could not be put away: a full disk may have no room for a name in the trash.
        self._left: list[tuple[Path, bool]] = []
        self._wake = asyncio.Event()
        self._pace = pace.Pace(fast_seconds=_FAST_SECONDS)

    def use(self, *, keep_days: float, disk_reserve: int) -> None:
        """Clean by other settings from now on."""
        self._keep_seconds = keep_days * _DAY
        self._disk_reserve = disk_reserve

    def remove(self, directory: Path, keep: bool) -> None:  # noqa: FBT001 - a callback's signature
        """Have a task directory deleted; ``keep`` it for a look for the configured days."""
        self._queue.append((directory, keep and self._keep_seconds > 0))
        self._wake.set()

    async def run(self) -> None:
        """Delete what is asked for, and look at the kept ones now and each hour. Runs until canceled."""
        batch: list[tuple[Path, bool]] = []
        while True:
            try:
                rest = await self._clean_plain(batch)
                if not batch:
                    rest, self._left = self._left, []
                if rest:
                    await asyncio.to_thread(self._clean, rest)
                if not batch:
                    await asyncio.to_thread(self._clean, [])
            except OSError as error:
                _log.warning("cleaning up failed and is tried again: %s", error, extra={"action": "clean-up"})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS if self._left else _LOOK_SECONDS):
                    await self._wake.wait()
                await asyncio.sleep(_GATHER_SECONDS)
                self._wake.clear()
            batch, self._queue = self._queue, []

    async def _clean_plain(self, batch: list[tuple[Path, bool]]) -> list[tuple[Path, bool]]:
        """Delete on the event loop what takes it no time; returns what is left to do."""
        rest = []
        for number, (directory, keep) in enumerate(batch, 1):
            if keep or not self._pace.is_fast or not self._delete_plain(directory):
                rest.append((directory, keep))
            elif number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return rest

    def _delete_plain(self, directory: Path) -> bool:
        """Delete or spare a directory with nothing but what every task leaves; False: there is more, or more trash."""
        began = time.perf_counter()
        trash = f"{self._trash}/{directory.name}.{time.monotonic_ns()}"
        # Half of the cost of each is what pathlib would add.
        try:
            # With the slash a directory only: what a job put in its place leads to what is not ours to delete.
            os.rename(f"{directory}/", trash)  # noqa: PTH104
            if os.stat(f"{trash}/output.log").st_size > _PLAIN_BYTES:  # noqa: PTH116
                return False
            for name in _PLAIN_FILES:
                os.unlink(f"{trash}/{name}")  # noqa: PTH108
            if not self.spares.keep(trash):
                os.rmdir(f"{trash}/workspace")  # noqa: PTH106 - most are empty
                os.rmdir(trash)  # noqa: PTH106
        except OSError:
            return False
        self._pace.note(time.perf_counter() - began)
        return True

    def _clean(self, batch: list[tuple[Path, bool]]) -> None:
        self._trash.mkdir(mode=0o700, exist_ok=True)
        for directory, keep in batch:
            if not keep and self._delete_plain(directory):
                continue
            try:
                self._put_away(directory, keep=keep)
            except OSError as error:
                _log.warning("%s cannot be removed yet: %s", directory, error, extra={"action": "clean-up"})
                self._left.append((directory, keep))
        if not batch:
            self.spares.shrink(self._spare)
        spared = self.spares.paths
        for path in self._trash.iterdir():
            if str(path) not in spared:
                _delete(path)
        if not batch:
            self._look_at_kept()
            self.spares.fill(self._spare)

    def _put_away(self, directory: Path, *, keep: bool) -> None:
        if not keep or directory.is_symlink() or not directory.is_dir():
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory, f"{self._trash}/{directory.name}.{time.monotonic_ns()}")  # noqa: PTH104 - cheaper
            return
        # The record holds the job's environment, and with it secrets: what is kept for a look has none.
        (directory / "job.json").unlink(missing_ok=True)
        self._kept.mkdir(mode=0o700, exist_ok=True)
        target = self._kept / directory.name
        if target.exists():
            target.replace(self._trash / f"{target.name}.{time.monotonic_ns()}")
        directory.replace(target)
        if self._is_disk_low():
            _empty(target)

    def _look_at_kept(self) -> None:
        now = time.time()
        for path in sorted(self._kept.glob("*"), key=lambda path: path.lstat().st_mtime):
            age = now - path.lstat().st_mtime
            if age > self._keep_seconds:
                files.remove_tree(path)
            elif self._is_disk_low():
                _empty(path)

    def _is_disk_low(self) -> bool:
        disk = pressure.disk(self._tasks)
        return disk.total > 0 and disk.free < 2 * self._disk_reserve


def _empty(kept: Path) -> None:
    """Delete what takes room in a kept directory; output and result stay."""
    for name in ("workspace", "home"):
        files.remove_tree(kept / name)


def _delete(path: Path) -> None:
    """Delete a directory: the few files that most tasks leave at little cost, all others thoroughly."""
    try:
        if not path.is_symlink():
            _delete_quickly(str(path), _QUICK_LEVELS)
            return
    except OSError:
        pass
    files.remove_tree(path)


def _delete_quickly(path: str, levels: int) -> None:
    with os.scandir(path) as listing:
        entries = list(listing)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)  # noqa: PTH108 - half of the cost is what pathlib would add
            continue
        try:
            os.rmdir(entry.path)  # noqa: PTH106 - see above; most workspaces are empty
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise  # something is mounted there, say
            _delete_quickly(entry.path, levels - 1) if levels else files.remove_tree(Path(entry.path))
    os.rmdir(path)  # noqa: PTH106 - see above
