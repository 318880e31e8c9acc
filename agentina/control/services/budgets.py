"""What operators see of budgets and do to them."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.control import fleet, plane
from agentina.control.services import administration, changes
from agentina.control.store import audit, budgets, engine, jobs, registry, usage
from agentina.protocol import budgets as protocol
from agentina.protocol import inputs, names
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol.states import FINAL

SCOPES: Final = ("organization", "agent", "job")
_NOTHING: Final = protocol_jobs.Budget()


def listed(control: plane.Plane) -> list[protocol.BudgetView]:
    """All budgets of organizations and agents."""
    day = protocol.day_of(control.clock.wall_ms())

    def read(tx: engine.Transaction) -> list[protocol.BudgetView]:
        found = []
        for scope, number, budget in budgets.listed(tx):
            if scope == "organization":
                name = registry.organization_by_id(tx, number)["name"]
                found.append(_of_organization(tx, control, name, number, budget, day))
                continue
            agent = control.fleet.agents.get(number)
            if agent is not None:
                found.append(_of_agent(tx, control, agent.public_id, budget, day))
        return found

    return control.store.read(read)


def view(control: plane.Plane, scope: str, name: str) -> protocol.BudgetView:
    """One budget, with what is used of it.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``JOB_UNKNOWN``, ``NAME_INVALID``.

    """
    return control.store.read(lambda tx: _view(tx, control, scope, name))


async def replace(
    control: plane.Plane, scope: str, name: str, wanted: protocol.BudgetSet, *, actor: str
) -> protocol.BudgetView:
    """Set limits; what is not named has none.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``JOB_UNKNOWN``, ``JOB_FINISHED``, ``INPUT_INVALID``, ``NAME_INVALID``.

    """
    _check_duration(scope, wanted.duration)

    def operation(work: changes.Work) -> None:
        limit = protocol.Bounds(**{kind: getattr(wanted, kind) for kind in protocol.KINDS})
        before = _stored(work.tx, control, scope, name)
        if scope == "job":
            cost = None if limit.cost_nano is None else limit.cost_nano / protocol.DOLLAR
            budget = protocol_jobs.Budget(
                tokens=limit.tokens, cost=cost, tool_calls=limit.tool_calls, duration=wanted.duration,
                on_exhausted=wanted.on_exhausted or _job_budget(work.tx, name).on_exhausted,
            )  # fmt: skip
            _save_job(work, name, budget, actor)
        else:
            number = _subject(work.tx, control, scope, name)
            how = wanted.on_exhausted or ("stop" if before is None else before.on_exhausted)
            # What was added for today goes with the limit it was added to.
            budgets.save(work.tx, _scope(scope), number, budgets.Budget(limit=limit, on_exhausted=how))
        detail = {key: value for key, value in msgspec.to_builtins(wanted).items() if value is not None}
        _record(work, actor, "budget.set", f"{scope}:{name}", detail=detail)

    await control.write(operation)
    return view(control, scope, name)


async def add(
    control: plane.Plane, scope: str, name: str, more: protocol.BudgetRaise, *, actor: str
) -> protocol.BudgetView:
    """Add to limits there are: for a job for good, for an agent or organization today.

    Raises:
        AgentinaError: As :func:`replace`; ``INPUT_INVALID`` where there is no limit to raise.

    """
    _check_duration(scope, more.duration or None)
    extra = protocol.Units(**{kind: getattr(more, kind) for kind in protocol.KINDS})
    day = protocol.day_of(control.clock.wall_ms())

    def operation(work: changes.Work) -> None:
        budget = _stored(work.tx, control, scope, name)
        limit = protocol.Bounds() if budget is None else budget.limit
        for kind in protocol.KINDS:
            if getattr(extra, kind) and getattr(limit, kind) is None:
                raise _no_limit(kind, scope)
        if scope == "job":
            _save_job(work, name, _raised(_job_budget(work.tx, name), extra, more.duration), actor)
        elif budget is not None:
            added = budget.extra + extra if budget.extra_day == day else extra
            number = _subject(work.tx, control, scope, name)
            budgets.save(work.tx, _scope(scope), number, dataclasses.replace(budget, extra=added, extra_day=day))
        detail = {key: value for key, value in msgspec.to_builtins(more).items() if value}
        _record(work, actor, "budget.raise", f"{scope}:{name}", detail=detail)

    await control.write(operation)
    return view(control, scope, name)


async def remove(control: plane.Plane, scope: str, name: str, *, actor: str) -> None:
    """Take a daily budget away.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``INPUT_INVALID`` for a job's.

    """
    if scope == "job":
        raise errors.INPUT_INVALID(where="scope", problem="a job keeps its budget; its limits can be raised or set")

    def operation(work: changes.Work) -> None:
        number = _subject(work.tx, control, scope, name)
        if budgets.find(work.tx, _scope(scope), number) is None:
            raise errors.NOT_FOUND(what="budget", name=f"{scope}:{name}")
        budgets.remove(work.tx, _scope(scope), number)
        _record(work, actor, "budget.remove", f"{scope}:{name}", detail={})

    await control.write(operation)


# --- what there is ---------------------------------------------------------------------------------------------------


def _view(tx: engine.Transaction, control: plane.Plane, scope: str, name: str) -> protocol.BudgetView:
    day = protocol.day_of(control.clock.wall_ms())
    if scope == "job":
        return _of_job(tx, control, name)
    number = _subject(tx, control, scope, name)
    budget = budgets.find(tx, _scope(scope), number)
    if scope == "agent":
        return _of_agent(tx, control, name, budget, day)
    return _of_organization(tx, control, name, number, budget, day)


def _of_organization(  # noqa: PLR0917 - private; all of one kind
    tx: engine.Transaction, control: plane.Plane, name: str, number: int, budget: budgets.Budget | None, day: str
) -> protocol.BudgetView:
    shared, used = budgets.sums(tx, number, day)
    agents = [agent for agent in control.fleet.agents.values() if agent.organization_id == number]
    parked = [text for agent in agents for text in _parked(agent)]
    return _daily(
        "organization", name, budget, day, used=used, shared=shared, parked=parked, as_of_ms=_heard_ms(agents)
    )


def _of_agent(  # noqa: PLR0917 - likewise
    tx: engine.Transaction, control: plane.Plane, name: str, budget: budgets.Budget | None, day: str
) -> protocol.BudgetView:
    agent = administration.find_agent(control, name)
    share = budgets.share(tx, agent.organization_id, day, agent.id)
    used = protocol.Units() if share is None else share.spent
    return _daily("agent", name, budget, day, used=used, parked=_parked(agent), label=agent.name,
                  as_of_ms=_heard_ms([agent]))  # fmt: skip


def _parked(agent: fleet.Agent) -> list[str]:
    """The agent's tasks that are held at a call, and why."""
    return [f"{held.task_id}: {held.parked}" for held in agent.held.values() if held.parked]


