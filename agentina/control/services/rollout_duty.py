"""The duty for rollouts: ask the rules what is next, store it, then act on it."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, plane
from agentina.control.rollouts import model, rules
from agentina.control.services import anomalies, changes
from agentina.control.services import rollouts as service
from agentina.control.store import anomalies as store_anomalies
from agentina.control.store import audit, rollouts
from agentina.protocol import wire

#: Longest time between two looks, in seconds, that counts as watched: a suspended machine has not looked.
_LONGEST_LOOK: Final = 60.0
#: Seconds of a watch that are not stored, and so lost when the process is killed.
_UNSTORED: Final = 15.0
#: Rollouts that have ended are looked at so many times less often.
_ENDED_FACTOR: Final = 6

_log = logging.getLogger(__name__)


class Rollouts:
    """Looks at all rollouts now and then."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        # Nobody is online to this process before it has listened for as long as it takes to call somebody offline.
        self._next = control.started + fleet.HEARTBEATS_MISSED * control.settings.heartbeat_seconds
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
        period = self._control.settings.rollout_seconds
        self._next = now + period
        elapsed = 0.0 if self._looked_at is None else min(now - self._looked_at, _LONGEST_LOOK)
        self._looked_at = now
        for stored in self._control.store.read(rollouts.living):
            if self._again.get(stored.id, now) > now:
                continue
            self._again[stored.id] = now + (period * _ENDED_FACTOR if stored.rollout.state not in model.ACTIVE else 0)
            await self._step(stored, elapsed)

    async def _step(self, stored: rollouts.Stored, elapsed: float) -> None:
        control = self._control
        known = {member.agent: member for member in control.store.read(lambda tx: rollouts.members(tx, stored.id))}
        new = []
        if not stored.rollout.superseded:
            new = service.newcomers(control, stored.selection, stored.rollout.plan, known)
        known |= {member.agent: member for member in new}
        watched = 0.0
        if stored.rollout.state is model.State.RUNNING:
            watched = self._unstored.get(stored.id, 0.0) + elapsed
        decision = rules.decide(
            stored.rollout, known.values(), service.facts(control, stored.rollout.plan, known.values()),
            now_ms=control.clock.wall_ms(),
            elapsed=watched,
            is_withdrawn=_is_withdrawn(control, stored.rollout.plan),
        )  # fmt: skip
        changed = {member.agent: member for member in new} | dict(decision.members)
        # Only that time has passed need not be stored each time.
        same = msgspec.structs.replace(decision.rollout, watched_seconds=stored.rollout.watched_seconds)
        if same == stored.rollout and not changed and not decision.lines and watched < _UNSTORED:
            self._unstored[stored.id] = watched
            return
        if decision.rollout == stored.rollout and not changed and not decision.lines:
            self._unstored[stored.id] = 0.0  # nothing is being watched
            return
        if await control.write(lambda work: self._store(work, stored, decision, changed)):
            self._unstored[stored.id] = 0.0
            self._act(stored, decision, changed)

    def _store(
        self,
        work: changes.Work,
        stored: rollouts.Stored,
        decision: rules.Decision,
        changed: dict[int, model.Member],
    ) -> bool:
        """Store a decision; False: an operator was faster, and the next look decides anew."""
        tx = work.tx
        if not rollouts.save(tx, stored, decision.rollout):
            return False
        now_ms = self._control.clock.wall_ms()
        rollouts.save_members(tx, stored.id, changed.values())
        for line in decision.lines:
            rollouts.tell(tx, stored.id, line.text, now_ms=now_ms)
            if line.act:
                audit.append(
                    tx, actor="control-plane", action=f"rollout.{line.act}", subject=stored.rollout.public_id,
                    detail={"text": line.text}, now_ms=now_ms,
                )  # fmt: skip
        if decision.rollout.gate and not stored.rollout.gate:
            self._raise(work, stored, decision.rollout)
        return True

    def _raise(self, work: changes.Work, stored: rollouts.Stored, after: model.Rollout) -> None:
        """Somebody should look why a gate halted it: one anomaly for each organization it is for."""
        known = rollouts.members(work.tx, stored.id)
        agents = (self._control.fleet.agents.get(member.agent) for member in known if member.stage)
        for organization in {agent.organization_id for agent in agents if agent is not None}:
            found = wire.Anomaly(
                id=after.public_id, kind="rollout", code=errors.ROLLOUT_HALTED.code, release=after.plan.version,
                summary=errors.ROLLOUT_HALTED(rollout=after.public_id, gate=after.gate, reason=after.reason).message,
                evidence={"gate": after.gate, "reason": after.reason},
            )  # fmt: skip
            source = store_anomalies.Source(organization_id=organization, at_ms=work.now_ms)
            anomalies.note(work, source, found)

    def _act(self, stored: rollouts.Stored, decision: rules.Decision, changed: dict[int, model.Member]) -> None:
        after = decision.rollout
        if after.state is stored.rollout.state:
            service.give_orders(self._control, stored.id, after, changed.values())
            self._control.bells.ring(service.bell(after.public_id))
        else:
            # What a state allows may change for everybody.
            service.follow_change(self._control, stored, after)
        if after.gate and not stored.rollout.gate:
            self._control.metrics.rollouts_halted.labels(after.gate).inc()
        for line in decision.lines:
            extra = {"action": f"rollout-{line.act}" if line.act else "rollout", "rollout": after.public_id}
            _log.log(logging.WARNING if line.act == "halt" else logging.INFO, "rollout %s: %s", after.public_id,
                     line.text, extra=extra)  # fmt: skip


def _is_withdrawn(control: plane.Plane, plan: model.Plan) -> bool:
    """Whether the release is in no channel any more."""
    return plan.kind == "release" and control.published is not None and plan.version not in control.published
