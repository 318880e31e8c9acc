"""Which program the task of an AI agent starts: chosen when it is prepared, written down, the same until its end.

A host may keep several versions of a program, and have others by the time a task ends. ``runner.json`` in the task's
directory says which one it has; as long as it is there, that version is not taken away:

| who | first | then |
| --- | --- | --- |
| a daemon that prepares a task | writes ``runner.json`` | looks whether it is there: if not, gives the task back |
| `agentina runner remove` | takes its description away | looks for ``runner.json`` with it: if so, puts that back |

So one of the two sees the other, whatever comes between.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView, Mapping
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.host.work import entries
from agentina.protocol import jobs
from agentina.runners import contract, registry
from agentina.system import files

_NAME: Final = "runner.json"
_MAX: Final = 1 << 16


class Runners:
    """The runners that tasks can have on this host now, and the one that each task has."""

    def __init__(self, find: Callable[[], Mapping[str, contract.Runner]]) -> None:
        """``find`` looks which there are, by name; what is called again is :meth:`look`."""
        self._find = find
        self._found: Mapping[str, contract.Runner] = {}
        #: Which programs they start, for people.
        self.programs: dict[str, str] = {}
        self.look()

    def look(self) -> bool:
        """Look again which there are; whether they are others, or start others."""
        before = self._found.keys(), self.programs
        self._found = self._find()
        self.programs = registry.programs(self._found)
        return (self._found.keys(), self.programs) != before

    @property
    def names(self) -> KeysView[str]:
        """What jobs may ask for."""
        return self._found.keys()

    def choose(self, entry: entries.Entry, job: jobs.JobSpec) -> contract.Runner:
        """The runner of a task that is prepared; which program it starts is written down.

        Raises:
            AgentinaError: ``TASK_START_FAILED``: there is no such runner any more; ``RUNNER_MISSING``: or not its
                program; ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        runner = _present(self._found.get(job.runner), job)
        entry.chosen, entry.is_chosen = runner.choose(), True
        if entry.chosen is not None:
            files.write_atomic(entry.directory.path / _NAME, msgspec.json.encode(entry.chosen), durable=False)
            runner.choose()
        return runner

    def find(self, entry: entries.Entry, job: jobs.JobSpec) -> contract.Runner | None:
        """The runner of a task that was prepared; None: the host has it no more."""
        if not entry.is_chosen:
            entry.chosen, entry.is_chosen = _read(entry.directory.path / _NAME), True
        of_program = None if entry.chosen is None else self._found.get(entry.chosen.runner)
        # Where the copy has gone since, another of the same runner still knows how to read what it printed.
        return of_program or self._found.get(job.runner) or self._found.get(job.runner_name)

    def require(self, entry: entries.Entry, job: jobs.JobSpec) -> contract.Runner:
        """The runner of a task that was prepared.

        Raises:
            AgentinaError: ``TASK_START_FAILED``: the host has it no more.

        """
        return _present(self.find(entry, job), job)


def _present(runner: contract.Runner | None, job: jobs.JobSpec) -> contract.Runner:
    if runner is None:
        # It was there when the task was taken; the daemon was started again since.
        raise errors.TASK_START_FAILED(problem=f"this host does not have the runner {job.runner!r} any more")
    return runner


def in_use(state_directory: Path) -> dict[str, list[str]]:
    """The tasks of all instances that have not ended, by the runner, with its version, that each has."""
    found: dict[str, list[str]] = {}
    for path in sorted(state_directory.glob(f"*/tasks/*/{_NAME}")):
        read = _read(path)
        if read is not None:
            found.setdefault(read.runner, []).append(path.parent.name)
    return found


def _read(path: Path) -> contract.Chosen | None:
    try:
        return msgspec.json.decode(files.read_bounded(path, limit=_MAX), type=contract.Chosen)
    except (OSError, errors.AgentinaError, msgspec.MsgspecError):
        return None
