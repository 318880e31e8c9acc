"""Anomalies, on which agents they happened, and the newest reports of each."""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

import msgspec

from agentina.control.store import engine
from agentina.protocol import wire
from agentina.protocol.anomalies import State

#: Reports of one anomaly that are kept.
MAX_REPORTS: Final = 20
#: Reports of one task that may be answered.
MAX_OF_TASK: Final = 200

_SELECT: Final = "SELECT a.*, o.name AS organization FROM anomalies a JOIN organizations o ON o.id = a.organization_id"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a report comes from."""

    organization_id: int
    #: Row id; None: the control plane itself.
    agent_id: int | None = None
    #: The agent's task it is about, as people know it, and its row id.
    task_id: str = ""
    task: int | None = None
    #: The reporter's clock.
    at_ms: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which anomalies are wanted; None: any."""

    states: tuple[str, ...] = ()
    kind: str | None = None
    code: str | None = None
    organization: str | None = None
    #: Row id.
    agent: int | None = None
    job: str | None = None


def is_reported(tx: engine.Transaction, source: Source, report_id: str) -> bool:
    """Whether this very report was applied before (and is still kept)."""
    return source.agent_id is not None and (
        tx.one(
            "SELECT 1 FROM anomaly_reports WHERE agent_id = :agent AND report_id = :report",
            agent=source.agent_id, report=report_id,
        )
        is not None
    )  # fmt: skip


def find_same(tx: engine.Transaction, organization: int, fingerprint: str) -> engine.Row | None:
    """The anomaly with this fingerprint."""
    return tx.one(
        f"{_SELECT} WHERE a.organization_id = :organization AND a.fingerprint = :fingerprint",
        organization=organization, fingerprint=fingerprint,
    )  # fmt: skip


def insert(
    tx: engine.Transaction, public_id: str, source: Source, found: wire.Anomaly, *, fingerprint: str, now_ms: int
) -> int:
    """Begin an anomaly, which nobody has reported yet; its row id is returned."""
    return tx.insert(
        "INSERT INTO anomalies (public_id, organization_id, fingerprint, kind, code, summary, state, first_ms, last_ms,"
        " changed_ms, revision) VALUES (:public_id, :organization, :fingerprint, :kind, :code, :summary, 'open',"
        " :now, :now, :now, (SELECT coalesce(max(revision), 0) + 1 FROM anomalies))",
        public_id=public_id, organization=source.organization_id, fingerprint=fingerprint, kind=found.kind,
        code=found.code, summary=found.summary, now=now_ms,
    )  # fmt: skip


def add_report(tx: engine.Transaction, number: int, source: Source, found: wire.Anomaly, *, now_ms: int) -> None:
    """Add a report to an anomaly, and forget the oldest of them."""
    is_new_agent = source.agent_id is not None and tx.execute(
        "INSERT OR IGNORE INTO anomaly_agents (anomaly_id, agent_id) VALUES (:anomaly, :agent)",
        anomaly=number, agent=source.agent_id,
    )  # fmt: skip
    tx.execute(
        "UPDATE anomalies SET count = count + :count, agents = agents + :agents, last_ms = :now,"
        " revision = (SELECT max(revision) + 1 FROM anomalies) WHERE id = :id",
        count=found.count, agents=int(bool(is_new_agent)), now=now_ms, id=number,
    )  # fmt: skip
    tx.execute(
        "INSERT INTO anomaly_reports (anomaly_id, agent_id, report_id, job_id, task_id, release, summary, count,"
        " first_ms, at_ms, received_ms, evidence) VALUES (:anomaly, :agent, :report, :job, :task, :release, :summary,"
        " :count, :first, :at, :now, :evidence)",
        anomaly=number, agent=source.agent_id, report=found.id, job=source.task_id.partition(".")[0],
        task=source.task_id, release=found.release, summary=found.summary, count=found.count,
        first=found.first_at_ms or source.at_ms, at=source.at_ms, now=now_ms,
        evidence=msgspec.json.encode(found.evidence).decode(),
    )  # fmt: skip
    tx.execute(
        "DELETE FROM anomaly_reports WHERE anomaly_id = :id AND id <= (SELECT id FROM anomaly_reports"
        " WHERE anomaly_id = :id ORDER BY id DESC LIMIT 1 OFFSET :most)",
        id=number, most=MAX_REPORTS,
    )  # fmt: skip


