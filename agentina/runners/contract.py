"""What every runner does: describe the process to start. A new runner is a new module and a line in the registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from agentina.protocol.jobs import JobSpec

#: Where programs are looked for; what every process gets besides its job's own variables.
SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a task works, as it sees it itself."""

    workspace: Path
    #: Its HOME and TMPDIR; the workspace where nothing has to be kept apart from it.
    home: Path
    #: The socket at which its daemon hears it (agentina.inside.door); empty: there is none.
    door: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A process to start in the workspace."""

    argv: list[str]
    #: Variables the runner adds to the job's own.
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Command that must exit 0 afterwards, or None.
    verify: list[str] | None = None
    #: Files to make in the task's home beforehand: relative path to content. They may hold secrets.
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    #: As in :class:`agentina.executors.contract.Launch`.
    oom: Literal["kill", "continue"] = "kill"

    def __repr__(self) -> str:
        return f"Plan({self.argv[0]!r})"


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Which program a task starts; written down at its beginning, and so the same until its end."""

    #: The runner, with its version where the host keeps a copy of that: what the task is started and read with.
    runner: str
    version: str = ""
    #: For people: which copy, or which file and when that was changed.
    program: str = ""


class Runner(Protocol):
    """One kind of payload."""

    #: The word in the job's ``runner`` key.
    name: str
    #: The task needs a home of its own, apart from the workspace.
    needs_home: bool
    #: The format of its output, of :data:`agentina.runners.streams.formats.FORMATS`, where that is a stream that tells
    #: how the run went; empty: anything.
    stream: str

    def session_directory(self, place: Place) -> str:
        """Where in the home the files of its sessions are, which moved there elsewhere can be resumed; empty: nowhere.

        All files below it belong to the sessions, and none has to be changed for another place.
        """
        ...

    def choose(self) -> Chosen | None:
        """Which program it starts now; None: that is the job's affair.

        Raises:
            AgentinaError: ``RUNNER_MISSING``: it is not there any more.

        """
        ...

    def plan(self, job: JobSpec, *, place: Place) -> Plan:
        """What to start for ``job``.

        Raises:
            AgentinaError: ``INPUT_INVALID`` when the payload makes no sense to this runner.

        """
        ...
