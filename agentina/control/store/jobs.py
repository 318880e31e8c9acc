"""Jobs, their needs, their timeline, and the classes the queue is sorted into."""

from __future__ import annotations

import dataclasses
from typing import Final

from agentina.control.store import engine
from agentina.protocol.states import Reason, State

#: Most lines of one job's timeline that are kept; an agent that reports without end fills no disk.
MAX_EVENTS: Final = 2000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """The values of a job to insert."""

    public_id: str
    organization_id: int
    class_id: int
    name: str
    role: str | None
    spec: str
    priority: int
    memory_bytes: int
    submission_key: str | None
    submission_sha256: str | None


def insert(tx: engine.Transaction, job: NewJob, *, needs_left: int, now_ms: int) -> engine.Row:
    """Store a queued job; what a claim needs of its row is returned, as :func:`ready` does."""
    reason = Reason.WAITING_FOR_NEEDS if needs_left else Reason.WAITING_FOR_AGENT
    row = tx.one(
        "INSERT INTO jobs (public_id, organization_id, class_id, name, role, spec, priority, memory_bytes, state,"
        " reason, ready, needs_left, runnable_ms, created_ms, submission_key, submission_sha256)"
        " VALUES (:public_id, :organization, :class, :name, :role, :spec, :priority, :memory, 'queued',"
        " :reason, :ready, :needs_left, :now, :now, :key, :sha256)"
        " RETURNING id, public_id, class_id, spec, priority, memory_bytes, tasks, ready",
        public_id=job.public_id, organization=job.organization_id, **{"class": job.class_id},
        name=job.name, role=job.role, spec=job.spec, priority=job.priority, memory=job.memory_bytes,
        reason=reason.value, ready=0 if needs_left else 1, needs_left=needs_left, now=now_ms,
        key=job.submission_key, sha256=job.submission_sha256,
    )  # fmt: skip
    assert row is not None
    return row


def by_public_id(tx: engine.Transaction, public_id: str) -> engine.Row | None:
    """The whole row of a job."""
    return tx.one("SELECT * FROM jobs WHERE public_id = :id", id=public_id)


def by_id(tx: engine.Transaction, job: int) -> engine.Row:
    """The whole row of a job that exists."""
    row = tx.one("SELECT * FROM jobs WHERE id = :id", id=job)
    assert row is not None, job
    return row


def by_submission(tx: engine.Transaction, organization: int, key: str) -> engine.Row | None:
    """The job an idempotency key made."""
    return tx.one(
        "SELECT public_id, submission_sha256 FROM jobs"
        " WHERE organization_id = :organization AND submission_key = :key",
        organization=organization, key=key,
    )  # fmt: skip


_SUMMARY: Final = (
    "SELECT j.id, j.public_id, j.name, o.name AS organization, j.state, j.reason, j.detail, j.role, j.priority,"
    " j.created_ms, j.started_ms, j.ended_ms, j.attempts, j.tasks, j.dead_letter, a.public_id AS agent_id,"
    " a.hostname AS agent_hostname, a.instance AS agent_instance"
    " FROM jobs j JOIN organizations o ON o.id = j.organization_id"
    " LEFT JOIN tasks t ON t.job_id = j.id AND t.number = j.tasks"
    " LEFT JOIN agents a ON a.id = t.agent_id"
)


def summary(tx: engine.Transaction, job: int) -> engine.Row:
    """One job as lists show it."""
    row = tx.one(f"{_SUMMARY} WHERE j.id = :id", id=job)
    assert row is not None, job
    return row


def summaries(
    tx: engine.Transaction, *, state: str | None, organization: str | None, before: int | None, limit: int
) -> list[engine.Row]:
    """A page of jobs, newest first."""
    conditions = ["j.id < :before" if before is not None else "1"]
    if state is not None:
        conditions.append("j.state = :state")
    if organization is not None:
        conditions.append("o.name = :organization")
    sql = f"{_SUMMARY} WHERE {' AND '.join(conditions)} ORDER BY j.id DESC LIMIT :limit"
    return tx.all(sql, before=before, state=state, organization=organization, limit=limit)


# --- the queue ---------------------------------------------------------------------------------------------------


