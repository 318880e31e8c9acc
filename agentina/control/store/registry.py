"""What operators manage: organizations, operators, activation tokens."""

from __future__ import annotations

import dataclasses
from typing import Final

from agentina import errors
from agentina.control.store import engine

#: Each request compares its token with those of all.
MAX_OPERATORS: Final = 1000


# --- organizations -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Organization:
    """A tenant and its limits."""

    name: str
    plan: str = "community"
    max_agents: int = 100
    max_concurrent_tasks_per_agent: int = 64
    channel: str = "stable"
    offline_grace_hours: float = 72.0


def organization(tx: engine.Transaction, name: str) -> engine.Row | None:
    """An organization by name."""
    return tx.one("SELECT * FROM organizations WHERE name = :name", name=name)


def get_organization(tx: engine.Transaction, name: str) -> engine.Row:
    """The organization that somebody names.

    Raises:
        AgentinaError: ``NOT_FOUND``.

    """
    row = organization(tx, name)
    if row is None:
        raise errors.NOT_FOUND(what="organization", name=name[:64])
    return row


def organization_by_id(tx: engine.Transaction, number: int) -> engine.Row:
    """An organization that exists."""
    row = tx.one("SELECT * FROM organizations WHERE id = :id", id=number)
    assert row is not None, number
    return row


def organizations(tx: engine.Transaction) -> list[engine.Row]:
    """All organizations."""
    return tx.all("SELECT * FROM organizations ORDER BY name LIMIT 10000")


def save_organization(tx: engine.Transaction, organization: Organization, *, now_ms: int) -> int:
    """Create or change one; its row id is returned."""
    row = tx.one(
        "INSERT INTO organizations (name, plan, max_agents, max_concurrent_tasks_per_agent, channel,"
        " offline_grace_hours, created_ms) VALUES (:name, :plan, :max_agents, :max_concurrent_tasks_per_agent,"
        " :channel, :offline_grace_hours, :now) ON CONFLICT (name) DO UPDATE SET plan = :plan,"
        " max_agents = :max_agents, max_concurrent_tasks_per_agent = :max_concurrent_tasks_per_agent,"
        " channel = :channel, offline_grace_hours = :offline_grace_hours RETURNING id",
        now=now_ms, **dataclasses.asdict(organization),
    )  # fmt: skip
    assert row is not None
    return int(row[0])


# --- operators -------------------------------------------------------------------------------------------------------


def add_operator(tx: engine.Transaction, *, name: str, role: str, token_sha256: str, now_ms: int) -> None:
    """Store an operator with the hash of a token."""
    tx.execute(
        "INSERT INTO operators (name, role, token_sha256, created_ms) VALUES (:name, :role, :token_sha256, :now)",
        name=name, role=role, token_sha256=token_sha256, now=now_ms,
    )  # fmt: skip


def operators(tx: engine.Transaction) -> list[engine.Row]:
    """All that there ever were, the first ones first."""
    return tx.all("SELECT * FROM operators ORDER BY id LIMIT :limit", limit=MAX_OPERATORS)


def operator(tx: engine.Transaction, name: str) -> engine.Row | None:
    """One of them."""
    return tx.one("SELECT * FROM operators WHERE name = :name", name=name)


def renew_operator(tx: engine.Transaction, name: str, *, token_sha256: str) -> None:
    """Let an operator's new token hold, and the former one no longer."""
    tx.execute(
        "UPDATE operators SET token_sha256 = :token, revoked_ms = NULL WHERE name = :name",
        name=name, token=token_sha256,
    )  # fmt: skip


def revoke_operator(tx: engine.Transaction, name: str, *, now_ms: int) -> None:
    """Let an operator's token hold no longer."""
    tx.execute("UPDATE operators SET revoked_ms = :now WHERE name = :name", name=name, now=now_ms)


# --- activation tokens -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NewToken:
    """The values of a token to insert; of its text only the hash."""

    public_id: str
    token_sha256: str
    organization_id: int
    role: str | None
    labels: str
    expires_ms: int


def add_token(tx: engine.Transaction, token: NewToken, *, now_ms: int) -> None:
    """Store a new token."""
    tx.execute(
        "INSERT INTO tokens (public_id, token_sha256, organization_id, role, labels, created_ms, expires_ms)"
        " VALUES (:public_id, :token_sha256, :organization_id, :role, :labels, :now, :expires_ms)",
        now=now_ms, **dataclasses.asdict(token),
    )  # fmt: skip


def token_by_hash(tx: engine.Transaction, token_sha256: str) -> engine.Row | None:
    """The token with this hash."""
    return tx.one("SELECT * FROM tokens WHERE token_sha256 = :sha256", sha256=token_sha256)


_WITH_NAMES: Final = (
    "SELECT t.*, o.name AS organization, a.public_id AS agent FROM tokens t"
    " JOIN organizations o ON o.id = t.organization_id LEFT JOIN agents a ON a.id = t.agent_id"
)


def token(tx: engine.Transaction, public_id: str) -> engine.Row | None:
    """A token as people see it."""
    return tx.one(f"{_WITH_NAMES} WHERE t.public_id = :id", id=public_id)


def tokens(tx: engine.Transaction, *, limit: int) -> list[engine.Row]:
    """The newest tokens."""
    return tx.all(f"{_WITH_NAMES} ORDER BY t.id DESC LIMIT :limit", limit=limit)


def use_token(tx: engine.Transaction, token: int, *, agent: int, key: str, host: str, now_ms: int) -> None:
    """Mark a token as redeemed."""
    tx.execute(
        "UPDATE tokens SET used_ms = :now, used_by = :host, used_key = :key, agent_id = :agent WHERE id = :id",
        id=token, agent=agent, key=key, host=host, now=now_ms,
    )  # fmt: skip


def count_refusal(tx: engine.Transaction, token: int) -> None:
    """Somebody else tried a used token."""
    tx.execute("UPDATE tokens SET refused = refused + 1 WHERE id = :id", id=token)


def revoke_token(tx: engine.Transaction, token: int, *, now_ms: int) -> None:
    """An operator takes it back."""
    tx.execute("UPDATE tokens SET revoked_ms = coalesce(revoked_ms, :now) WHERE id = :id", id=token, now=now_ms)