def set_state(
    tx: engine.Transaction, number: int, state: State, *, actor: str, reason: str, now_ms: int, is_again: bool = False
) -> None:
    """Bring an anomaly to a state; ``is_again``: it happened after it was closed."""
    tx.execute(
        "UPDATE anomalies SET state = :state, changed_ms = :now, changed_by = :actor, reason = :reason,"
        " reopened = reopened + :again, revision = (SELECT max(revision) + 1 FROM anomalies) WHERE id = :id",
        state=state.value, now=now_ms, actor=actor, reason=reason, again=int(is_again), id=number,
    )  # fmt: skip


def set_answer(tx: engine.Transaction, number: int, text: str, *, actor: str, now_ms: int) -> None:
    """Keep what an operator says to those who reported it."""
    tx.execute(
        "UPDATE anomalies SET answer = :answer, answered_by = :actor, answered_ms = :now WHERE id = :id",
        answer=text, actor=actor, now=now_ms, id=number,
    )  # fmt: skip


def note_task(tx: engine.Transaction, number: int, task: int, report_id: str) -> None:
    """Remember that a task may be answered about a report (unless it has very many)."""
    tx.execute(
        "INSERT OR IGNORE INTO anomaly_tasks (task_id, report_id, anomaly_id, answer_number)"
        " SELECT :task, :report, :anomaly, 0 WHERE (SELECT count(*) FROM anomaly_tasks WHERE task_id = :task) < :most",
        task=task, report=report_id, anomaly=number, most=MAX_OF_TASK,
    )  # fmt: skip


def give_answer(tx: engine.Transaction, number: int, *, task: int | None = None) -> list[wire.Answer]:
    """The answer becomes that of a task's reports without one, or (None) of all tasks' reports of the anomaly."""
    tx.execute(
        "UPDATE anomaly_tasks SET answer_number = (SELECT revision FROM anomalies WHERE id = :id)"
        " WHERE anomaly_id = :id AND (:task IS NULL OR (task_id = :task AND answer_number = 0))",
        id=number, task=task,
    )  # fmt: skip
    return answers(tx, number, task=task)


def answers(tx: engine.Transaction, number: int | None = None, *, task: int | None = None) -> list[wire.Answer]:
    """What operators say to tasks under way, in order; about one anomaly, to one task, or (None) all of it."""
    rows = tx.all(
        "SELECT t.answer_number, j.public_id || '.' || k.number AS task_id, t.report_id, a.public_id, a.answer"
        " FROM anomaly_tasks t JOIN anomalies a ON a.id = t.anomaly_id JOIN tasks k ON k.id = t.task_id"
        " JOIN jobs j ON j.id = k.job_id WHERE t.answer_number > 0 AND k.ended_ms IS NULL"
        " AND (:anomaly IS NULL OR t.anomaly_id = :anomaly) AND (:task IS NULL OR t.task_id = :task)"
        " ORDER BY t.answer_number",
        anomaly=number, task=task,
    )  # fmt: skip
    return [
        wire.Answer(number=row[0], task_id=row[1], report=row[2], anomaly=row[3], text=row["answer"]) for row in rows
    ]


def forget_ended_tasks(tx: engine.Transaction) -> None:
    """Nobody is there any more to be answered."""
    tx.execute("DELETE FROM anomaly_tasks WHERE task_id IN (SELECT id FROM tasks WHERE ended_ms IS NOT NULL)")


