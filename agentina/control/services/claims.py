"""Jobs become tasks: what an agent's poll takes from the queue, and what a submission gives to an agent that waits."""

from __future__ import annotations

import collections
import dataclasses

from agentina.control import fleet, plane
from agentina.control.services import changes, pathclaims
from agentina.control.store import agents, engine, jobs, tasks
from agentina.protocol import wire
from agentina.protocol.states import Reason, State


@dataclasses.dataclass(frozen=True, slots=True)
class Claimed:
    """A job turned into a task by a transaction."""

    task: int
    job: jobs.Job
    #: The specification as stored.
    spec: str


@dataclasses.dataclass(slots=True)
class Reserved:
    """An agent taken from the queue of those that wait. Whoever took it must wake it in the end."""

    agent: fleet.Agent
    #: How many jobs more it can be given, and how many bytes of memory they may have together.
    room: int
    memory_bytes: int


def takes_work(agent: fleet.Agent) -> bool:
    """Whether the agent's newest poll may be given tasks."""
    return agent.state == "active" and room(agent) > 0


def room(agent: fleet.Agent) -> int:
    """How many tasks may be given: what the host offers, the license allows, and one answer carries."""
    return min(agent.poll_slots, agent.license_tasks - len(agent.held), wire.MAX_ASSIGNMENTS)


class Reservations:
    """Finds agents whose polls wait for the jobs of one transaction: each gets one before any gets a second."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        #: Those that have room, the next one first.
        self._open: collections.deque[Reserved] = collections.deque()
        #: Every agent that was taken out of the queue.
        self.agents: list[fleet.Agent] = []

    def find(self, tx: engine.Transaction, class_id: int, memory_bytes: int) -> fleet.Agent | None:
        """The agent to give such a job to; None: there is none. What it offers is counted down."""
        reserved = self._reserve(tx, class_id, memory_bytes) or self._again(class_id, memory_bytes)
        if reserved is None:
            return None
        reserved.room -= 1
        reserved.memory_bytes -= memory_bytes
        if reserved.room > 0:
            self._open.append(reserved)
        return reserved.agent

    def wake(self) -> None:
        """Let them all look: at what they were given, or for something else."""
        for agent in self.agents:
            agent.wake()

    def _reserve(self, tx: engine.Transaction, class_id: int, memory_bytes: int) -> Reserved | None:
        """The longest waiting agent that can run such a job and, as the database says, still may."""
        agent = self._control.fleet.take_waiting(class_id, memory_bytes)
        if agent is None:
            return None
        self.agents.append(agent)
        if agents.standing(tx, agent.id) != (agent.session, "active") or not takes_work(agent):
            return None
        return Reserved(agent, room(agent), agent.poll_memory)

    def _again(self, class_id: int, memory_bytes: int) -> Reserved | None:
        """One that was given a job of this transaction before."""
        for reserved in self._open:
            if class_id in reserved.agent.classes and memory_bytes <= reserved.memory_bytes:
                self._open.remove(reserved)
                return reserved
        return None


def take(work: changes.Work, agent: fleet.Agent) -> list[Claimed]:
    """Turn waiting jobs into tasks of the agent: by priority and age, as many as it has room for."""
    chosen, left = _choose(work.tx, agent)
    work.effects.ready.extend(left)
    claimed = []
    line = pathclaims.Line(work.tx)
    for job in chosen:
        if not pathclaims.may_run(work, job, line):
            continue
        assign(work, agent, job)
        jobs.save(work.tx, job)
        claimed.append(record(work, agent, job, jobs.spec(work.tx, job.id)))
    return claimed


def assign(work: changes.Work, agent: fleet.Agent, job: jobs.Job) -> None:
    """Take a job out of the queue for its next task, in memory."""
    job.state, job.reason, job.detail, job.ready = State.ASSIGNED, Reason.ASSIGNED, "", False
    job.tasks += 1
    job.tell(f"given to {agent.name}", state=State.ASSIGNED, task=job.tasks, now_ms=work.now_ms)
    work.effects.jobs.add(job.public_id)


def record(work: changes.Work, agent: fleet.Agent, job: jobs.Job, spec: str) -> Claimed:
    """Store the newest task of a stored job."""
    task = tasks.insert(
        work.tx, job=job.id, number=job.tasks, agent=agent.id, session=agent.session, poll=agent.poll,
        now_ms=work.now_ms,
    )  # fmt: skip
    return Claimed(task, job, spec)


def hold(control: plane.Plane, agent: fleet.Agent, claimed: list[Claimed]) -> None:
    """Let memory follow, once the tasks are durable."""
    deadline = control.clock.boot() + control.settings.lease_seconds
    for item in claimed:
        job = item.job
        agent.poll_slots = max(agent.poll_slots - 1, 0)
        agent.poll_memory = max(agent.poll_memory - job.memory_bytes, 0)
        held = fleet.Held(
            agent=agent, task=item.task, task_id=f"{job.public_id}.{job.tasks}", job=job.id, job_id=job.public_id,
            memory_bytes=job.memory_bytes, state=State.ASSIGNED, deadline=deadline, spec=item.spec,
        )  # fmt: skip
        control.fleet.hold(held)


def _choose(tx: engine.Transaction, agent: fleet.Agent) -> tuple[list[jobs.Job], list[tuple[int, int]]]:
    """The jobs to take, by priority and age, and one of those left behind, to wake the next agent for."""
    most, memory = room(agent), agent.poll_memory
    if most <= 0:
        return [], []
    waiting = [job for class_id in agent.classes for job in jobs.ready(tx, class_id, memory, most + 1)]
    waiting.sort(key=_by_priority_and_age)
    chosen: list[jobs.Job] = []
    left: dict[int, int] = {}
    for job in waiting:
        if len(chosen) < most and job.memory_bytes <= memory:
            chosen.append(job)
            memory -= job.memory_bytes
        else:
            left.setdefault(job.class_id, job.memory_bytes)
    return chosen, list(left.items())


def _by_priority_and_age(job: jobs.Job) -> tuple[int, int]:
    return -job.priority, job.id
