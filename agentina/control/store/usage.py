"""What tasks used of models. Hosts tell totals; one that is older than what is known changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final, Literal

from agentina.control.store import engine
from agentina.protocol import budgets

By = Literal["job", "agent", "organization", "model", "day"]

#: No honest figure of one task, model and day comes near; larger ones would make sums overflow.
_MOST: Final = 1 << 48
#: Most rows of one task: a host has half as many, and one of each day for what is beyond.
_MOST_ROWS: Final = 2 * budgets.MAX_ROWS
#: What groups are called, and their name for people.
GROUPS: Final[dict[By, tuple[str, str]]] = {
    "job": ("j.public_id", "j.name"),
    "agent": ("a.public_id", "a.hostname || '/' || a.instance"),
    "organization": ("o.name", "''"),
    "model": ("u.model", "''"),
    "day": ("u.day", "''"),
}
_NAMES: Final = ", ".join(budgets.FIGURES)
_SUMS: Final = ", ".join(f"coalesce(sum(u.{name}), 0) AS {name}" for name in budgets.FIGURES)
_BY_MODEL: Final = f"SELECT u.model, {_SUMS} FROM usage u JOIN tasks t ON t.id = u.task_id"  # noqa: S608 - constants
_JOINED: Final = (
    "FROM usage u JOIN tasks t ON t.id = u.task_id JOIN jobs j ON j.id = t.job_id"
    " JOIN agents a ON a.id = u.agent_id JOIN organizations o ON o.id = u.organization_id"
    " WHERE u.day BETWEEN :since AND :until AND (:organization IS NULL OR o.name = :organization)"
)
_KNOWN: Final = "SELECT * FROM usage WHERE task_id = :task AND day = :day AND model = :model"
_PLACES: Final = ", ".join(f":{name}" for name in budgets.FIGURES)
_NEWER: Final = ", ".join(f"{name} = excluded.{name}" for name in budgets.FIGURES)
_COLUMNS: Final = f"usage (task_id, day, model, organization_id, agent_id, {_NAMES})"
_OWNED: Final = (
    f"t.id, :day, :model, j.organization_id, t.agent_id, {_PLACES} FROM tasks t JOIN jobs j ON j.id = t.job_id"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A line of a report."""

    #: Id of a job or agent, name of an organization or model, a day.
    key: str
    #: What people call it, where that is something else.
    name: str
    amounts: budgets.Amounts


def keep(tx: engine.Transaction, task: int, rows: Iterable[budgets.ModelUsage]) -> list[tuple[str, budgets.Amounts]]:
    """Store what a task used; by how much each model's figures grew is returned.

    Rows beyond those that any host has are left out: their models and days are made up.
    """
    grown = []
    for row in rows:
        known = tx.one(_KNOWN, task=task, day=row.day, model=row.model)
        if known is None and _count(tx, task) >= _MOST_ROWS:
            continue
        before = _amounts(known) if known is not None else budgets.Amounts()
        # Every counted call adds one, so of two totals the one with more calls is the later.
        if row.calls <= before.calls:
            continue
        values = {name: min(getattr(row, name), _MOST) for name in budgets.FIGURES}
        tx.execute(
            f"INSERT INTO {_COLUMNS} SELECT {_OWNED} WHERE t.id = :task ON CONFLICT DO UPDATE SET {_NEWER}",
            task=task, day=row.day, model=row.model, **values,
        )  # fmt: skip
        more = {name: max(values[name] - getattr(before, name), 0) for name in budgets.FIGURES}
        grown.append((row.model, budgets.Amounts(**more)))
    return grown


def _count(tx: engine.Transaction, task: int) -> int:
    row = tx.one("SELECT count(*) FROM usage WHERE task_id = :task", task=task)
    assert row is not None
    return int(row[0])


def report(
    tx: engine.Transaction, by: By, *, since: str, until: str, organization: str | None, limit: int
) -> tuple[list[Group], budgets.Amounts]:
    """Usage of some days (both included) in groups, the dearest first, and all of it together."""
    key, name = GROUPS[by]
    order = "key" if by == "day" else "cost_nano DESC, output DESC, key"
    values = {"since": since, "until": until, "organization": organization}
    rows = tx.all(
        f"SELECT {key} AS key, max({name}) AS name, {_SUMS} {_JOINED} GROUP BY 1 ORDER BY {order} LIMIT :limit",
        limit=limit, **values,
    )  # fmt: skip
    total = tx.one(f"SELECT {_SUMS} {_JOINED}", **values)
    assert total is not None
    return [Group(row["key"], row["name"], _amounts(row)) for row in rows], _amounts(total)


def of_job(tx: engine.Transaction, job: int) -> list[tuple[str, budgets.Amounts]]:
    """What a job's tasks used together, by model."""
    rows = tx.all(f"{_BY_MODEL} WHERE t.job_id = :job GROUP BY u.model ORDER BY u.model LIMIT 1000", job=job)
    return [(row["model"], _amounts(row)) for row in rows]


def of_task(tx: engine.Transaction, job: int, number: int) -> list[budgets.Amounts]:
    """What one task of a job used, by day and model."""
    rows = tx.all(
        "SELECT u.* FROM usage u JOIN tasks t ON t.id = u.task_id WHERE t.job_id = :job AND t.number = :number",
        job=job, number=number,
    )  # fmt: skip
    return [_amounts(row) for row in rows]


def _amounts(row: engine.Row) -> budgets.Amounts:
    return budgets.Amounts(**{name: row[name] for name in budgets.FIGURES})
