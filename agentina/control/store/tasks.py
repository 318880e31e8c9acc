"""Tasks (attempts of jobs) and the artifacts they left.

An operation reads a :class:`Task` with its job, changes both in memory and writes them back once with :func:`save`,
before it reads the same again.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from agentina.control.store import engine, jobs
from agentina.protocol.states import Reason, State


@dataclasses.dataclass(slots=True)
class Task:
    """A task with its job. The other fields are columns (001_pre_initial.sql)."""

    job: jobs.Job
    id: int
    job_id: int
    number: int
    agent_id: int
    state: State
    reason: Reason
    detail: str
    started_ms: int | None
    ended_ms: int | None
    pid: int | None
    outcome: str | None
    counted: bool
    host_ended: bool
    stop_reason: str | None
    progress: str | None

    @property
    def public_id(self) -> str:
        """As people and agents know it."""
        return f"{self.job.public_id}.{self.number}"

    @property
    def is_newest(self) -> bool:
        """Whether its job goes by it: no other task was made after it."""
        return self.number == self.job.tasks


_FIELDS: Final = [field.name for field in dataclasses.fields(Task)][1:]
_COLUMNS: Final = ", ".join(f"t.{name}" for name in _FIELDS)
_SELECT: Final = f"SELECT {_COLUMNS}, {jobs.COLUMNS} FROM"
_WITH_JOB: Final = f"{_SELECT} tasks t JOIN jobs j ON j.id = t.job_id"
_FIND: Final = f"{_WITH_JOB} WHERE j.public_id = :job AND t.number = :number"
_BY_ID: Final = f"{_WITH_JOB} WHERE t.id = :id"
_HELD_BY: Final = f"{_WITH_JOB} WHERE t.agent_id = :agent AND t.ended_ms IS NULL ORDER BY t.id"
_HELD: Final = f"{_WITH_JOB} WHERE t.ended_ms IS NULL ORDER BY t.id"


def _from_row(row: engine.Row) -> Task:
    count = len(_FIELDS)
    task = Task(jobs.from_row(row[count:]), *row[:count])
    task.state, task.reason = State(task.state), Reason(task.reason)
    return task


def find(tx: engine.Transaction, job: str, number: int) -> Task | None:
    """The task ``number`` of the job with public id ``job``."""
    row = tx.one(_FIND, job=job, number=number)
    return None if row is None else _from_row(row)


def by_id(tx: engine.Transaction, task: int) -> Task:
    """A task that exists."""
    row = tx.one(_BY_ID, id=task)
    assert row is not None, task
    return _from_row(row)


def held_by(tx: engine.Transaction, agent: int) -> list[Task]:
    """The tasks of an agent that have not ended."""
    return [_from_row(row) for row in tx.all(_HELD_BY, agent=agent)]


def held(tx: engine.Transaction) -> list[Task]:
    """All tasks that have not ended."""
    return [_from_row(row) for row in tx.all(_HELD)]


def insert(tx: engine.Transaction, *, job: int, number: int, agent: int, session: int, poll: int, now_ms: int) -> int:
    """Store an assigned task; its row id is returned."""
    return tx.insert(
        "INSERT INTO tasks (job_id, number, agent_id, session, poll, state, reason, assigned_ms)"
        " VALUES (:job, :number, :agent, :session, :poll, 'assigned', 'assigned', :now)",
        job=job, number=number, agent=agent, session=session, poll=poll, now=now_ms,
    )  # fmt: skip


def save(tx: engine.Transaction, task: Task) -> None:
    """Write back what may have changed of a task and of its job."""
    tx.execute(
        "UPDATE tasks SET state = :state, reason = :reason, detail = :detail, started_ms = :started_ms,"
        " ended_ms = :ended_ms, pid = :pid, outcome = :outcome, counted = :counted, host_ended = :host_ended,"
        " stop_reason = :stop_reason, progress = :progress WHERE id = :id",
        id=task.id, state=task.state.value, reason=task.reason.value, detail=task.detail, started_ms=task.started_ms,
        ended_ms=task.ended_ms, pid=task.pid, outcome=task.outcome, counted=task.counted, host_ended=task.host_ended,
        stop_reason=task.stop_reason, progress=task.progress,
    )  # fmt: skip
    jobs.save(tx, task.job)


def of_job(tx: engine.Transaction, job: int) -> list[engine.Row]:
    """The newest tasks of a job, oldest of them first, with their agents."""
    rows = tx.all(
        "SELECT t.*, a.public_id AS agent, a.hostname, a.instance FROM tasks t JOIN agents a ON a.id = t.agent_id"
        " WHERE t.job_id = :job ORDER BY t.number DESC LIMIT 100",
        job=job,
    )
    return rows[::-1]


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
    row = tx.one(
        "SELECT count(*), coalesce(sum(size), 0) FROM artifacts WHERE task_id = :task AND kind != 'checkpoint'",
        task=task,
    )
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
        "SELECT a.*, t.number FROM artifacts a JOIN tasks t ON t.id = a.task_id"
        " WHERE a.complete AND a.kind != 'checkpoint' AND a.task_id ="
        " (SELECT max(t2.id) FROM tasks t2 JOIN artifacts a2 ON a2.task_id = t2.id"
        " AND a2.complete AND a2.kind != 'checkpoint' WHERE t2.job_id = :job) ORDER BY a.name LIMIT 2000",
        job=job,
    )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoints(tx: engine.Transaction, job: int, *, before: int | None = None) -> list[engine.Row]:
    """The complete checkpoints of a job, the newest first; ``before``: of tasks with a smaller number."""
    # Their names sort as they were taken.
    return tx.all(
        "SELECT a.*, t.number FROM artifacts a JOIN tasks t ON t.id = a.task_id"
        " WHERE t.job_id = :job AND a.complete AND a.kind = 'checkpoint' AND (:before IS NULL OR t.number < :before)"
        " ORDER BY t.number DESC, a.name DESC LIMIT 100",
        job=job, before=before,
    )  # fmt: skip


def unfinished_checkpoints(tx: engine.Transaction, task: int, *, besides: str) -> list[str]:
    """Names of a task's checkpoints that were announced and did not come in full."""
    rows = tx.all(
        "SELECT name FROM artifacts WHERE task_id = :task AND NOT complete AND kind = 'checkpoint' AND name != :name",
        task=task, name=besides,
    )  # fmt: skip
    return [str(row["name"]) for row in rows]


