"""Budgets of organizations and agents, and the shares of a day that hosts have of them."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal

from agentina.control.store import engine
from agentina.protocol import budgets

Scope = Literal["organization", "agent"]

#: No honest figure comes near; larger ones would make sums overflow.
_MOST: Final = 1 << 48
_NOTHING: Final = budgets.Units()
#: Days for which shares are kept.
KEPT_DAYS: Final = 7


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A budget for each day."""

    limit: budgets.Bounds
    on_exhausted: budgets.OnExhausted = "stop"
    #: Added for one day only, and that day.
    extra: budgets.Units = _NOTHING
    extra_day: str = ""

    def of_day(self, day: str) -> budgets.Bounds:
        """The limits of one day."""
        if day != self.extra_day:
            return self.limit
        limits = {kind: getattr(self.limit, kind) for kind in budgets.KINDS}
        return budgets.Bounds(
            **{kind: None if limit is None else limit + getattr(self.extra, kind) for kind, limit in limits.items()}
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one agent may use, and what it said it had used."""

    agent: int
    session: int
    number: int
    share: budgets.Units
    spent: budgets.Units


def find(tx: engine.Transaction, scope: Scope, subject: int) -> Budget | None:
    """The budget of an organization or agent, by row id."""
    row = tx.one("SELECT * FROM budgets WHERE scope = :scope AND subject_id = :subject", scope=scope, subject=subject)
    return None if row is None else _budget(row)


def listed(tx: engine.Transaction) -> list[tuple[Scope, int, Budget]]:
    """All budgets: scope and row id of whose each is."""
    rows = tx.all("SELECT * FROM budgets ORDER BY scope DESC, subject_id LIMIT 20000")
    return [(row["scope"], row["subject_id"], _budget(row)) for row in rows]


def save(tx: engine.Transaction, scope: Scope, subject: int, budget: Budget) -> None:
    """Create or change one."""
    values: dict[str, Any] = {kind: getattr(budget.limit, kind) for kind in budgets.KINDS}
    values |= {f"extra_{kind}": getattr(budget.extra, kind) for kind in budgets.KINDS}
    tx.execute(
        "INSERT OR REPLACE INTO budgets (scope, subject_id, tokens, cost_nano, tool_calls, on_exhausted, extra_day,"
        " extra_tokens, extra_cost_nano, extra_tool_calls) VALUES (:scope, :subject, :tokens, :cost_nano, :tool_calls,"
        " :on_exhausted, :extra_day, :extra_tokens, :extra_cost_nano, :extra_tool_calls)",
        scope=scope, subject=subject, on_exhausted=budget.on_exhausted, extra_day=budget.extra_day, **values,
    )  # fmt: skip


def remove(tx: engine.Transaction, scope: Scope, subject: int) -> None:
    """No limit any more."""
    tx.execute("DELETE FROM budgets WHERE scope = :scope AND subject_id = :subject", scope=scope, subject=subject)


def share(tx: engine.Transaction, organization: int, day: str, agent: int) -> Share | None:
    """An agent's share."""
    row = tx.one(
        "SELECT * FROM shares WHERE organization_id = :organization AND day = :day AND agent_id = :agent",
        organization=organization, day=day, agent=agent,
    )  # fmt: skip
    if row is None:
        return None
    return Share(
        agent=row["agent_id"], session=row["session"], number=row["number"],
        share=budgets.Units(**{kind: row[kind] for kind in budgets.KINDS}),
        spent=budgets.Units(**{kind: row[f"spent_{kind}"] for kind in budgets.KINDS}),
    )  # fmt: skip


def save_share(tx: engine.Transaction, organization: int, day: str, held: Share) -> None:
    """Write one back."""
    values = {kind: min(getattr(held.share, kind), _MOST) for kind in budgets.KINDS}
    values |= {f"spent_{kind}": min(getattr(held.spent, kind), _MOST) for kind in budgets.KINDS}
    tx.execute(
        "INSERT OR REPLACE INTO shares (organization_id, day, agent_id, session, number, tokens, cost_nano, tool_calls,"
        " spent_tokens, spent_cost_nano, spent_tool_calls) VALUES (:organization, :day, :agent, :session, :number,"
        " :tokens, :cost_nano, :tool_calls, :spent_tokens, :spent_cost_nano, :spent_tool_calls)",
        organization=organization, day=day, agent=held.agent, session=held.session, number=held.number, **values,
    )  # fmt: skip


def sums(tx: engine.Transaction, organization: int, day: str, *, but: int = 0) -> tuple[budgets.Units, budgets.Units]:
    """What agents may use together (used where that is more), and what they used; without the agent ``but``."""
    row = tx.one(
        "SELECT coalesce(sum(max(tokens, spent_tokens)), 0) AS tokens,"
        " coalesce(sum(max(cost_nano, spent_cost_nano)), 0) AS cost_nano,"
        " coalesce(sum(max(tool_calls, spent_tool_calls)), 0) AS tool_calls,"
        " coalesce(sum(spent_tokens), 0) AS spent_tokens, coalesce(sum(spent_cost_nano), 0) AS spent_cost_nano,"
        " coalesce(sum(spent_tool_calls), 0) AS spent_tool_calls"
        " FROM shares WHERE organization_id = :organization AND day = :day AND agent_id <> :but",
        organization=organization, day=day, but=but,
    )  # fmt: skip
    assert row is not None
    return (
        budgets.Units(**{kind: row[kind] for kind in budgets.KINDS}),
        budgets.Units(**{kind: row[f"spent_{kind}"] for kind in budgets.KINDS}),
    )


def forget_shares(tx: engine.Transaction, organization: int, *, before: str) -> None:
    """Delete those of days that are over."""
    tx.execute(
        "DELETE FROM shares WHERE organization_id = :organization AND day < :before",
        organization=organization, before=before,
    )  # fmt: skip


def _budget(row: engine.Row) -> Budget:
    return Budget(
        limit=budgets.Bounds(**{kind: row[kind] for kind in budgets.KINDS}),
        on_exhausted=row["on_exhausted"],
        extra=budgets.Units(**{kind: row[f"extra_{kind}"] for kind in budgets.KINDS}),
        extra_day=row["extra_day"],
    )
