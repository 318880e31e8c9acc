"""The life of one task on its host: (state, event) -> (state, commands). Pure; :mod:`agentina.host.work.tasks` acts.

What must hold, whatever the order of events, and is tested with generated ones:

- ``START`` is commanded at most once, and only after the acceptance is durable;
- exactly one final word (``finished`` or ``returned``) is reported, and nothing after it;
- a task told to end is never started afterwards;
- a directory is deleted only after the control plane said ``forget``.

At most one *operation* (``PREPARE``, ``START``, ``WATCH``, ``COLLECT``, ``UPLOAD``) is under way; its end is the next
event. ``STOP``, ``INTERRUPT`` and reports take effect at once.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

import msgspec

from agentina.protocol import states, wire
from agentina.protocol.states import Reason, State


class Phase(enum.Enum):
    """Where a task is on its host."""

    # There is one of each. Python's own way hashes the name each time, in Python, some sixty times for a task.
    __hash__ = object.__hash__

    #: Written down, not yet durable.
    ACCEPTING = "accepting"
    #: The workspace is being made.
    PREPARING = "preparing"
    #: The executor was asked to start it.
    STARTING = "starting"
    #: The process runs, or its end was not yet seen.
    RUNNING = "running"
    #: The process ended; the result becomes an outcome.
    COLLECTING = "collecting"
    #: Output and artifacts are on their way.
    UPLOADING = "uploading"
    #: The final word is in the outbox; waits for ``forget``.
    REPORTED = "reported"
    #: Forgotten; nothing more happens.
    GONE = "gone"


#: Phases in which a task takes one of the host's slots and its memory.
OCCUPYING: Final = frozenset({Phase.ACCEPTING, Phase.PREPARING, Phase.STARTING, Phase.RUNNING, Phase.COLLECTING})

_SHOWN: Final = {
    Phase.ACCEPTING: State.ASSIGNED,
    Phase.PREPARING: State.PREPARING,
    Phase.STARTING: State.PREPARING,
    Phase.RUNNING: State.RUNNING,
    Phase.COLLECTING: State.FINISHING,
    Phase.UPLOADING: State.FINISHING,
}


# --- events ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """The acceptance is durable."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """The workspace is there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """An operation before the process ran failed; the task ends with this outcome."""

    outcome: wire.Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Unable:
    """This host cannot start it now, through no fault of the job; another may. Provably never started."""

    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class Interrupted:
    """The operation under way was broken off because the task is told to end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """The process runs."""

    pid: int


@dataclasses.dataclass(frozen=True, slots=True)
class StartedBefore:
    """The executor's fence says that it was started earlier: it is adopted, never started again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """Nothing of the task runs any more."""

    #: It left nothing but its result: neither files nor output.
    is_all: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Collected:
    """The outcome is known and kept on disk."""

    outcome: wire.Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Uploaded:
    """The control plane has all output and artifacts; the outcome with their final figures."""

    outcome: wire.Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants its end: the control plane, or the host because the lease runs out before it started.

    ``HOST_RESTARTED`` before it started: the host is about to go, and gives it back for another. ``CHECKPOINT``: it
    goes on elsewhere, and before it started likewise.
    """

    reason: Reason
    detail: str = ""
    #: Seconds between SIGTERM and SIGKILL, at most; None: the job's own.
    grace_seconds: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Forgotten:
    """The control plane has everything (or wants nothing more): the directory may go."""


Event = (
    Accepted | Prepared | Failed | Unable | Interrupted | Started | StartedBefore | Ended | Collected | Uploaded
    | StopAsked | Forgotten
)  # fmt: skip


# --- commands --------------------------------------------------------------------------------------------------------


class Do(enum.Enum):
    """Commands without particulars."""

    PREPARE = "prepare"
    START = "start"
    WATCH = "watch"
    COLLECT = "collect"
    UPLOAD = "upload"
    #: End the process.
    STOP = "stop"
    #: Break off the operation under way.
    INTERRUPT = "interrupt"
    #: Delete the directory, or keep it for a look when the task did not succeed.
    REMOVE = "remove"


@dataclasses.dataclass(frozen=True, slots=True)
class Say:
    """Put a report into the outbox. ``kind`` as in :class:`agentina.protocol.wire.Report`."""

    kind: str
    outcome: wire.Outcome | None = None
    detail: str = ""
    pid: int | None = None


Command = Do | Say


class Task(msgspec.Struct, frozen=True):
    """One task's state."""

    phase: Phase
    #: Told to end, and why.
    stop: StopAsked | None = None
    #: Told to be forgotten while something was still under way.
    forget: bool = False
    outcome: wire.Outcome | None = None
    #: Given back unstarted.
    returned: bool = False

    @property
    def shown(self) -> State:
        """The state as the protocol names it."""
        if self.phase in _SHOWN:
            return _SHOWN[self.phase]
        return self.outcome.state if self.outcome is not None else State.PREPARING