def drop_artifact(tx: engine.Transaction, task: int, name: str) -> None:
    """Forget an artifact; its file is the caller's business."""
    tx.execute("DELETE FROM artifacts WHERE task_id = :task AND name = :name", task=task, name=name)


def useless_checkpoints(tx: engine.Transaction, *, before_ms: int, limit: int) -> list[engine.Row]:
    """Checkpoints of jobs that have ended, and do not go on; what may still be wanted is among them when it is old.

    That is what came in part, for its host may be sending the rest, and what belongs to a job that was lost, which
    somebody may retry.
    """
    return tx.all(
        "SELECT a.task_id, a.name, t.number, j.public_id AS job FROM artifacts a"
        " JOIN tasks t ON t.id = a.task_id JOIN jobs j ON j.id = t.job_id"
        " WHERE a.kind = 'checkpoint' AND j.ended_ms IS NOT NULL"
        " AND (j.ended_ms < :before OR (a.complete AND j.state != :lost)) LIMIT :limit",
        before=before_ms, lost=State.LOST.value, limit=limit,
    )  # fmt: skip


def wish_checkpoint(tx: engine.Transaction, task: int) -> None:
    """Remember that somebody wants a checkpoint of a task."""
    tx.execute("INSERT OR IGNORE INTO checkpoint_wishes (task_id) VALUES (:task)", task=task)


def wished_checkpoints(tx: engine.Transaction) -> set[int]:
    """Row ids of the tasks of which somebody wants a checkpoint."""
    return {int(row[0]) for row in tx.all("SELECT task_id FROM checkpoint_wishes")}


def forget_wish(tx: engine.Transaction, task: int) -> None:
    """The agent has heard it."""
    tx.execute("DELETE FROM checkpoint_wishes WHERE task_id = :task", task=task)


def forget_vain_wishes(tx: engine.Transaction) -> None:
    """Their tasks have ended, and their agents never heard of them."""
    tx.execute("DELETE FROM checkpoint_wishes WHERE task_id IN (SELECT id FROM tasks WHERE ended_ms IS NOT NULL)")


def work_began_ms(tx: engine.Transaction, task: Task) -> int | None:
    """When the work of a task began: with the first of the tasks of which each went on from the one before."""
    row = tx.one(
        "SELECT min(started_ms) FROM tasks WHERE job_id = :job AND number < :number AND number > (SELECT"
        " coalesce(max(number), 0) FROM tasks WHERE job_id = :job AND number < :number AND reason != :returned"
        " AND state NOT IN (:lost, :moved))",
        job=task.job_id, number=task.number, returned=Reason.RETURNED_UNSTARTED.value, lost=State.LOST.value,
        moved=State.CHECKPOINTED.value,
    )  # fmt: skip
    assert row is not None
    return task.started_ms if row[0] is None else int(row[0])


def state_before(tx: engine.Transaction, job: int, number: int) -> State | None:
    """How the last task before ``number`` ended that was started; None: there was none."""
    row = tx.one(
        "SELECT state FROM tasks WHERE job_id = :job AND number < :number AND reason != :returned"
        " ORDER BY number DESC LIMIT 1",
        job=job, number=number, returned=Reason.RETURNED_UNSTARTED.value,
    )  # fmt: skip
    return None if row is None else State(row[0])