def ensure_class(tx: engine.Transaction, organization: int, *, role: str, labels: str, runner: str) -> engine.Row:
    """The class with these properties, made when it is new."""
    values = {"organization": organization, "role": role, "labels": labels, "runner": runner}
    row = tx.one(
        "SELECT * FROM classes WHERE organization_id = :organization AND role = :role AND labels = :labels"
        " AND runner = :runner",
        **values,
    )
    if row is None:
        row = tx.one(
            "INSERT INTO classes (organization_id, role, labels, runner)"
            " VALUES (:organization, :role, :labels, :runner) RETURNING *",
            **values,
        )
    assert row is not None
    return row


def classes(tx: engine.Transaction) -> list[engine.Row]:
    """All classes."""
    return tx.all("SELECT id, organization_id, role, labels, runner FROM classes ORDER BY id")


def is_any_ready(tx: engine.Transaction, class_id: int, memory_bytes: int) -> bool:
    """Whether a job of the class waits that fits."""
    sql = "SELECT 1 FROM jobs WHERE ready = 1 AND class_id = :class AND memory_bytes <= :memory LIMIT 1"
    return tx.one(sql, **{"class": class_id}, memory=memory_bytes) is not None


def ready(tx: engine.Transaction, class_id: int, memory_bytes: int, limit: int) -> list[engine.Row]:
    """The first jobs of a class that wait for an agent and fit, by priority and age."""
    return tx.all(
        "SELECT id, public_id, class_id, spec, priority, memory_bytes, tasks, ready"
        " FROM jobs WHERE ready = 1 AND class_id = :class AND memory_bytes <= :memory"
        " ORDER BY priority DESC, id LIMIT :limit",
        **{"class": class_id}, memory=memory_bytes, limit=limit,
    )  # fmt: skip


def backing_off(tx: engine.Transaction) -> list[engine.Row]:
    """Queued jobs whose backoff is not over."""
    return tx.all(
        "SELECT id, runnable_ms FROM jobs WHERE state = 'queued' AND ready = 0 AND needs_left = 0 ORDER BY runnable_ms"
    )


def end_backoff(tx: engine.Transaction, job: int) -> engine.Row | None:
    """Make a job ready whose backoff is over; None when it is no longer backing off."""
    return tx.one(
        "UPDATE jobs SET ready = 1, reason = 'waiting-for-agent'"
        " WHERE id = :id AND state = 'queued' AND ready = 0 AND needs_left = 0 RETURNING class_id, memory_bytes",
        id=job,
    )


def pending(tx: engine.Transaction) -> list[engine.Row]:
    """How many jobs wait, by organization and role."""
    return tx.all(
        "SELECT o.name AS organization, c.role, q.pending FROM"
        " (SELECT class_id, count(*) AS pending FROM jobs WHERE ready = 1 GROUP BY class_id) q"
        " JOIN classes c ON c.id = q.class_id JOIN organizations o ON o.id = c.organization_id"
    )


# --- changes of state ------------------------------------------------------------------------------------------------


def set_assigned(tx: engine.Transaction, job: int, number: int) -> None:
    """Take a job out of the queue for its task ``number``."""
    tx.execute(
        "UPDATE jobs SET state = 'assigned', reason = 'assigned', detail = '', ready = 0, tasks = :number"
        " WHERE id = :id",
        id=job, number=number,
    )  # fmt: skip


def set_progress(tx: engine.Transaction, job: int, state: State, *, started_ms: int | None, counted: bool) -> None:
    """Follow the job's current task. ``counted``: this is when its attempt begins to count."""
    tx.execute(
        "UPDATE jobs SET state = :state, reason = :state, attempts = attempts + :counted,"
        " returns = CASE WHEN :state = 'running' THEN 0 ELSE returns END, started_ms = coalesce(started_ms, :started)"
        " WHERE id = :id",
        id=job, state=state.value, started=started_ms, counted=int(counted),
    )  # fmt: skip


def set_queued(tx: engine.Transaction, job: int, *, reason: Reason, detail: str, ready: bool, runnable_ms: int) -> None:
    """Put a job back into the queue."""
    tx.execute(
        "UPDATE jobs SET state = 'queued', reason = :reason, detail = :detail, ready = :ready, runnable_ms = :runnable"
        " WHERE id = :id",
        id=job, reason=reason.value, detail=detail, ready=int(ready), runnable=runnable_ms,
    )  # fmt: skip


def set_ended(
    tx: engine.Transaction, job: int, *, state: State, reason: Reason, detail: str, dead_letter: bool, now_ms: int
) -> None:
    """Give a job its final state."""
    tx.execute(
        "UPDATE jobs SET state = :state, reason = :reason, detail = :detail, ready = 0, dead_letter = :dead,"
        " ended_ms = :now WHERE id = :id",
        id=job, state=state.value, reason=reason.value, detail=detail, dead=int(dead_letter), now=now_ms,
    )  # fmt: skip


