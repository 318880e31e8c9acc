"""What every executor does. The contract suite tests/integration/executors/test_contract.py runs against all of them.

The daemon gives a :class:`Launch`; the executor contains the process in something that outlives the daemon and, when it
has ended, leaves ``result.json`` (a :class:`Result`) in the task's directory, whether or not a daemon is there.

Rules every executor keeps:

- ``start`` of a task that was started before, by anybody, at any time, starts nothing and raises ``STATE_CONFLICT``.
  The fence is made of something the kernel holds (a lock, a unit name), never of the daemon's memory.
- When a result exists, nothing of the task runs any more; what the task spawned has been ended too.
- A task ends by itself at its time limit, its lease deadline, its memory, process and output limits, with no daemon.
- ``adopt`` finds a task started earlier by another daemon process; it never starts, stops or changes anything.
- No result and nothing running means *unknown*, never success.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from agentina.protocol.wire import Usage


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to start one task. ``environment`` holds secrets: it is never logged nor put in argv."""

    task_id: str
    #: The task's directory; ``output.log``, ``result.json`` and the executor's own files go there.
    directory: Path
    argv: list[str]
    #: All the variables it gets, but for ``USER``, ``LOGNAME`` and ``SHELL``: who a task runs as, the executor knows.
    #: What is here goes before them.
    environment: dict[str, str]
    #: The process's working directory, below ``directory``, as the daemon sees it (:meth:`Executor.place`).
    workspace: Path
    #: A repository of the daemon's whose objects the workspace borrows; an executor whose tasks cannot see it lends
    #: them as ``mirror`` in the task's directory.
    mirror: Path | None = None
    #: Optional command run in the same containment after ``argv`` exits 0; its exit code decides then.
    verify: list[str] | None = None
    memory_bytes: int
    cpus: float
    pids: int
    disk_bytes: int
    output_bytes: int
    timeout_seconds: float
    grace_seconds: float
    #: CLOCK_BOOTTIME seconds at which the task must be gone unless :meth:`Executor.renew` moved it.
    lease_deadline: float
    #: When memory runs out: ``kill`` ends the whole task, ``continue`` lets it live on without the process that was
    #: ended (an AI agent whose test run was too large). Where the kernel does not hold the limit the whole task ends.
    oom: Literal["kill", "continue"] = "kill"
    #: Of a task that prints nothing the result is all that is kept, and the caller makes that durable where it reports
    #: it. An executor need not do it as well, as long as the caller lives.
    result_is_all: bool = False
    #: Companions may run beside it: there must be room for one beyond its own memory and processes.
    has_companions: bool = False

    def __repr__(self) -> str:
        return f"Launch({self.task_id})"


class Companion(msgspec.Struct, frozen=True, kw_only=True):
    """A command of the daemon's that runs beside a task's own: contained as the task is, and ended with it."""

    argv: list[str]
    #: Seconds until it is ended.
    seconds: float


