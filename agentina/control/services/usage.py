"""What tasks used of models: taken from heartbeats and from a task's end, stored, and reported."""

from __future__ import annotations

import datetime as dt
from typing import Final

from agentina import errors
from agentina.control import plane
from agentina.control.services import changes
from agentina.control.store import engine, registry, tasks, usage
from agentina.protocol import budgets

#: Tasks in one operation; requests come in between.
_CHUNK: Final = 200
#: Days of a report that names no beginning, today included.
_DAYS: Final = 30


def keep(work: changes.Work, task: tasks.Task, rows: list[budgets.ModelUsage]) -> None:
    """Store what a task used, as far as it is news."""
    for model, more in usage.keep(work.tx, task.id, rows):
        work.effects.used.append((task.job.role or "", model, more))


async def flush(control: plane.Plane) -> None:
    """Store what heartbeats told since the last time. A kill loses nothing: the next heartbeats tell it again."""
    waiting = list(control.usage_told.items())
    for start in range(0, len(waiting), _CHUNK):
        chunk = waiting[start : start + _CHUNK]

        def operation(work: changes.Work, chunk: list[tuple[int, list[budgets.ModelUsage]]] = chunk) -> None:
            for number, rows in chunk:
                keep(work, tasks.by_id(work.tx, number), rows)

        await control.write(operation)
        for number, rows in chunk:
            if control.usage_told.get(number) is rows:
                del control.usage_told[number]


def report(
    control: plane.Plane, *, by: str, since: str | None, until: str | None, organization: str | None, limit: int
) -> budgets.UsageReport:
    """Usage of some days in groups.

    Raises:
        AgentinaError: ``INPUT_INVALID``; ``NOT_FOUND`` for the organization.

    """
    group: usage.By | None = next((known for known in usage.GROUPS if known == by), None)
    if group is None:
        problem = f"expected one of {', '.join(usage.GROUPS)}, got {by[:40]!r}"
        raise errors.INPUT_INVALID(where="query.by", problem=problem)
    last = _day(until, "until") if until else dt.datetime.fromtimestamp(
        control.clock.wall_ms() / 1000, dt.UTC
    ).date()  # fmt: skip
    first = _day(since, "since") if since else last - dt.timedelta(days=min(_DAYS, last.toordinal()) - 1)
    if first > last:
        raise errors.INPUT_INVALID(where="query.since", problem=f"{first} is after the last day, {last}")

    def read(tx: engine.Transaction) -> tuple[list[usage.Group], budgets.Amounts]:
        if organization is not None:
            registry.get_organization(tx, organization)
        return usage.report(
            tx, group, since=first.isoformat(), until=last.isoformat(), organization=organization, limit=limit + 1
        )

    groups, total = control.store.read(read)
    return budgets.UsageReport(
        by=by, since=first.isoformat(), until=last.isoformat(),
        rows=[_row(one.key, one.name, one.amounts) for one in groups[:limit]],
        total=total, is_cut=len(groups) > limit,
    )  # fmt: skip


def of_job(tx: engine.Transaction, job: int) -> list[budgets.UsageRow]:
    """What a job used, by model."""
    return [_row(model, "", amounts) for model, amounts in usage.of_job(tx, job)]


def _row(key: str, name: str, amounts: budgets.Amounts) -> budgets.UsageRow:
    figures = {figure: getattr(amounts, figure) for figure in budgets.FIGURES}
    return budgets.UsageRow(key=key, name=name, **figures)


def _day(text: str, name: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        problem = f"expected a day such as 2026-11-21, got {text[:40]!r}"
        raise errors.INPUT_INVALID(where=f"query.{name}", problem=problem) from error