Step = tuple[Task, list[Command]]


def advance(task: Task, event: Event) -> Step:
    """What follows from ``event``. An event that does not fit the phase (it came late) changes nothing."""
    if task.phase is Phase.GONE:
        return task, []
    if isinstance(event, StopAsked):
        return _on_stop(task, event)
    if isinstance(event, Forgotten):
        return _on_forgotten(task)
    handler = _HANDLERS.get(task.phase)
    return (task, []) if handler is None else handler(task, event)


def _on_accepting(task: Task, event: Event) -> Step:
    if not isinstance(event, Accepted):
        return task, []
    if task.forget or task.stop is not None:
        return _end_unstarted(task)
    return msgspec.structs.replace(task, phase=Phase.PREPARING), [Do.PREPARE]


def _on_preparing(task: Task, event: Event) -> Step:
    if not isinstance(event, Prepared | Failed | Unable | Interrupted):
        return task, []
    if task.forget or task.stop is not None:
        return _end_unstarted(task)
    if isinstance(event, Prepared):
        return msgspec.structs.replace(task, phase=Phase.STARTING), [Do.START]
    return _give_up(task, event)


def _on_starting(task: Task, event: Event) -> Step:
    running = msgspec.structs.replace(task, phase=Phase.RUNNING)
    if isinstance(event, Started):
        commands: list[Command] = [Say("running", pid=event.pid), Do.WATCH]
    elif isinstance(event, StartedBefore):
        commands = [Do.WATCH]
    elif isinstance(event, Failed | Unable | Interrupted):
        return _end_unstarted(task) if task.forget or task.stop is not None else _give_up(task, event)
    else:
        return task, []
    if task.forget or task.stop is not None:
        commands.append(Do.STOP)
    return running, commands


def _on_running(task: Task, event: Event) -> Step:
    if not isinstance(event, Ended):
        return task, []
    if task.forget:
        return msgspec.structs.replace(task, phase=Phase.GONE), [Do.REMOVE]
    # Where nothing is left to collect or to send, the end itself is said at once.
    said: list[Command] = [] if event.is_all else [Say("finishing")]
    return msgspec.structs.replace(task, phase=Phase.COLLECTING), [*said, Do.COLLECT]


def _on_collecting(task: Task, event: Event) -> Step:
    if not isinstance(event, Collected):
        return task, []
    if task.forget:
        return msgspec.structs.replace(task, phase=Phase.GONE, outcome=event.outcome), [Do.REMOVE]
    return msgspec.structs.replace(task, phase=Phase.UPLOADING, outcome=event.outcome), [Do.UPLOAD]


def _on_uploading(task: Task, event: Event) -> Step:
    if not isinstance(event, Uploaded):
        return task, []
    return _finish(task, event.outcome)


_HANDLERS: Final = {
    Phase.ACCEPTING: _on_accepting,
    Phase.PREPARING: _on_preparing,
    Phase.STARTING: _on_starting,
    Phase.RUNNING: _on_running,
    Phase.COLLECTING: _on_collecting,
    Phase.UPLOADING: _on_uploading,
}


