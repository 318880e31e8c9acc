"""Agents and their report streams."""

from __future__ import annotations

import dataclasses
from typing import Final

from agentina.control.store import engine

#: Streams kept for one agent; a damaged outbox makes a new one, so old ones are of no use for long.
MAX_STREAMS: Final = 8

_FIELDS: Final = (
    "SELECT a.*, o.name AS organization, o.plan, o.max_agents, o.max_concurrent_tasks_per_agent AS license_tasks,"
    " o.channel, o.offline_grace_hours FROM agents a JOIN organizations o ON o.id = a.organization_id"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NewAgent:
    """The values of an agent to insert."""

    public_id: str
    organization_id: int
    public_key: str
    hostname: str
    instance: str
    fingerprint: str
    role: str | None
    labels: str
    max_concurrent_tasks: int
    version: str


def insert(tx: engine.Transaction, agent: NewAgent, *, now_ms: int) -> int:
    """Store a newly activated agent; its row id is returned."""
    return tx.insert(
        "INSERT INTO agents (public_id, organization_id, public_key, hostname, instance, fingerprint, role, labels,"
        " max_concurrent_tasks, version, state, license_issued_ms, created_ms)"
        " VALUES (:public_id, :organization_id, :public_key, :hostname, :instance, :fingerprint, :role, :labels,"
        " :max_concurrent_tasks, :version, 'active', :now, :now)",
        now=now_ms, **dataclasses.asdict(agent),
    )  # fmt: skip


def present(tx: engine.Transaction) -> list[engine.Row]:
    """All agents that were not removed."""
    return tx.all(f"{_FIELDS} WHERE a.removed_ms IS NULL ORDER BY a.id")


def by_id(tx: engine.Transaction, agent: int) -> engine.Row:
    """An agent that exists, removed or not."""
    row = tx.one(f"{_FIELDS} WHERE a.id = :id", id=agent)
    assert row is not None, agent
    return row


def count(tx: engine.Transaction, organization: int) -> int:
    """How many agents an organization has."""
    row = tx.one(
        "SELECT count(*) FROM agents WHERE organization_id = :organization AND removed_ms IS NULL",
        organization=organization,
    )
    assert row is not None
    return int(row[0])


def standing(tx: engine.Transaction, agent: int) -> tuple[int, str] | None:
    """The current session and state; None when it was removed. Claims and reports decide by this."""
    row = tx.one("SELECT session, state FROM agents WHERE id = :id AND removed_ms IS NULL", id=agent)
    return None if row is None else (row[0], row[1])


def last_machine(tx: engine.Transaction, agent: int) -> tuple[str, str]:
    """Boot id and fingerprint (JSON) that the session before told; empty: nothing to compare with."""
    row = tx.one("SELECT boot_id, fingerprint FROM agents WHERE id = :id", id=agent)
    assert row is not None, agent
    return row[0], row[1]


def forget_machine(tx: engine.Transaction, agent: int) -> None:
    """Accept the next session from whatever machine it comes."""
    tx.execute("UPDATE agents SET boot_id = '', fingerprint = '{}' WHERE id = :id", id=agent)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SessionFacts:
    """What a daemon says of itself when it opens a session."""

    boot_id: str
    version: str
    executor: str
    guarantees: str
    runners: str
    facts: str
    fingerprint: str
    max_concurrent_tasks: int


def open_session(tx: engine.Transaction, agent: int, facts: SessionFacts, *, now_ms: int) -> int:
    """Begin the next session; its number is returned."""
    row = tx.one(
        "UPDATE agents SET session = session + 1, boot_id = :boot_id, version = :version, executor = :executor,"
        " guarantees = :guarantees, runners = :runners, facts = :facts, fingerprint = :fingerprint,"
        " max_concurrent_tasks = :max_concurrent_tasks, last_heartbeat_ms = :now WHERE id = :id RETURNING session",
        id=agent, now=now_ms, **dataclasses.asdict(facts),
    )  # fmt: skip
    assert row is not None
    return int(row[0])


def set_state(tx: engine.Transaction, agent: int, state: str, reason: str) -> None:
    """Activate, drain or quarantine."""
    tx.execute("UPDATE agents SET state = :state, state_reason = :reason WHERE id = :id", id=agent, state=state,
               reason=reason)  # fmt: skip


def remove(tx: engine.Transaction, agent: int, *, now_ms: int) -> None:
    """Forget an agent; its row stays for the records that name it."""
    tx.execute("UPDATE agents SET removed_ms = :now WHERE id = :id", id=agent, now=now_ms)


def flush_heartbeat(tx: engine.Transaction, agent: int, *, at_ms: int | None, host: str, license_ms: int) -> None:
    """Keep what the last heartbeat said."""
    tx.execute(
        "UPDATE agents SET last_heartbeat_ms = :at, host = :host, license_issued_ms = :license WHERE id = :id",
        id=agent, at=at_ms, host=host, license=license_ms,
    )  # fmt: skip


def outdate_licenses(tx: engine.Transaction, organization: int) -> None:
    """All licenses of an organization's agents are to be renewed."""
    tx.execute(
        "UPDATE agents SET license_issued_ms = 0 WHERE organization_id = :organization AND removed_ms IS NULL",
        organization=organization,
    )


def set_pin(tx: engine.Transaction, agent: int, version: str) -> None:
    """Hold it to a version; empty: to none."""
    tx.execute("UPDATE agents SET pinned = :version WHERE id = :id", id=agent, version=version)


def ledgers(tx: engine.Transaction) -> dict[int, str]:
    """What the tasks of each agent came to (JSON)."""
    return {row["agent_id"]: row["content"] for row in tx.all("SELECT agent_id, content FROM ledgers")}


def save_ledger(tx: engine.Transaction, agent: int, content: str) -> None:
    """Keep what an agent's tasks came to."""
    tx.execute(
        "INSERT INTO ledgers (agent_id, content) VALUES (:agent, :content)"
        " ON CONFLICT (agent_id) DO UPDATE SET content = :content",
        agent=agent, content=content,
    )  # fmt: skip


# --- report streams --------------------------------------------------------------------------------------------------


def applied(tx: engine.Transaction, agent: int, stream: str) -> int:
    """The last report applied from a stream; 0: none."""
    row = tx.one("SELECT applied FROM streams WHERE agent_id = :agent AND stream = :stream", agent=agent, stream=stream)
    return 0 if row is None else int(row[0])


def set_applied(tx: engine.Transaction, agent: int, stream: str, number: int, *, now_ms: int) -> None:
    """Advance a stream; a new one pushes out the oldest beyond :data:`MAX_STREAMS`."""
    values = {"agent": agent, "stream": stream, "number": number, "now": now_ms}
    update = "UPDATE streams SET applied = :number, touched_ms = :now WHERE agent_id = :agent AND stream = :stream"
    if tx.execute(update, **values):
        return
    tx.execute(
        "INSERT INTO streams (agent_id, stream, applied, touched_ms) VALUES (:agent, :stream, :number, :now)", **values
    )
    tx.execute(
        "DELETE FROM streams WHERE agent_id = :agent AND stream NOT IN"
        " (SELECT stream FROM streams WHERE agent_id = :agent ORDER BY touched_ms DESC, stream = :stream DESC"
        " LIMIT :most)",
        agent=agent, stream=stream, most=MAX_STREAMS,
    )  # fmt: skip
