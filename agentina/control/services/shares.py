"""Answers hosts that ask what they may use of the budgets of a day (docs/explanation/budgets.md)."""

from __future__ import annotations

import datetime as dt

import msgspec

from agentina.control import fleet, plane
from agentina.control.budgets import sharing
from agentina.control.services import changes, sessions
from agentina.control.store import budgets, engine, jobs
from agentina.protocol import budgets as protocol
from agentina.protocol import jobs as protocol_jobs


class _BudgetPart(msgspec.Struct):
    """The only part of a stored specification that is needed here."""

    budget: protocol_jobs.Budget | None = None


_decoder = msgspec.json.Decoder(_BudgetPart)


async def answer(control: plane.Plane, agent: fleet.Agent, message: protocol.Ask) -> protocol.Answer:
    """What the agent may use today.

    Raises:
        AgentinaError: ``SESSION_SUPERSEDED``, ``AGENT_UNKNOWN``.

    """
    sessions.check(agent, message.session)
    agent.last_seen = control.clock.boot()
    today = protocol.day_of(control.clock.wall_ms())

    def operation(work: changes.Work) -> protocol.Answer:
        sessions.check_standing(work.tx, agent, message.session)
        organization = budgets.find(work.tx, "organization", agent.organization_id)
        if message.day == today:
            share = _divide(work.tx, agent, message, organization)
        else:
            # Its clock is wrong, or midnight is now: nothing is shared out before both mean the same day.
            share = _of_another_day(organization, today)
        own = budgets.find(work.tx, "agent", agent.id)
        return protocol.Answer(
            number=message.number,
            day=today,
            organization=share,
            agent=None if own is None else _whole(own, today),
            tasks=_changed(work.tx, agent),
        )

    return await control.write(operation)


def _divide(
    tx: engine.Transaction, agent: fleet.Agent, message: protocol.Ask, budget: budgets.Budget | None
) -> protocol.Share | None:
    """Divide the organization's budget; what the agent used is kept also where there is none, for it may come."""
    day, owner = message.day, agent.organization_id
    known = budgets.share(tx, owner, day, agent.id)
    is_newest = known is None or (message.session, message.number) > (known.session, known.number)
    others, used = budgets.sums(tx, owner, day, but=agent.id)
    limit = protocol.Bounds() if budget is None else budget.of_day(day)
    divided = sharing.divide(
        sharing.Request(
            limit=limit, others=others, stored=None if known is None else known.share, promise=message.promise,
            spent=message.spent, held=message.held, want=message.want, least=message.least, is_newest=is_newest,
        )
    )  # fmt: skip
    if is_newest:
        held = budgets.Share(
            agent=agent.id, session=message.session, number=message.number, share=divided.stored, spent=message.spent
        )
        if known is None:
            budgets.forget_shares(tx, owner, before=_days_before(day, budgets.KEPT_DAYS))
        if held != known:
            budgets.save_share(tx, owner, day, held)
    if budget is None:
        return None
    used += message.spent
    left = {kind: getattr(limit, kind) for kind in protocol.KINDS}
    return protocol.Share(
        limit=limit,
        cap=divided.told,
        left=protocol.Bounds(
            **{kind: None if most is None else max(0, most - getattr(used, kind)) for kind, most in left.items()}
        ),
        cushion=divided.cushion,
        on_exhausted=budget.on_exhausted,
    )


def _of_another_day(budget: budgets.Budget | None, today: str) -> protocol.Share | None:
    if budget is None:
        return None
    limit = budget.of_day(today)
    nothing = {kind: None if getattr(limit, kind) is None else 0 for kind in protocol.KINDS}
    return protocol.Share(limit=limit, cap=protocol.Bounds(**nothing), left=limit, on_exhausted=budget.on_exhausted)


def _whole(budget: budgets.Budget, today: str) -> protocol.Whole:
    extra = budget.extra if budget.extra_day == today else protocol.Units()
    return protocol.Whole(limit=budget.of_day(today), extra=extra, on_exhausted=budget.on_exhausted)


def _changed(tx: engine.Transaction, agent: fleet.Agent) -> dict[str, protocol_jobs.Budget]:
    """Budgets of the agent's tasks that an operator changed."""
    found = {}
    for held in agent.held.values():
        spec = jobs.changed_spec(tx, held.job)
        budget = None if spec is None else _decoder.decode(spec).budget
        if budget is not None:
            found[held.task_id] = budget
    return found


def _days_before(day: str, count: int) -> str:
    return (dt.date.fromisoformat(day) - dt.timedelta(days=count)).isoformat()
