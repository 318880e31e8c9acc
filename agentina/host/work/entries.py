"""What the daemon has in memory of one held task: a shadow of what is on disk and in the kernel."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agentina.host.work import health, records, state
from agentina.protocol import budgets, jobs, wire

if TYPE_CHECKING:
    from agentina.gateway import record as gateway_record
    from agentina.host.trees import checkpoints
    from agentina.host.work import runs
    from agentina.runners import contract as runner_contract


@dataclasses.dataclass(kw_only=True, slots=True, eq=False)
class Entry:
    """One held task."""

    task_id: str
    directory: records.TaskDirectory
    #: As written in job.json and the outbox; empty when both are damaged.
    record: bytes
    #: None when the record is damaged.
    assignment: wire.Assignment | None
    task: state.Task
    #: CLOCK_BOOTTIME seconds at which the lease ends, as far as this daemon knows; None: not since it started.
    deadline: float | None = None
    pid: int = 0
    started_ms: int | None = None
    #: Offset the output goes on from; None: not yet asked the control plane.
    sent: int | None = 0
    #: Size of the output when it was looked at last.
    seen: int = 0
    #: The piece of output on its way, if one is.
    sending: asyncio.Task[None] | None = None
    #: Its directory is one of a former task, and the usual place to work is there already, empty.
    is_furnished: bool = False
    #: Where it works, when that is not the usual place.
    workspace: Path | None = None
    #: The mirror whose objects its workspace borrows.
    mirror: Path | None = None
    #: Paths of what it left, by artifact name.
    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)
    #: What it is known by at the host's gateway; empty: it has no way out there.
    token: str = dataclasses.field(default="", repr=False)
    #: What it used of models so far, by day and model, as the gateway said it last.
    models: list[budgets.ModelUsage] = dataclasses.field(default_factory=list)
    #: How full its context is, as the gateway said last; None: it has not.
    context: gateway_record.Filled | None = None
    #: Hosts it reached through the gateway, once it has ended.
    hosts: list[str] = dataclasses.field(default_factory=list)
    #: Bytes that the gateway carried for it, once it has ended; None: not known.
    carried: gateway_record.Carried | None = None
    #: The same while it runs, as the gateway told it last.
    passed: int = 0
    #: Why the gateway holds it at a call; empty: it does not.
    parked: str = ""
    #: Its budget, where an operator changed it since.
    budget: jobs.Budget | None = None
    secrets: list[bytes] = dataclasses.field(default_factory=list)
    #: What it goes on from; None: it began anew.
    origin: checkpoints.Manifest | None = None
    #: Which program it starts, where that is not the job's own (agentina/host/work/choices.py).
    chosen: runner_contract.Chosen | None = None
    #: The above is so; otherwise it is to be read.
    is_chosen: bool = False
    #: What it prints, where its runner can read that.
    run: runs.Run | None = None
    #: How far it said it was.
    progress: wire.Progress | None = None
    #: Paths that it declared as artifacts, read when it has ended; None: not yet. None are there before its door opens.
    declared: list[str] | None = None
    #: The number of the last answer of an operator that it has.
    answered: int = 0
    #: How many of its questions it waits for just now.
    asking: int = 0
    next: state.Do | None = None
    driver: asyncio.Task[None] | None = None
    #: The driver is inside an operation, so that canceling it cancels that.
    operating: bool = False
    #: The operation is to be broken off on purpose.
    interrupted: bool = False
    #: The outbox's number of the report that gives the task back.
    returned_as: int = 0

    @property
    def job(self) -> jobs.JobSpec | None:
        """What somebody asked for."""
        return None if self.assignment is None else self.assignment.job

    @property
    def memory_bytes(self) -> int:
        """Memory promised to it."""
        return 0 if self.job is None else self.job.memory_bytes

    def account(self, *, is_whole: bool = False) -> wire.AgentRun | None:
        """What is known of an AI agent's run, in short while it goes on; None: its output cannot be read."""
        if self.run is None:
            return None
        said = self.run.summary(self.secrets) if is_whole else self.run.so_far(self.secrets)
        own = None if self.job is None or self.job.health is None else self.job.health.context_window
        tokens, window = health.fill(own=own, said=(said.context_tokens, said.context_window), metered=self.metered)
        return msgspec.structs.replace(said, context_tokens=tokens, context_window=window)

    @property
    def metered(self) -> health.Fill:
        """How full its context is by the gateway's account."""
        return (None, None) if self.context is None else (self.context.tokens, self.context.window or None)

    def keep(self, outcome: wire.Outcome, artifacts: dict[str, str]) -> None:
        """Remember what was collected, over a restart of the daemon too."""
        self.artifacts = artifacts
        self.directory.write_collection(records.Collection(outcome=outcome, paths=artifacts))

    async def wait_until_sent(self) -> None:
        """Wait for the piece of output on its way."""
        if self.sending is not None:
            await asyncio.wait({self.sending})


def secrets_of(job: jobs.JobSpec) -> list[bytes]:
    """The values to mask in a job's output."""
    return [value.encode() for value in jobs.masked_values(job)]


def from_disk(
    directory: records.TaskDirectory, record: bytes, assignment: wire.Assignment | None, *, deadline: float | None
) -> Entry:
    """The entry of a task found on disk; its phase is set when it is adopted."""
    return Entry(
        task_id=directory.path.name,
        directory=directory,
        record=record,
        assignment=assignment,
        # Nothing follows from this phase; it only takes no slot yet.
        task=state.Task(state.Phase.GONE),
        deadline=deadline,
        sent=None,
        secrets=[] if assignment is None else secrets_of(assignment.job),
    )