def _heard_ms(agents: list[fleet.Agent]) -> int | None:
    """When the one that works and has been silent for longest was heard of."""
    return min((agent.heartbeat_ms for agent in agents if agent.held and agent.heartbeat_ms is not None), default=None)


def _daily(
    scope: Any, name: str, budget: budgets.Budget | None, day: str, *, used: protocol.Units, **more: Any
) -> protocol.BudgetView:
    limit = protocol.Bounds() if budget is None else budget.of_day(day)
    return protocol.BudgetView(
        scope=scope, name=name, limit=limit, used=used, left=_left(limit, used), day=day,
        on_exhausted="stop" if budget is None else budget.on_exhausted,
        extra=budget.extra if budget is not None and budget.extra_day == day else protocol.Units(), **more,
    )  # fmt: skip


def _of_job(tx: engine.Transaction, control: plane.Plane, name: str) -> protocol.BudgetView:
    job = jobs.get(tx, name)
    budget = _job_budget(tx, name)
    held = control.fleet.held.get(f"{name}.{job.tasks}")
    rows = usage.of_task(tx, job.id, job.tasks)
    total = protocol.add(rows)
    if held is not None and protocol.add(held.models).calls > total.calls:
        total = protocol.add(held.models)
    used = protocol.Units(tokens=total.counted, cost_nano=total.cost_nano, tool_calls=total.tool_calls)
    limit = protocol.bounds_of(budget)
    return protocol.BudgetView(
        scope="job", name=name, limit=limit, used=used, left=_left(limit, used), duration=budget.duration,
        on_exhausted=budget.on_exhausted, parked=[held.parked] if held is not None and held.parked else [],
        as_of_ms=None if held is None else held.agent.heartbeat_ms,
    )  # fmt: skip


