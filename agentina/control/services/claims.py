"""Jobs become tasks: what an agent's poll takes from the queue, and what a submission gives to an agent that waits."""

from __future__ import annotations

import dataclasses

from agentina.control import fleet, plane
from agentina.control.services import changes
from agentina.control.store import agents, engine, jobs, tasks
from agentina.protocol import wire
from agentina.protocol.states import State


@dataclasses.dataclass(frozen=True, slots=True)
class Claimed:
    """A job turned into a task by a transaction."""

    task: int
    number: int
    row: engine.Row


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
    return [_assign(work, agent, row) for row in chosen]


def give(work: changes.Work, reserved: Reserved, job: engine.Row) -> Claimed | None:
    """Turn one job into a task of the agent reserved for it; None: it cannot take it any more."""
    agent = reserved.agent
    if agents.standing(work.tx, agent.id) != (reserved.session, "active"):
        return None
    if agent.poll != reserved.poll or not takes_work(agent):
        return None
    return _assign(work, agent, job)


def hold(control: plane.Plane, agent: fleet.Agent, claimed: list[Claimed]) -> None:
    """Let memory follow, once the tasks are durable."""
    deadline = control.clock.boot() + control.settings.lease_seconds
    for item in claimed:
        public_id, memory_bytes = item.row["public_id"], item.row["memory_bytes"]
        agent.poll_slots = max(agent.poll_slots - 1, 0)
        agent.poll_memory = max(agent.poll_memory - memory_bytes, 0)
        held = fleet.Held(
            agent=agent, task=item.task, task_id=f"{public_id}.{item.number}", job=item.row["id"], job_id=public_id,
            memory_bytes=memory_bytes, state=State.ASSIGNED, deadline=deadline, spec=item.row["spec"],
        )  # fmt: skip
        control.fleet.hold(held)


def _choose(tx: engine.Transaction, agent: fleet.Agent) -> tuple[list[engine.Row], list[tuple[int, int]]]:
    """The jobs to take, by priority and age, and one of those left behind, to wake the next agent for."""
    most, memory = room(agent), agent.poll_memory
    if most <= 0:
        return [], []
    rows = [row for class_id in agent.classes for row in jobs.ready(tx, class_id, memory, most + 1)]
    rows.sort(key=_by_priority_and_age)
    chosen: list[engine.Row] = []
    left: dict[int, int] = {}
    for row in rows:
        if len(chosen) < most and row["memory_bytes"] <= memory:
            chosen.append(row)
            memory -= row["memory_bytes"]
        else:
            left.setdefault(row["class_id"], row["memory_bytes"])
    return chosen, list(left.items())


def _by_priority_and_age(row: engine.Row) -> tuple[int, int]:
    return -row["priority"], row["id"]


def _assign(work: changes.Work, agent: fleet.Agent, row: engine.Row) -> Claimed:
    tx, number = work.tx, row["tasks"] + 1
    jobs.set_assigned(tx, row["id"], number)
    task = tasks.insert(
        tx, job=row["id"], number=number, agent=agent.id, session=agent.session, poll=agent.poll, now_ms=work.now_ms
    )
    text = f"given to {agent.name}"
    jobs.add_event(tx, row["id"], text, state=State.ASSIGNED, task=number, now_ms=work.now_ms)
    work.effects.jobs.add(row["public_id"])
    return Claimed(task, number, row)
