"""The duty for rollouts: ask the rules what is next, store it, then act on it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, plane
from agentina.control.rollouts import model, rules
from agentina.control.services import anomalies, changes
from agentina.control.services import rollouts as service
from agentina.control.store import anomalies as store_anomalies
from agentina.control.store import audit, engine, rollouts
from agentina.protocol import wire

#: Longest time between two looks, in seconds, that counts as watched: a suspended machine has not looked.
_LONGEST_LOOK: Final = 60.0
#: Seconds of a watch that are not stored, and so lost when the process is killed.
_UNSTORED: Final = 15.0
#: Members that one operation stores, where it can be helped: requests come in between.
_MOST_ROWS: Final = 500
#: Rollouts that have ended are looked at so many times less often.
_ENDED_FACTOR: Final = 6

_log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class _Step:
    """What a look came to."""

    decision: rules.Decision
    #: Members that change or are new.
    changed: dict[int, model.Member]
    #: Those of them that are stored with the decision, and those before it because they are so many.
    rows: list[list[object]]
    marks: list[list[object]]
    #: Whose anomaly it is that a gate halted it.
    organizations: set[int] = dataclasses.field(default_factory=set)


class Rollouts:
    """Looks at all rollouts now and then."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        self._next = control.started
        # Nobody is online to this process before it has listened for as long as it takes to call somebody offline.
        self._judges_at = control.started + fleet.HEARTBEATS_MISSED * control.settings.heartbeat_seconds
        self._looked_at: float | None = None
        #: By rollout: seconds watched since its last change was stored, and when it is looked at again.
        self._unstored: dict[int, float] = {}
        self._again: dict[int, float] = {}

    @property
    def due(self) -> float:
        """Boot time at which :meth:`keep_going` has something to do again."""
        return self._next

    async def keep_going(self) -> None:
        """Take the next step of every rollout, when it is time to look.

        Raises:
            AgentinaError: The database cannot be written; it is decided again with the next look.

        """
        now = self._control.clock.boot()
        if now < self._next:
            return
        if now < self._judges_at:
            # What was decided before this process was started needs no judgement.
            await self._call_back()
            self._next = self._judges_at
            return
        period = self._control.settings.rollout_seconds
        self._next = now + period
        elapsed = 0.0 if self._looked_at is None else min(now - self._looked_at, _LONGEST_LOOK)
        self._looked_at = now
        living = self._control.store.read(rollouts.living)
        self._control.members.keep_only(stored.id for stored in living)
        for stored in living:
            if self._again.get(stored.id, now) > now:
                continue
            self._again[stored.id] = now + (period * _ENDED_FACTOR if stored.rollout.state not in model.ACTIVE else 0)
            await self._step(await service.call_back(self._control, stored.id), elapsed)

    async def _call_back(self) -> None:
        """Go on telling members of rollouts that go back."""
        for stored in self._control.store.read(rollouts.living):
            await service.call_back(self._control, stored.id)

    async def _step(self, stored: rollouts.Stored, elapsed: float) -> None:
        control = self._control
        known = dict(await control.members.read(stored))
        new = []
        if not stored.rollout.superseded:
            new = service.newcomers(control, stored.selection, stored.rollout.plan, known)
        known |= {member.agent: member for member in new}
        watched = 0.0
        if stored.rollout.state is model.State.RUNNING:
            watched = self._unstored.get(stored.id, 0.0) + elapsed
        facts = await service.facts(control, stored.rollout.plan, known.values())
        # In a thread: with many agents it takes a while, and it works with nothing but what it is given.
        step = await asyncio.to_thread(
            _decide, stored, known, facts, new, now_ms=control.clock.wall_ms(), elapsed=watched,
            is_withdrawn=_is_withdrawn(control, stored.rollout.plan),
        )  # fmt: skip
        decision, changed = step.decision, step.changed
        # Only that time has passed need not be stored each time.
        same = msgspec.structs.replace(decision.rollout, watched_seconds=stored.rollout.watched_seconds)
        if same == stored.rollout and not changed and not decision.lines and watched < _UNSTORED:
            self._unstored[stored.id] = watched
            return
        if decision.rollout == stored.rollout and not changed and not decision.lines:
            self._unstored[stored.id] = 0.0  # nothing is being watched
            return
        known |= changed
        if decision.rollout.gate and not stored.rollout.gate:
            step.organizations = self._organizations(known.values())
        revision = await self._save(stored, step)
        if revision is None:
            return
        self._unstored[stored.id] = 0.0
        control.members.note(stored.id, revision, known)
        self._act(stored, decision, changed)
        if decision.rollout.state is not stored.rollout.state:
            await self._follow_state(stored.id, decision.rollout.state)

    async def _save(self, stored: rollouts.Stored, step: _Step) -> int | None:
        """Store marks and then the decision; the rollout's revision, None: an operator was faster."""
        for start in range(0, len(step.marks), _MOST_ROWS):
            marks = step.marks[start : start + _MOST_ROWS]
            if not await self._control.store.write(functools.partial(_store_marks, stored=stored, rows=marks)):
                return None
            stored = dataclasses.replace(stored, revision=stored.revision + 1)
        is_stored = await self._control.write(lambda work: self._store(work, stored, step))
        return stored.revision + 1 if is_stored else None

    async def _follow_state(self, number: int, state: model.State) -> None:
        """What a state allows may change for everybody."""
        await service.follow_change(self._control, number)
        if state is model.State.ROLLING_BACK:
            # They are told at once, and where nobody is there to be told, that is the end of it.
            await self._step(await service.call_back(self._control, number), 0.0)

    def _store(
        self,
        work: changes.Work,
        stored: rollouts.Stored,
        step: _Step,
    ) -> bool:
        """Store a decision; False: an operator was faster, and the next look decides anew."""
        tx, decision = work.tx, step.decision
        if not rollouts.save(tx, stored, decision.rollout):
            return False
        now_ms = self._control.clock.wall_ms()
        rollouts.save_rows(tx, step.rows)
        for line in decision.lines:
            rollouts.tell(tx, stored.id, line.text, now_ms=now_ms)
            if line.act:
                audit.append(
                    tx, actor="control-plane", action=f"rollout.{line.act}", subject=stored.rollout.public_id,
                    detail={"text": line.text}, now_ms=now_ms,
                )  # fmt: skip
        _raise(work, step.organizations, decision.rollout)
        return True

    def _organizations(self, known: Iterable[model.Member]) -> set[int]:
        """Of the agents that a rollout changed."""
        agents = (self._control.fleet.agents.get(member.agent) for member in known if member.stage)
        return {agent.organization_id for agent in agents if agent is not None}

    def _act(
        self,
        stored: rollouts.Stored,
        decision: rules.Decision,
        changed: Mapping[int, model.Member],
    ) -> None:
        after = decision.rollout
        service.give_orders(self._control, stored.id, after, changed.values())
        self._control.bells.ring(service.bell(after.public_id))
        if after.gate and not stored.rollout.gate:
            self._control.metrics.rollouts_halted.labels(after.gate).inc()
        for line in decision.lines:
            extra = {"action": f"rollout-{line.act}" if line.act else "rollout", "rollout": after.public_id}
            _log.log(logging.WARNING if line.act == "halt" else logging.INFO, "rollout %s: %s", after.public_id,
                     line.text, extra=extra)  # fmt: skip


