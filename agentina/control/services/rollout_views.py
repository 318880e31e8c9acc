"""Rollouts as operators see them: rows and memory as the structs of the operator API."""

from __future__ import annotations

import asyncio
import collections
import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from agentina.control import plane
from agentina.control.rollouts import figures, members, model, rules
from agentina.control.services import rollout_members
from agentina.control.services import rollouts as service
from agentina.control.store import engine, rollouts
from agentina.protocol import api

#: Standings in the order of how much they need attention.
_INTERESTING: Final = (
    model.Standing.FAILED, model.Standing.SILENT, model.Standing.RETURNING, model.Standing.ORDERED,
    model.Standing.UPDATED, model.Standing.PENDING, model.Standing.RETURNED, model.Standing.CURRENT,
)  # fmt: skip


def listed(control: plane.Plane, *, limit: int) -> api.RolloutList:
    """The newest rollouts first."""

    def read(tx: engine.Transaction) -> list[api.RolloutSummary]:
        return [_summary(stored, rollouts.counts(tx, stored.id)) for stored in rollouts.newest(tx, limit=limit)]

    return api.RolloutList(rollouts=control.store.read(read))


async def view(control: plane.Plane, public_id: str, *, limit: int) -> api.RolloutView:
    """Everything about one rollout, with at most ``limit`` agents.

    Raises:
        AgentinaError: ``NOT_FOUND``.

    """

    def read(tx: engine.Transaction) -> tuple[rollouts.Stored, list[engine.Row]]:
        stored = service.find(tx, public_id)
        return stored, rollouts.lines(tx, stored.id)

    members_now = await control.members.read(control.store.read(lambda tx: service.find(tx, public_id)))
    stored, lines = control.store.read(read)
    known = list(members_now.values())
    rollout, now_ms = stored.rollout, control.clock.wall_ms()
    facts = await service.facts(control, rollout.plan, known)
    samples, shown = await asyncio.to_thread(_sorted, known, facts, now_ms, limit)
    plan = msgspec.structs.asdict(rollout.plan)
    if plan.pop("kind") == "release":
        del plan["settings"]
    terms = stored.selection.words()
    return api.RolloutView(
        rollout=_summary(stored, collections.Counter(member.standing.value for member in known)),
        revision=stored.revision,
        plan=api.RolloutStart(**plan, select=[] if stored.selection.is_open() else terms.split(",")),
        watched_seconds=rollout.watched_seconds,
        watch_seconds=rollout.plan.seconds(rollout.stage),
        work=_work(samples),
        agents=await _agents(control, rollout, shown, facts),
        lines=[api.RolloutLine(number=row["number"], at_ms=row["at_ms"], text=row["text"]) for row in lines],
    )


def _summary(stored: rollouts.Stored, counts: Mapping[str, int]) -> api.RolloutSummary:
    rollout = stored.rollout
    return api.RolloutSummary(
        id=rollout.public_id, kind=rollout.plan.kind, version=rollout.plan.version,
        state=rollout.state.value, stage=rollout.stage,
        phase=rollout.phase, reason=rollout.reason, gate=rollout.gate, select=stored.selection.words(),
        agents=dict(counts), created_ms=stored.created_ms, created_by=stored.created_by,
    )  # fmt: skip


def _sorted(
    known: Sequence[model.Member], facts: Mapping[int, model.Fact], now_ms: int, limit: int
) -> tuple[rules.WorkSamples, list[model.Member]]:
    """What the gates compare, and the members to show: those that need attention first. Takes a while; for a thread."""
    there = (member for member in known if member.agent in facts)
    ordered = sorted(there, key=lambda member: (_INTERESTING.index(member.standing), member.stage, member.agent))
    return rules.work_samples(known, facts, now_ms), ordered[:limit]


async def _agents(
    control: plane.Plane, rollout: model.Rollout, known: Sequence[model.Member], facts: Mapping[int, model.Fact]
) -> list[api.RolloutAgent]:
    now_ms = control.clock.wall_ms()
    shown = []
    for number, member in enumerate(known):
        if number % rollout_members.SLICE == 0:
            await asyncio.sleep(0)
        agent, fact = control.fleet.agents.get(member.agent), facts.get(member.agent)
        if agent is None or fact is None:
            continue
        reason = member.reason
        if member.standing is model.Standing.PENDING:
            obstacle = members.obstacle(rollout, member, fact, now_ms)
            reason = obstacle.text if obstacle is not None else reason
        elif member.standing in {model.Standing.ORDERED, model.Standing.RETURNING}:
            reason = _progress(rollout, member, fact) or reason
        shown.append(
            api.RolloutAgent(
                id=agent.public_id, name=agent.name, version=fact.version, standing=member.standing.value,
                stage=member.stage, reason=reason, since_ms=member.since_ms,
            )
        )  # fmt: skip
    return shown


def _progress(rollout: model.Rollout, member: model.Member, fact: model.Fact) -> str:
    """How far its host says it is."""
    if not fact.is_online:
        return "it is offline"
    report = fact.report
    if report is None or report.id != model.order_id(rollout, member):
        return "not begun"
    return f"{report.state}: {report.reason} {report.detail}".strip() if report.reason else report.state


def _work(samples: rules.WorkSamples) -> list[api.RolloutWork]:
    named = {"updated": samples.updated, "past": samples.past, "others": samples.others}
    return [_work_of(who, sample) for who, sample in named.items()]


def _work_of(who: str, sample: figures.Sample) -> api.RolloutWork:
    work = sample.figures
    typical = math.exp(work.logs / work.timed) if work.timed else None
    return api.RolloutWork(
        who=who, tasks=work.ended, failed=work.failed, typical_seconds=typical, agent_seconds=sample.agent_seconds
    )
