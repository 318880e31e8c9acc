"""Tasks (attempts of jobs) and the artifacts they left."""

from __future__ import annotations

from typing import Final

from agentina.control.store import engine
from agentina.protocol.states import Reason, State


def insert(tx: engine.Transaction, *, job: int, number: int, agent: int, session: int, poll: int, now_ms: int) -> int:
    """Store an assigned task; its row id is returned."""
    row = tx.one(
        "INSERT INTO tasks (job_id, number, agent_id, session, poll, state, reason, assigned_ms)"
        " VALUES (:job, :number, :agent, :session, :poll, 'assigned', 'assigned', :now) RETURNING id",
        job=job, number=number, agent=agent, session=session, poll=poll, now=now_ms,
    )  # fmt: skip
    assert row is not None
    return int(row[0])


#: A task with what decisions about it need of its job.
_WITH_JOB: Final = (
    "SELECT t.id, t.job_id, t.number, t.agent_id, t.session, t.poll, t.state, t.reason, t.detail, t.assigned_ms,"
    " t.started_ms, t.ended_ms, t.counted, t.stop_reason, t.host_ended, t.outcome,"
    " j.public_id AS job, j.runnable_ms, j.state AS job_state, j.tasks AS newest, j.memory_bytes, j.role, j.priority"
    " FROM tasks t JOIN jobs j ON j.id = t.job_id"
)


def find(tx: engine.Transaction, job: str, number: int) -> engine.Row | None:
    """The task ``number`` of the job with public id ``job``."""
    return tx.one(f"{_WITH_JOB} WHERE j.public_id = :job AND t.number = :number", job=job, number=number)


def by_id(tx: engine.Transaction, task: int) -> engine.Row:
    """A task that exists."""
    row = tx.one(f"{_WITH_JOB} WHERE t.id = :id", id=task)
    assert row is not None, task
    return row


def held_by(tx: engine.Transaction, agent: int) -> list[engine.Row]:
    """The tasks of an agent that have not ended."""
    return tx.all(f"{_WITH_JOB} WHERE t.agent_id = :agent AND t.ended_ms IS NULL ORDER BY t.id", agent=agent)


def held(tx: engine.Transaction) -> list[engine.Row]:
    """All tasks that have not ended."""
    return tx.all(f"{_WITH_JOB} WHERE t.ended_ms IS NULL ORDER BY t.id")


def spec(tx: engine.Transaction, job: int) -> str:
    """The stored specification of a task's job."""
    row = tx.one("SELECT spec FROM jobs WHERE id = :id", id=job)
    assert row is not None, job
    return str(row[0])


def of_job(tx: engine.Transaction, job: int) -> list[engine.Row]:
    """The newest tasks of a job, oldest of them first, with their agents."""
    rows = tx.all(
        "SELECT t.*, a.public_id AS agent, a.hostname, a.instance FROM tasks t JOIN agents a ON a.id = t.agent_id"
        " WHERE t.job_id = :job ORDER BY t.number DESC LIMIT 100",
        job=job,
    )
    return rows[::-1]


def set_progress(
    tx: engine.Transaction, task: int, state: State, *, started_ms: int | None = None, pid: int | None = None
) -> None:
    """Move a task forward; from here its attempt counts."""
    tx.execute(
        "UPDATE tasks SET state = :state, reason = :state, started_ms = coalesce(started_ms, :started),"
        " pid = coalesce(:pid, pid), counted = 1 WHERE id = :id",
        id=task, state=state.value, started=started_ms, pid=pid,
    )  # fmt: skip


def set_ended(
    tx: engine.Transaction, task: int, *, state: State, reason: Reason, detail: str, counted: bool, now_ms: int
) -> None:
    """Give a task its final state."""
    tx.execute(
        "UPDATE tasks SET state = :state, reason = :reason, detail = :detail, counted = :counted, ended_ms = :now"
        " WHERE id = :id",
        id=task, state=state.value, reason=reason.value, detail=detail, counted=int(counted), now=now_ms,
    )  # fmt: skip


def set_outcome(tx: engine.Transaction, task: int, outcome: str) -> None:
    """Keep what the host said about the end. The first word counts."""
    tx.execute(
        "UPDATE tasks SET host_ended = 1, outcome = coalesce(outcome, :outcome) WHERE id = :id",
        id=task, outcome=outcome,
    )  # fmt: skip


def set_stop(tx: engine.Transaction, task: int, reason: Reason) -> None:
    """Remember that the agent is to end it."""
    tx.execute(
        "UPDATE tasks SET stop_reason = coalesce(stop_reason, :reason) WHERE id = :id", id=task, reason=reason.value
    )


# --- artifacts -------------------------------------------------------------------------------------------------------


def announce_artifact(tx: engine.Transaction, task: int, *, name: str, size: int, sha256: str, kind: str) -> engine.Row:
    """Store (or find) an artifact's record; one announced differently starts again."""
    row = tx.one(
        "INSERT INTO artifacts (task_id, name, size, sha256, kind) VALUES (:task, :name, :size, :sha256, :kind)"
        " ON CONFLICT (task_id, name) DO UPDATE SET size = :size, sha256 = :sha256, kind = :kind,"
        " complete = (complete AND sha256 = :sha256 AND size = :size)"
        " RETURNING task_id, name, size, sha256, kind, complete",
        task=task, name=name, size=size, sha256=sha256, kind=kind,
    )  # fmt: skip
    assert row is not None
    return row


def artifact(tx: engine.Transaction, task: int, name: str) -> engine.Row | None:
    """One artifact's record."""
    return tx.one("SELECT * FROM artifacts WHERE task_id = :task AND name = :name", task=task, name=name)


def artifact_totals(tx: engine.Transaction, task: int) -> tuple[int, int]:
    """How many artifacts a task announced, and their bytes together."""
    row = tx.one("SELECT count(*), coalesce(sum(size), 0) FROM artifacts WHERE task_id = :task", task=task)
    assert row is not None
    return int(row[0]), int(row[1])


def complete_artifact(tx: engine.Transaction, task: int, name: str, sha256: str) -> None:
    """All bytes of it are stored and match."""
    tx.execute(
        "UPDATE artifacts SET complete = 1 WHERE task_id = :task AND name = :name AND sha256 = :sha256",
        task=task, name=name, sha256=sha256,
    )  # fmt: skip


def artifacts_of_job(tx: engine.Transaction, job: int) -> list[engine.Row]:
    """Complete artifacts of a job's newest task that has any."""
    return tx.all(
        "SELECT a.*, t.number FROM artifacts a JOIN tasks t ON t.id = a.task_id WHERE a.complete AND a.task_id ="
        " (SELECT max(t2.id) FROM tasks t2 JOIN artifacts a2 ON a2.task_id = t2.id AND a2.complete"
        " WHERE t2.job_id = :job) ORDER BY a.name LIMIT 2000",
        job=job,
    )