def _decide(
    stored: rollouts.Stored,
    known: Mapping[int, model.Member],
    facts: Mapping[int, model.Fact],
    new: Iterable[model.Member],
    *,
    now_ms: int,
    elapsed: float,
    is_withdrawn: bool,
) -> _Step:
    """What is to be stored."""
    decision = rules.decide(
        stored.rollout, known.values(), facts, now_ms=now_ms, elapsed=elapsed, is_withdrawn=is_withdrawn
    )
    changed = {member.agent: member for member in new} | dict(decision.members)
    marked = [member for member in changed.values() if _is_only_marked(known[member.agent], member)]
    if len(marked) <= _MOST_ROWS:
        marked = []
    apart = {member.agent for member in marked}
    rest = (member for member in changed.values() if member.agent not in apart)
    return _Step(
        decision, changed, rows=rollouts.member_rows(stored.id, rest), marks=rollouts.member_rows(stored.id, marked)
    )


def _is_only_marked(before: model.Member, after: model.Member) -> bool:
    """Whether nothing changed but when the comparison of its work began."""
    return before is not after and before == msgspec.structs.replace(after, mark=before.mark, mark_ms=before.mark_ms)


def _store_marks(tx: engine.Transaction, stored: rollouts.Stored, rows: list[list[object]]) -> bool:
    """Store some marks before the decision that they belong to: alone they change nothing. False: as for decisions."""
    if not rollouts.save(tx, stored, stored.rollout):
        return False
    rollouts.save_rows(tx, rows)
    return True


def _raise(work: changes.Work, organizations: Iterable[int], after: model.Rollout) -> None:
    """Somebody should look why a gate halted it: one anomaly for each organization it is for."""
    for organization in organizations:
        found = wire.Anomaly(
            id=after.public_id, kind="rollout", code=errors.ROLLOUT_HALTED.code, release=after.plan.version,
            summary=errors.ROLLOUT_HALTED(rollout=after.public_id, gate=after.gate, reason=after.reason).message,
            evidence={"gate": after.gate, "reason": after.reason},
        )  # fmt: skip
        source = store_anomalies.Source(organization_id=organization, at_ms=work.now_ms)
        anomalies.note(work, source, found)


def _is_withdrawn(control: plane.Plane, plan: model.Plan) -> bool:
    """Whether the release is in no channel any more."""
    return plan.kind == "release" and control.published is not None and plan.version not in control.published
