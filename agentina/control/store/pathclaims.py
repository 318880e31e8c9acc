"""Claims of jobs on paths of a repository, and what they changed (008, 009 and 011 of the migrations)."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from agentina.control.store import engine

#: A little more than the longest time limit of a job.
_KEEP_MS: Final = 31 * 86_400_000


class Claim(NamedTuple):
    """What a job claims."""

    job: int
    public_id: str
    organization: int
    repository: str
    paths: list[str]
    #: It runs beside others all the same.
    only_warns: bool
    priority: int
    #: An agent has the job.
    is_held: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Its place among those that wait: who has the smaller one comes first."""
        return -self.priority, self.job


def insert(tx: engine.Transaction, claim: Claim) -> None:
    """Store the claim of a new job."""
    tx.execute(
        "INSERT INTO path_claims (job_id, organization_id, repository, paths, only_warns)"
        " VALUES (:job, :organization, :repository, :paths, :warns)",
        job=claim.job, organization=claim.organization, repository=claim.repository,
        paths=msgspec.json.encode(claim.paths).decode(), warns=claim.only_warns,
    )  # fmt: skip


def find(tx: engine.Transaction, job: int) -> Claim | None:
    """What a job claims; None: nothing."""
    row = tx.one(
        "SELECT c.*, j.public_id, j.priority FROM path_claims c JOIN jobs j ON j.id = c.job_id WHERE c.job_id = :job",
        job=job,
    )
    return None if row is None else _from_row(row)


def held(tx: engine.Transaction, organization: int, repository: str) -> list[Claim]:
    """Claims of jobs that an agent holds."""
    return _select(tx, "c.is_held = 1", organization, repository)


def stand(tx: engine.Transaction, job: int, *, is_held: bool, waits: bool) -> None:
    """How the job is with its claim now: an agent has it, it waits for others' claims, or neither."""
    tx.execute(
        "UPDATE path_claims SET is_held = :held, waits = :waits WHERE job_id = :job", held=is_held, waits=waits, job=job
    )


#: A job that is ready again waits no more, though its claim was not told.
_WAITS: Final = "c.waits = 1 AND j.state = 'queued' AND j.reason = 'waiting-for-paths'"


def waiting(tx: engine.Transaction, organization: int, repository: str) -> list[Claim]:
    """Claims of jobs that wait for others', in the order in which they would be given away."""
    return _select(tx, _WAITS, organization, repository)


def count_waiting(tx: engine.Transaction) -> list[engine.Row]:
    """How many jobs wait for others' claims, by organization."""
    return tx.all(
        "SELECT o.name AS organization, count(*) AS waiting FROM path_claims c JOIN jobs j ON j.id = c.job_id"  # noqa: S608 - constants
        f" JOIN organizations o ON o.id = c.organization_id WHERE {_WAITS} GROUP BY o.name"
    )


class Change(NamedTuple):
    """What a task changed."""

    task: int
    job: int
    organization: int
    repository: str
    paths: list[str]
    ended_ms: int


def add_change(tx: engine.Transaction, change: Change) -> None:
    """Store what a task changed; what is older than any task that may still run is forgotten."""
    tx.execute(
        "DELETE FROM path_changes WHERE organization_id = :organization AND repository = :repository"
        " AND ended_ms < :old",
        organization=change.organization, repository=change.repository, old=change.ended_ms - _KEEP_MS,
    )  # fmt: skip
    tx.execute(
        "INSERT OR REPLACE INTO path_changes (task_id, job_id, organization_id, repository, paths, ended_ms)"
        " VALUES (:task, :job, :organization, :repository, :paths, :ended)",
        task=change.task, job=change.job, organization=change.organization, repository=change.repository,
        paths=msgspec.json.encode(change.paths).decode(), ended=change.ended_ms,
    )  # fmt: skip


class Changed(NamedTuple):
    """What a task of another job changed, and what that job claims."""

    public_id: str
    paths: list[str]
    claims: list[str]


def changes_since(tx: engine.Transaction, change: Change, since_ms: int) -> list[Changed]:
    """Other jobs whose tasks ended since then, the newest, and what those changed."""
    rows = tx.all(
        "SELECT j.public_id, c.paths, p.paths AS claims FROM path_changes c JOIN jobs j ON j.id = c.job_id"
        " LEFT JOIN path_claims p ON p.job_id = c.job_id"
        " WHERE c.organization_id = :organization AND c.repository = :repository AND c.ended_ms > :since"
        " AND c.job_id <> :job ORDER BY c.ended_ms DESC LIMIT 200",
        organization=change.organization, repository=change.repository, since=since_ms, job=change.job,
    )  # fmt: skip
    return [Changed(row["public_id"], _decode(row["paths"]), _decode(row["claims"] or "[]")) for row in rows]


def _select(tx: engine.Transaction, which: str, organization: int, repository: str) -> list[Claim]:
    rows = tx.all(
        f"SELECT c.*, j.public_id, j.priority FROM path_claims c JOIN jobs j ON j.id = c.job_id WHERE {which}"  # noqa: S608 - constants
        " AND c.organization_id = :organization AND c.repository = :repository ORDER BY j.priority DESC, j.id",
        organization=organization, repository=repository,
    )  # fmt: skip
    return [_from_row(row) for row in rows]


def _decode(paths: str) -> list[str]:
    return msgspec.json.decode(paths, type=list[str])


def _from_row(row: engine.Row) -> Claim:
    return Claim(
        job=row["job_id"], public_id=row["public_id"], organization=row["organization_id"],
        repository=row["repository"], paths=_decode(row["paths"]),
        only_warns=bool(row["only_warns"]), priority=row["priority"], is_held=bool(row["is_held"]),
    )  # fmt: skip
