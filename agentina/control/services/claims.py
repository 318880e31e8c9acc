"""Jobs become tasks: what an agent's poll takes from the queue, and what a submission gives to an agent that waits."""

from __future__ import annotations

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


@dataclasses.dataclass(frozen=True, slots=True)
class Reserved:
    """An agent taken from the queue of those that wait, for one job. Whoever took it must wake it in the end."""

    agent: fleet.Agent
    session: int
    poll: int


def takes_work(agent: fleet.Agent) -> bool:
    """Whether the agent's newest poll may be given tasks."""
    return agent.state == "active" and room(agent) > 0


def room(agent: fleet.Agent) -> int:
    """How many tasks may be given: what the host offers, the license allows, and one answer carries."""
    return min(agent.poll_slots, agent.license_tasks - len(agent.held), wire.MAX_ASSIGNMENTS)


def reserve(control: plane.Plane, class_id: int, memory_bytes: int) -> Reserved | None:
    """Take the longest waiting agent that can run such a job; None: there is none."""
    agent = control.fleet.take_waiting(class_id, memory_bytes)
    if agent is None:
        return None
    return Reserved(agent, agent.session, agent.poll)


def take(work: changes.Work, agent: fleet.Agent) -> list[Claimed]:
    """Turn waiting jobs into tasks of the agent: by priority and age, as many as it has room for."""
    chosen, left = _choose(work.tx, agent)
    work.effects.ready.extend(left)
    claimed = []
    for job in chosen:
        if not pathclaims.may_run(work, job):
            continue
        assign(work, agent, job)
        jobs.save(work.tx, job)
        claimed.append(record(work, agent, job, jobs.spec(work.tx, job.id)))
    return claimed


def is_free(tx: engine.Transaction, reserved: Reserved) -> bool:
    """Whether the agent reserved for a job can still take it."""
    agent = reserved.agent
    if agents.standing(tx, agent.id) != (reserved.session, "active"):
        return False
    return agent.poll == reserved.poll and takes_work(agent)


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