def _on_stop(task: Task, event: StopAsked) -> Step:
    if task.phase in {Phase.COLLECTING, Phase.UPLOADING, Phase.REPORTED}:
        return task, []
    # The first reason stays: a second one explains nothing that already ends. It may be in more of a hurry.
    grace = _shorter(task.stop, event)
    stopped = msgspec.structs.replace(task, stop=dataclasses.replace(task.stop or event, grace_seconds=grace))
    if task.phase is Phase.PREPARING:
        return stopped, [Do.INTERRUPT]
    if task.phase is Phase.RUNNING:
        return stopped, [Do.STOP]
    return stopped, []


def _shorter(before: StopAsked | None, event: StopAsked) -> float | None:
    said = [asked.grace_seconds for asked in (before, event) if asked is not None and asked.grace_seconds is not None]
    return min(said, default=None)


def _on_forgotten(task: Task) -> Step:
    forgotten = msgspec.structs.replace(task, forget=True)
    if task.phase is Phase.REPORTED:
        return msgspec.structs.replace(forgotten, phase=Phase.GONE), [Do.REMOVE]
    if task.phase is Phase.UPLOADING:
        return msgspec.structs.replace(forgotten, phase=Phase.GONE), [Do.INTERRUPT, Do.REMOVE]
    if task.phase is Phase.PREPARING:
        return forgotten, [Do.INTERRUPT]
    if task.phase is Phase.RUNNING:
        return forgotten, [Do.STOP]
    return forgotten, []


def _end_unstarted(task: Task) -> Step:
    """End a task that was never started because it is told to end."""
    if task.forget:
        return msgspec.structs.replace(task, phase=Phase.GONE), [Do.REMOVE]
    assert task.stop is not None
    if task.stop.reason in {Reason.HOST_RESTARTED, Reason.CHECKPOINT}:
        return _return(task, task.stop.detail)
    return _finish(task, stopped_outcome(task.stop.reason, task.stop.detail))


def _give_up(task: Task, event: Event) -> Step:
    if isinstance(event, Failed):
        return _finish(task, event.outcome)
    return _return(task, event.detail if isinstance(event, Unable) else "it was broken off before it started")


def _return(task: Task, detail: str) -> Step:
    return msgspec.structs.replace(task, phase=Phase.REPORTED, returned=True), [Say("returned", detail=detail)]


def _finish(task: Task, outcome: wire.Outcome) -> Step:
    return msgspec.structs.replace(task, phase=Phase.REPORTED, outcome=outcome), [Say("finished", outcome=outcome)]


def stopped_outcome(reason: Reason, detail: str) -> wire.Outcome:
    """The outcome of a task that was told to end before it ran."""
    state = State.LOST if reason in {Reason.LEASE_EXPIRED, Reason.AGENT_REMOVED} else State.CANCELED
    return wire.Outcome(state=state, reason=reason, detail=detail or f"It {states.REASONS[reason]} before it started.")


# --- after a restart of the daemon -----------------------------------------------------------------------------------


class Found(enum.Enum):
    """What the directory and the kernel say about an accepted task (docs/explanation/architecture.md)."""

    #: Never started.
    UNSTARTED = "unstarted"
    #: Its supervisor lives.
    RUNNING = "running"
    #: It ended while nobody looked.
    ENDED = "ended"
    #: The outcome is known; uploads or the report may be unfinished.
    COLLECTED = "collected"
    #: The final word is in the outbox or was acknowledged.
    REPORTED = "reported"
    #: It can no longer be told how it ended; the outcome says so.
    LOST = "lost"


def resume(found: Found, outcome: wire.Outcome | None = None) -> Step:
    """The state and first commands of a task found on disk; ``outcome`` for collected, reported and lost ones."""
    if found is Found.UNSTARTED:
        return Task(Phase.PREPARING), [Do.PREPARE]
    if found is Found.RUNNING:
        return Task(Phase.RUNNING), [Do.WATCH]
    if found is Found.ENDED:
        return Task(Phase.COLLECTING), [Do.COLLECT]
    if found is Found.REPORTED:
        return Task(Phase.REPORTED, outcome=outcome, returned=outcome is None), []
    assert outcome is not None
    return Task(Phase.UPLOADING, outcome=outcome), [Do.UPLOAD]