class StopReason(enum.Enum):
    """Why a task was told to end, written into the result by whoever ended it."""

    CANCELED = "canceled"
    TIME_LIMIT = "time-limit"
    MEMORY_LIMIT = "memory-limit"
    PROCESS_LIMIT = "process-limit"
    OUTPUT_LIMIT = "output-limit"
    DISK_LIMIT = "disk-limit"
    LEASE_EXPIRED = "lease-expired"
    HOST_SHUTDOWN = "host-shutdown"
    #: It goes on elsewhere.
    CHECKPOINT = "checkpoint"
    #: Its command had done its work but did not end: only that is ended, and ``verify`` runs as after exit code 0.
    FINISHED = "finished"
    #: Nothing told it: it ended by itself.
    NONE = "none"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order to end a task, as it waits in the task's directory."""

    reason: StopReason
    #: Seconds between SIGTERM and SIGKILL; None means the launch's own.
    grace_seconds: float | None = None

    def following(self, before: Order | None) -> Order:
        """The order that stands: the first reason to end the task, and the shorter grace where both say one."""
        if before is None:
            return self
        reason = self.reason if before.reason is StopReason.FINISHED else before.reason
        said = [grace for grace in (before.grace_seconds, self.grace_seconds) if grace is not None]
        return Order(reason=reason, grace_seconds=min(said, default=None))


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How the process ended, as ``result.json`` holds it. The executor's word; the host makes the outcome of it."""

    task_id: str
    #: Exit code of the command (or of ``verify`` when that ran and failed); None when a signal ended it.
    exit_code: int | None = None
    #: Name of the signal, for example ``SIGKILL``.
    signal: str | None = None
    #: Which command the above speaks of.
    phase: Literal["start", "command", "verify"] = "command"
    #: Set when the process could not be started at all (phase ``start``).
    start_error: str = ""
    stopped: StopReason = StopReason.NONE
    oom: Literal["none", "partial", "full"] = "none"
    usage: Usage = Usage()
    started_ms: int = 0
    ended_ms: int = 0
    boot_id: str = ""
    output_truncated: bool = False
    #: Particulars for people.
    detail: str = ""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A task that runs, as its executor sees it."""

    #: Process id of the command's first process; 0 while it is not known yet.
    pid: int
    started_ms: int


class Condition(enum.Enum):
    """What ``adopt`` found."""

    #: Never started: starting it is allowed.
    UNSTARTED = "unstarted"
    RUNNING = "running"
    #: ``result.json`` is there and readable.
    ENDED = "ended"
    #: It was started, does not run, and left no readable result.
    VANISHED = "vanished"


class Door(NamedTuple):
    """Where a task meets its daemon and its gateway: a directory for sockets, which they make and the task finds."""

    #: As the task sees it.
    inside: Path
    #: As the daemon sees it; None before the task has started and after it has ended, where there is none then.
    outside: Path | None
    #: The task has a user of its own, who must be let in. Nobody else gets there.
    is_shared: bool


class Executor(Protocol):
    """The door to containment. One object serves all tasks of an instance."""

    #: ``process`` or ``systemd``.
    name: str
    #: Tasks run as the daemon's own user and have their directory where the daemon has it. Emptied, when a task has
    #: ended, it is like one that nobody had.
    owns_directories: bool

    def guarantees(self) -> dict[str, str]:
        """What holds and what does not on this host, for status and pages: aspect to sentence.

        Aspects: ``memory``, ``cpu``, ``processes``, ``files``, ``network``, ``user``, ``containment``. A sentence that
        starts with ``not enforced`` marks a missing guarantee.
        """
        ...

    def place(self, directory: Path) -> Path:
        """Where the task itself finds its ``directory``: what paths in its environment and argv begin with."""
        ...

    def door(self, directory: Path) -> Door:
        """Where a task's gateway listens: in a directory that no other task sees and only the daemon can change."""
        ...

    async def open(self) -> None:
        """Get ready. Returns only when no start requested by an earlier daemon can still happen."""
        ...

    async def close(self) -> None:
        """Let go of everything; tasks go on."""
        ...

    async def start(self, launch: Launch) -> Running:
        """Start the task, once.

        Raises:
            AgentinaError: ``STATE_CONFLICT`` when it was started before; ``TASK_START_FAILED`` when the executor
                itself cannot (a program that does not exist is a *result*, not an error); ``DISK_FULL`` or
                ``STATE_UNWRITABLE`` when there is no room for it.

        """
        ...

    def adopt(self, directory: Path) -> tuple[Condition, Running | None]:
        """What became of the task in ``directory``."""
        ...

    def cpu_seconds(self, directory: Path) -> float | None:
        """Processor time that a running task has used so far; None: nobody can tell."""
        ...

    async def wait(self, directory: Path) -> None:
        """Return when the task no longer runs."""
        ...

    def end_leftovers(self, directory: Path) -> int:
        """End what is left of a task that vanished; returns how many processes. Blocks, so call it in a thread."""
        ...

    def read_result(self, directory: Path) -> Result | None:
        """The result, or None when there is none that can be read.

        Where directories are the daemon's own one that speaks of another task is none: it is of a task that had the
        directory before, and a power cut brought it back.

        Raises:
            AgentinaError: ``STATE_UNWRITABLE``: this process cannot look, for want of a descriptor, say.

        """
        ...

    def stop(self, directory: Path, reason: StopReason, *, grace_seconds: float | None = None) -> None:
        """Ask for the task's end: SIGTERM, the grace, then SIGKILL for everything in it. Returns at once; idempotent.

        ``grace_seconds`` None means the launch's own.
        """
        ...

    def accompany(self, directory: Path, companion: Companion | None) -> None:
        """Have a companion run in a task that the daemon cannot see into (:meth:`place`); None: end the one there is.

        One at a time: another ends the one before. Returns at once; nobody is told what becomes of it.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        ...

    def renew(self, directory: Path, lease_deadline: float) -> None:
        """Move the task's lease deadline (CLOCK_BOOTTIME seconds)."""
        ...
