"""Jobs, their needs, their timeline, and the classes the queue is sorted into.

An operation reads a :class:`Job`, changes it in memory and writes it back once with :func:`save`, before it reads the
same job again.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from agentina import errors
from agentina.control.store import engine
from agentina.protocol.states import Reason, State

#: More memory than any job may ask for.
_ANY_MEMORY: Final = (1 << 63) - 1

#: Most lines of one job's timeline that are kept; an agent that reports without end fills no disk.
MAX_EVENTS: Final = 2000


@dataclasses.dataclass(slots=True)
class Job:
    """What decisions need of a job, and what they change. Fields up to ``events`` are columns (001_pre_initial.sql)."""

    id: int
    public_id: str
    organization_id: int
    class_id: int
    role: str | None
    priority: int
    memory_bytes: int
    state: State
    reason: Reason
    detail: str
    ready: bool
    needs_left: int
    runnable_ms: int
    started_ms: int | None = None
    ended_ms: int | None = None
    tasks: int = 0
    attempts: int = 0
    attempts_before: int = 0
    returns: int = 0
    cancel_requested: bool = False
    dead_letter: bool = False
    #: It has declared paths that it changes (``path_claims``).
    claims_paths: bool = False
    #: Lines of the timeline, those not yet written included.
    events: int = 0
    #: Rows of ``events`` that :func:`save` writes.
    unwritten: list[tuple[object, ...]] = dataclasses.field(default_factory=list)

    def tell(self, text: str, *, now_ms: int, state: State | None = None, task: int | None = None) -> None:
        """Add a line to the timeline (silently full after :data:`MAX_EVENTS`, except for changes of state)."""
        if self.events < MAX_EVENTS or state is not None:
            self.events += 1
            self.unwritten.append((self.events, task, now_ms, state and state.value, text))


#: Columns of a :class:`Job`, in the order of its fields.
_FIELDS: Final = [field.name for field in dataclasses.fields(Job)][:-1]
COLUMNS: Final = ", ".join(f"j.{name}" for name in _FIELDS)
_SELECT: Final = f"SELECT {COLUMNS} FROM"
_BY_PUBLIC_ID: Final = f"{_SELECT} jobs j WHERE j.public_id = :id"
_BY_ID: Final = f"{_SELECT} jobs j WHERE j.id = :id"
_READY: Final = (
    f"{_SELECT} jobs j WHERE j.ready = 1 AND j.class_id = :class AND j.memory_bytes <= :memory"
    " ORDER BY j.priority DESC, j.id LIMIT :limit"
)
_NEEDED: Final = f"{_SELECT} needs n JOIN jobs j ON j.id = n.needed_id WHERE n.job_id = :job ORDER BY j.id"
_QUEUED_DEPENDENTS: Final = (
    f"{_SELECT} needs n JOIN jobs j ON j.id = n.job_id"
    " WHERE n.needed_id = :job AND j.state = 'queued' AND j.needs_left > 0 ORDER BY j.id"
)


def from_row(row: engine.Row) -> Job:
    """The job in a row of :data:`COLUMNS`."""
    job = Job(*row)
    job.state, job.reason = State(job.state), Reason(job.reason)
    return job


def find(tx: engine.Transaction, public_id: str) -> Job | None:
    """The job with this public id."""
    row = tx.one(_BY_PUBLIC_ID, id=public_id)
    return None if row is None else from_row(row)


def get(tx: engine.Transaction, public_id: str) -> Job:
    """The job that somebody names by its public id.

    Raises:
        AgentinaError: ``JOB_UNKNOWN``.

    """
    job = find(tx, public_id)
    if job is None:
        raise errors.JOB_UNKNOWN(job=public_id[:40])
    return job


def by_id(tx: engine.Transaction, job: int) -> Job:
    """A job that exists."""
    row = tx.one(_BY_ID, id=job)
    assert row is not None, job
    return from_row(row)


def insert(
    tx: engine.Transaction, job: Job, *, name: str, spec: str, key: str | None, sha256: str | None, now_ms: int
) -> None:
    """Store a new job with its timeline and give it its row id."""
    job.id = tx.insert(
        "INSERT INTO jobs (public_id, organization_id, class_id, name, role, spec, priority, memory_bytes, state,"
        " reason, ready, needs_left, runnable_ms, created_ms, tasks, events, submission_key, submission_sha256,"
        " claims_paths)"
        " VALUES (:public_id, :organization, :class, :name, :role, :spec, :priority, :memory, :state,"
        " :reason, :ready, :needs_left, :now, :now, :tasks, :events, :key, :sha256, :claims)",
        public_id=job.public_id, organization=job.organization_id, **{"class": job.class_id},
        name=name, role=job.role, spec=spec, priority=job.priority, memory=job.memory_bytes, state=job.state.value,
        reason=job.reason.value, ready=job.ready, needs_left=job.needs_left, now=now_ms, tasks=job.tasks,
        events=job.events, key=key, sha256=sha256, claims=job.claims_paths,
    )  # fmt: skip
    _write_events(tx, job)


def save(tx: engine.Transaction, job: Job) -> None:
    """Write back what may have changed, with the new lines of its timeline."""
    tx.execute(
        "UPDATE jobs SET state = :state, reason = :reason, detail = :detail, ready = :ready, needs_left = :needs_left,"
        " runnable_ms = :runnable_ms, started_ms = :started_ms, ended_ms = :ended_ms, tasks = :tasks,"
        " attempts = :attempts, attempts_before = :attempts_before, returns = :returns,"
        " cancel_requested = :cancel_requested, dead_letter = :dead_letter, events = :events WHERE id = :id",
        id=job.id, state=job.state.value, reason=job.reason.value, detail=job.detail, ready=job.ready,
        needs_left=job.needs_left, runnable_ms=job.runnable_ms, started_ms=job.started_ms, ended_ms=job.ended_ms,
        tasks=job.tasks, attempts=job.attempts, attempts_before=job.attempts_before, returns=job.returns,
        cancel_requested=job.cancel_requested, dead_letter=job.dead_letter, events=job.events,
    )  # fmt: skip
    _write_events(tx, job)


def _write_events(tx: engine.Transaction, job: Job) -> None:
    if job.unwritten:
        rows = [(job.id, *line) for line in job.unwritten]
        tx.many("INSERT INTO events (job_id, number, task, at_ms, state, text) VALUES (?, ?, ?, ?, ?, ?)", rows)
        job.unwritten.clear()


def spec(tx: engine.Transaction, job: int) -> str:
    """The stored specification (JSON) of a job that exists."""
    row = tx.one("SELECT spec FROM jobs WHERE id = :id", id=job)
    assert row is not None, job
    return str(row[0])


def changed_spec(tx: engine.Transaction, job: int) -> str | None:
    """The specification of a job whose budget was changed since it was submitted; None: it was not."""
    row = tx.one("SELECT spec FROM jobs WHERE id = :id AND budget_changed = 1", id=job)
    return None if row is None else str(row[0])


def change_budget(tx: engine.Transaction, job: int, spec: str) -> None:
    """Store the specification with another budget."""
    tx.execute("UPDATE jobs SET spec = :spec, budget_changed = 1 WHERE id = :id", id=job, spec=spec)


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


def ensure_class(
    tx: engine.Transaction, organization: int, *, role: str, labels: str, runner: str, gateway: str
) -> engine.Row:
    """The class with these properties, made when it is new."""
    values = {"organization": organization, "role": role, "labels": labels, "runner": runner, "gateway": gateway}
    row = tx.one(
        "SELECT * FROM classes WHERE organization_id = :organization AND role = :role AND labels = :labels"
        " AND runner = :runner AND gateway = :gateway",
        **values,
    )
    if row is None:
        row = tx.one(
            "INSERT INTO classes (organization_id, role, labels, runner, gateway)"
            " VALUES (:organization, :role, :labels, :runner, :gateway) RETURNING *",
            **values,
        )
    assert row is not None
    return row


def classes(tx: engine.Transaction) -> list[engine.Row]:
    """All classes."""
    return tx.all("SELECT id, organization_id, role, labels, runner, gateway FROM classes ORDER BY id")


def is_any_ready(tx: engine.Transaction, class_id: int, memory_bytes: int = _ANY_MEMORY) -> bool:
    """Whether a job of the class waits that fits; without ``memory_bytes`` each does."""
    sql = "SELECT 1 FROM jobs WHERE ready = 1 AND class_id = :class AND memory_bytes <= :memory LIMIT 1"
    return tx.one(sql, **{"class": class_id}, memory=memory_bytes) is not None


def ready(tx: engine.Transaction, class_id: int, memory_bytes: int, limit: int) -> list[Job]:
    """The first jobs of a class that wait for an agent and fit, by priority and age."""
    rows = tx.all(_READY, **{"class": class_id}, memory=memory_bytes, limit=limit)
    return [from_row(row) for row in rows]


def backing_off(tx: engine.Transaction) -> list[engine.Row]:
    """Queued jobs whose backoff is not over."""
    return tx.all(
        "SELECT id, runnable_ms, spec FROM jobs WHERE state = 'queued' AND ready = 0 AND needs_left = 0"
        " ORDER BY runnable_ms"
    )


def pending(tx: engine.Transaction) -> list[engine.Row]:
    """How many jobs wait, by organization and role."""
    return tx.all(
        "SELECT o.name AS organization, c.role, q.pending FROM"
        " (SELECT class_id, count(*) AS pending FROM jobs WHERE ready = 1 GROUP BY class_id) q"
        " JOIN classes c ON c.id = q.class_id JOIN organizations o ON o.id = c.organization_id"
    )


# --- needs -------------------------------------------------------------------------------------------------------


def add_need(tx: engine.Transaction, job: int, needed: int) -> None:
    """``job`` runs only after ``needed`` has succeeded."""
    tx.execute("INSERT OR IGNORE INTO needs (needed_id, job_id) VALUES (:needed, :job)", needed=needed, job=job)


def needs(tx: engine.Transaction, job: int) -> list[Job]:
    """The jobs ``job`` needs."""
    return [from_row(row) for row in tx.all(_NEEDED, job=job)]


def queued_dependents(tx: engine.Transaction, job: int) -> list[Job]:
    """Jobs still waiting for ``job``."""
    return [from_row(row) for row in tx.all(_QUEUED_DEPENDENTS, job=job)]


def needs_left(tx: engine.Transaction, job: int) -> int:
    """How many needed jobs have not succeeded.

    Counted anew rather than down: a needed job may succeed twice when somebody retries it.
    """
    row = tx.one(
        "SELECT count(*) FROM needs n JOIN jobs j ON j.id = n.needed_id"
        " WHERE n.job_id = :id AND j.state <> 'succeeded'",
        id=job,
    )
    assert row is not None
    return int(row[0])


# --- timeline ----------------------------------------------------------------------------------------------------


def events(tx: engine.Transaction, job: int, *, after: int, limit: int) -> list[engine.Row]:
    """Lines of a job's timeline in order."""
    return tx.all(
        "SELECT number, task, at_ms, state, text FROM events WHERE job_id = :job AND number > :after"
        " ORDER BY number LIMIT :limit",
        job=job, after=after, limit=limit,
    )  # fmt: skip