def find(tx: engine.Transaction, public_id: str) -> engine.Row | None:
    """The anomaly with this id."""
    return tx.one(f"{_SELECT} WHERE a.public_id = :id", id=public_id)


def listed(
    tx: engine.Transaction, wanted: Filter, *, before: tuple[int, int] | None, since: int, limit: int
) -> list[engine.Row]:
    """Those that happened last come first; ``before``: time and row id of the last one seen; ``since``: a revision."""
    terms = ["a.revision > :since"]
    values: dict[str, object] = {"since": since, "limit": limit}
    if wanted.states:
        terms.append(f"a.state IN ({', '.join(f':state{index}' for index in range(len(wanted.states)))})")
        values |= {f"state{index}": state for index, state in enumerate(wanted.states)}
    for name, column in (("kind", "a.kind"), ("code", "a.code"), ("organization", "o.name")):
        if getattr(wanted, name) is not None:
            terms.append(f"{column} = :{name}")
            values[name] = getattr(wanted, name)
    if wanted.agent is not None:
        terms.append("EXISTS (SELECT 1 FROM anomaly_agents g WHERE g.anomaly_id = a.id AND g.agent_id = :agent)")
        values["agent"] = wanted.agent
    if wanted.job is not None:
        terms.append("EXISTS (SELECT 1 FROM anomaly_reports r WHERE r.anomaly_id = a.id AND r.job_id = :job)")
        values["job"] = wanted.job
    if before is not None:
        terms.append("(a.last_ms, a.id) < (:before_ms, :before_id)")
        values |= {"before_ms": before[0], "before_id": before[1]}
    return tx.all(f"{_SELECT} WHERE {' AND '.join(terms)} ORDER BY a.last_ms DESC, a.id DESC LIMIT :limit", **values)


def words(tx: engine.Transaction, column: Literal["kind", "code"]) -> set[str]:
    """All kinds, or codes, that there are."""
    return {row[column] for row in tx.all("SELECT DISTINCT kind, code FROM anomalies")}


def reports(tx: engine.Transaction, number: int) -> list[engine.Row]:
    """The newest reports of an anomaly, the newest first."""
    return tx.all(
        "SELECT r.*, g.public_id AS agent, g.hostname, g.instance FROM anomaly_reports r"
        " LEFT JOIN agents g ON g.id = r.agent_id WHERE r.anomaly_id = :id ORDER BY r.id DESC",
        id=number,
    )


def revision(tx: engine.Transaction) -> int:
    """The revision of the last change."""
    row = tx.one("SELECT coalesce(max(revision), 0) FROM anomalies")
    assert row is not None
    return int(row[0])


def unresolved(tx: engine.Transaction) -> list[engine.Row]:
    """How many of each kind and state nobody has closed."""
    return tx.all(
        "SELECT kind, state, count(*) AS anomalies FROM anomalies WHERE state <> 'closed' GROUP BY kind, state"
    )


def count_unresolved(tx: engine.Transaction, organization: int) -> int:
    """How many of an organization nobody has closed."""
    row = tx.one(
        "SELECT count(*) FROM anomalies WHERE state IN ('open', 'acknowledged', 'answered')"
        " AND organization_id = :organization",
        organization=organization,
    )
    assert row is not None
    return int(row[0])


def remove_closed(tx: engine.Transaction, *, before_ms: int, most: int, limit: int) -> int:
    """Forget those closed before ``before_ms``, and the oldest beyond ``most`` closed ones: at most ``limit`` now."""
    return tx.execute(
        "DELETE FROM anomalies WHERE id IN (SELECT id FROM anomalies WHERE state = 'closed' AND (changed_ms < :before"
        " OR id NOT IN (SELECT id FROM anomalies WHERE state = 'closed' ORDER BY changed_ms DESC LIMIT :most))"
        " LIMIT :limit)",
        before=before_ms, most=most, limit=limit,
    )  # fmt: skip