def _left(limit: protocol.Bounds, used: protocol.Units) -> protocol.Bounds:
    limits = {kind: getattr(limit, kind) for kind in protocol.KINDS}
    return protocol.Bounds(
        **{kind: None if most is None else max(0, most - getattr(used, kind)) for kind, most in limits.items()}
    )


# --- whose ------------------------------------------------------------------------------------------------------------


def _scope(scope: str) -> budgets.Scope:
    return "organization" if scope == "organization" else "agent"


def _subject(tx: engine.Transaction, control: plane.Plane, scope: str, name: str) -> int:
    """Row id of an organization or agent."""
    if scope == "agent":
        return administration.find_agent(control, name).id
    if scope != "organization":
        raise errors.NOT_FOUND(what="kind of budget", name=scope[:40])
    return int(registry.get_organization(tx, names.check_organization(name))["id"])


def _stored(tx: engine.Transaction, control: plane.Plane, scope: str, name: str) -> budgets.Budget | None:
    if scope == "job":
        budget = _job_budget(tx, name)
        return budgets.Budget(limit=protocol.bounds_of(budget), on_exhausted=budget.on_exhausted)
    return budgets.find(tx, _scope(scope), _subject(tx, control, scope, name))


def _job_budget(tx: engine.Transaction, name: str) -> protocol_jobs.Budget:
    job = jobs.get(tx, name)
    return msgspec.json.decode(jobs.spec(tx, job.id), type=protocol_jobs.JobSpec).budget or _NOTHING


def _no_limit(kind: str, scope: str) -> errors.AgentinaError:
    problem = f"this {scope} has no such limit that could be raised; `agentina budget set` makes one"
    return errors.INPUT_INVALID(where=kind, problem=problem)


def _raised(budget: protocol_jobs.Budget, extra: protocol.Units, duration: float) -> protocol_jobs.Budget:
    limit = protocol.bounds_of(budget)
    sums = {
        kind: None if getattr(limit, kind) is None else getattr(limit, kind) + getattr(extra, kind)
        for kind in protocol.KINDS
    }
    if duration and budget.duration is None:
        raise _no_limit("duration", "job")
    return msgspec.structs.replace(
        budget, tokens=sums["tokens"], tool_calls=sums["tool_calls"],
        cost=None if sums["cost_nano"] is None else sums["cost_nano"] / protocol.DOLLAR,
        duration=None if budget.duration is None else budget.duration + duration,
    )  # fmt: skip


def _save_job(work: changes.Work, name: str, budget: protocol_jobs.Budget, actor: str) -> None:
    job = jobs.get(work.tx, name)
    if job.state in FINAL:
        raise errors.JOB_FINISHED(job=name, state=job.state.value)
    spec = msgspec.json.decode(jobs.spec(work.tx, job.id), type=protocol_jobs.JobSpec)
    if spec.budget is None and job.tasks:
        problem = "the job was submitted without a budget, so no gateway may be there to hold one"
        raise errors.INPUT_INVALID(where="budget", problem=problem)
    # Checked as one that is submitted: hosts refuse to read what is not.
    budget = inputs.convert(msgspec.to_builtins(budget), protocol_jobs.Budget, "budget")
    changed = msgspec.structs.replace(spec, budget=budget)
    jobs.change_budget(work.tx, job.id, msgspec.json.encode(changed).decode())
    job.tell(f"{actor} changed the budget: {_sentence(budget)}", now_ms=work.now_ms)
    jobs.save(work.tx, job)
    work.effects.jobs.add(job.public_id)


def _sentence(budget: protocol_jobs.Budget) -> str:
    limits = {key: value for key, value in msgspec.to_builtins(budget).items() if value is not None}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in limits.items())


def _check_duration(scope: str, duration: float | None) -> None:
    if duration is not None and scope != "job":
        raise errors.INPUT_INVALID(where="duration", problem="only a job's budget limits the duration")


def _record(work: changes.Work, actor: str, action: str, subject: str, *, detail: dict[str, Any]) -> None:
    audit.append(work.tx, actor=actor, action=action, subject=subject, detail=detail, now_ms=work.now_ms)
