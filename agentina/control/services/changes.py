"""What an operation changed that memory must follow: collected while it runs, carried out after its commit.

An operation that fails takes its changes with it, so memory never gets ahead of the database.
"""

from __future__ import annotations

import dataclasses

from agentina.control.store import engine
from agentina.protocol import budgets, wire
from agentina.protocol.states import State


@dataclasses.dataclass(frozen=True, slots=True)
class EndedTask:
    """A task that reached a final state."""

    task_id: str
    #: Row id.
    agent: int
    role: str
    state: State
    priority: int
    #: Seconds from start to end; None: it never started.
    duration: float | None
    usage: wire.Usage
    #: What an AI agent's command line said of its run; None: it was none, or said nothing.
    run: wire.AgentRun | None = None


@dataclasses.dataclass(slots=True)
class Changes:
    """Collected by operations; :meth:`agentina.control.plane.Plane.write` carries them out."""

    #: Public ids of jobs somebody may be following.
    jobs: set[str] = dataclasses.field(default_factory=set)
    #: Class and memory of each job that became ready.
    ready: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    #: Row id of each job that became queued with a delay, and the delay in seconds.
    delayed: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    #: Tasks that moved forward.
    progressed: list[tuple[str, State]] = dataclasses.field(default_factory=list)
    ended_tasks: list[EndedTask] = dataclasses.field(default_factory=list)
    ended_jobs: list[State] = dataclasses.field(default_factory=list)
    #: Kind and code of each report that was added to an anomaly; and whether any changed otherwise.
    anomalies: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    is_anomaly_changed: bool = False
    answers: list[wire.Answer] = dataclasses.field(default_factory=list)
    #: Tasks of which a checkpoint came in full.
    checkpointed: list[str] = dataclasses.field(default_factory=list)
    stops: list[wire.StopTask] = dataclasses.field(default_factory=list)
    #: Seconds from runnable to started.
    start_latencies: list[float] = dataclasses.field(default_factory=list)
    #: Role and model, and by how much what was used of it grew.
    used: list[tuple[str, str, budgets.Amounts]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What an operation works with: the transaction, the time, and where it leaves what memory must follow."""

    tx: engine.Transaction
    #: Wall time of the operation, milliseconds since the epoch.
    now_ms: int
    effects: Changes = dataclasses.field(default_factory=Changes)