def set_cancel_requested(tx: engine.Transaction, job: int) -> None:
    """Remember that somebody wants it ended."""
    tx.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = :id", id=job)


def adjust_attempts(tx: engine.Transaction, job: int, by: int) -> None:
    """Correct the count of started attempts."""
    tx.execute("UPDATE jobs SET attempts = attempts + :by WHERE id = :id", id=job, by=by)


def count_return(tx: engine.Transaction, job: int) -> None:
    """One more assignment came back unstarted."""
    tx.execute("UPDATE jobs SET returns = returns + 1 WHERE id = :id", id=job)


def reopen(tx: engine.Transaction, job: int, *, needs_left: int, now_ms: int) -> None:
    """Queue an ended job again at a person's wish, with a fresh budget of attempts."""
    reason = Reason.WAITING_FOR_NEEDS if needs_left else Reason.WAITING_FOR_AGENT
    tx.execute(
        "UPDATE jobs SET state = 'queued', reason = :reason, detail = '', ready = :ready, needs_left = :left,"
        " runnable_ms = :now, ended_ms = NULL, dead_letter = 0, cancel_requested = 0, attempts_before = attempts,"
        " returns = 0 WHERE id = :id",
        id=job, reason=reason.value, ready=0 if needs_left else 1, left=needs_left, now=now_ms,
    )  # fmt: skip


# --- needs -------------------------------------------------------------------------------------------------------


def add_need(tx: engine.Transaction, job: int, needed: int) -> None:
    """``job`` runs only after ``needed`` has succeeded."""
    tx.execute("INSERT OR IGNORE INTO needs (needed_id, job_id) VALUES (:needed, :job)", needed=needed, job=job)


def needs(tx: engine.Transaction, job: int) -> list[engine.Row]:
    """The jobs ``job`` needs."""
    return tx.all(
        "SELECT j.id, j.public_id, j.state FROM needs n JOIN jobs j ON j.id = n.needed_id WHERE n.job_id = :job"
        " ORDER BY j.id",
        job=job,
    )


def queued_dependents(tx: engine.Transaction, job: int) -> list[engine.Row]:
    """Jobs still waiting for ``job``."""
    return tx.all(
        "SELECT j.id, j.public_id FROM needs n JOIN jobs j ON j.id = n.job_id"
        " WHERE n.needed_id = :job AND j.state = 'queued' AND j.needs_left > 0 ORDER BY j.id",
        job=job,
    )


def meet_need(tx: engine.Transaction, job: int) -> engine.Row | None:
    """A need was met; the row says whether that was the last and the job is ready now."""
    # Counted anew rather than down: a needed job may succeed twice when somebody retries it.
    left = tx.one(
        "SELECT count(*) FROM needs n JOIN jobs j ON j.id = n.needed_id"
        " WHERE n.job_id = :id AND j.state <> 'succeeded'",
        id=job,
    )
    assert left is not None
    return tx.one(
        "UPDATE jobs SET needs_left = :left, ready = (:left = 0),"
        " reason = CASE WHEN :left = 0 THEN 'waiting-for-agent' ELSE reason END"
        " WHERE id = :id RETURNING class_id, memory_bytes, ready",
        id=job, left=left[0],
    )  # fmt: skip


# --- timeline ----------------------------------------------------------------------------------------------------


def add_event(
    tx: engine.Transaction, job: int, text: str, *, now_ms: int, state: State | None = None, task: int | None = None
) -> None:
    """Add a line to a job's timeline (silently full after :data:`MAX_EVENTS`, except for changes of state)."""
    tx.execute(
        "INSERT INTO events (job_id, number, task, at_ms, state, text)"
        " SELECT :job, coalesce(max(number), 0) + 1, :task, :now, :state, :text FROM events WHERE job_id = :job"
        " HAVING coalesce(max(number), 0) < :most OR :state IS NOT NULL",
        job=job, task=task, now=now_ms, state=state and state.value, text=text, most=MAX_EVENTS,
    )  # fmt: skip


def events(tx: engine.Transaction, job: int, *, after: int, limit: int) -> list[engine.Row]:
    """Lines of a job's timeline in order."""
    return tx.all(
        "SELECT number, task, at_ms, state, text FROM events WHERE job_id = :job AND number > :after"
        " ORDER BY number LIMIT :limit",
        job=job, after=after, limit=limit,
    )  # fmt: skip
