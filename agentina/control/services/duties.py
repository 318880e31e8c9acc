"""Background duties: give up expired leases, end backoffs, keep heartbeat facts, keep releases signed, roll out."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, plane
from agentina.control.services import anomalies, changes, checkpoints, outcomes, releases, rollout_duty, usage
from agentina.control.store import agents, engine, jobs, tasks
from agentina.protocol import wire
from agentina.protocol.states import Reason, State

#: Longest sleep in seconds: timers stand still while a machine is suspended, leases do not.
_LONGEST_SLEEP: Final = 5.0
#: Shortest sleep in seconds, so that nothing spins when the disk refuses what a duty wants to write.
_SHORTEST_SLEEP: Final = 0.05
#: Rows in one operation of a duty; requests come in between.
_CHUNK: Final = 200

_log = logging.getLogger(__name__)


class Duties:
    """The duties of one process."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        self._next_flush = control.clock.boot() + control.settings.flush_seconds
        self._releases = releases.Releases(control)
        self._rollouts = rollout_duty.Rollouts(control)
        self._anomalies = anomalies.Removal(control)
        self._checkpoints = checkpoints.Removal(control)

    async def run(self) -> None:
        """Do what is due, for ever; a duty that fails is tried again."""
        while True:
            for duty in (
                self.sweep_leases, self.end_backoffs, self._flush_if_due, self._releases.keep_current,
                self._rollouts.keep_going, self._anomalies.remove_if_due, self._checkpoints.remove_if_due,
            ):  # fmt: skip
                try:
                    await duty()
                except errors.AgentinaError as error:
                    _log.warning("a background duty failed and is tried again: %s", error)
                except Exception:  # noqa: BLE001 - the duties must outlive whatever went wrong once
                    _log.exception("a background duty failed and is tried again")
            self._control.duties_bell.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._control.duties_bell.wait(), self._pause())
            await asyncio.sleep(_SHORTEST_SLEEP)

    def _pause(self) -> float:
        now = self._control.clock.boot()
        due = [now + _LONGEST_SLEEP, self._next_flush, self._releases.due, self._rollouts.due]
        due += [self._anomalies.due, self._checkpoints.due]
        deadline = self._control.fleet.next_deadline()
        if deadline is not None:
            due.append(deadline)
        if self._control.backoffs:
            due.append(self._control.backoffs[0][0])
        return max(min(due) - now, 0.0)

    async def sweep_leases(self) -> None:
        """Conclude tasks whose agents were not heard of in time."""
        expired = self._control.fleet.expired(self._control.clock.boot())
        for start in range(0, len(expired), _CHUNK):
            chunk = expired[start : start + _CHUNK]

            def operation(work: changes.Work, chunk: list[fleet.Held] = chunk) -> None:
                for held in chunk:
                    self._give_up(work, held)

            await self._control.write(operation)
            for held in chunk:
                if held.deadline <= self._control.clock.boot():
                    self._control.fleet.release(held.task_id)

    def _give_up(self, work: changes.Work, held: fleet.Held) -> None:
        task = tasks.by_id(work.tx, held.task)
        # Looked at again here, in the order of operations: a new session may have renewed it since.
        if task.ended_ms is not None or held.deadline > self._control.clock.boot():
            return
        reason = Reason.LEASE_EXPIRED
        detail = f"{held.agent.name} was not heard of for {self._control.settings.lease_seconds:.0f} s"
        if self._control.fleet.find(held.agent.public_id) is None:
            reason = Reason.AGENT_REMOVED
        elif held.is_missing:
            reason, detail = Reason.RECORD_DAMAGED, "its host has no record of it any more"
        outcomes.end_task(work, task, wire.Outcome(state=State.LOST, reason=reason, detail=detail))

    async def end_backoffs(self) -> None:
        """Make jobs ready whose backoff is over."""
        heap, ends, now = self._control.backoffs, self._control.backoff_ends, self._control.clock.boot()
        while heap and heap[0][0] <= now:
            due = [heapq.heappop(heap) for _ in range(min(len(heap), _CHUNK)) if heap[0][0] <= now]
            # A job that was canceled and retried may be in another backoff since.
            due = [(until, number) for until, number in due if ends.get(number) == until]
            if not due:
                continue

            def operation(work: changes.Work, due: list[tuple[float, int]] = due) -> None:
                for _, number in due:
                    job = jobs.by_id(work.tx, number)
                    if job.state is State.QUEUED and not job.ready and not job.needs_left:
                        job.ready, job.reason = True, Reason.WAITING_FOR_AGENT
                        jobs.save(work.tx, job)
                        work.effects.ready.append((job.class_id, job.memory_bytes))

            try:
                await self._control.write(operation)
            except BaseException:
                for item in due:
                    heapq.heappush(heap, item)
                raise
            for until, number in due:
                if ends.get(number) == until:
                    del ends[number]

    async def _flush_if_due(self) -> None:
        now = self._control.clock.boot()
        if now >= self._next_flush:
            self._next_flush = now + self._control.settings.flush_seconds
            await self.flush_heartbeats()

    async def flush_heartbeats(self) -> None:
        """Write what heartbeats said since the last time."""
        await usage.flush(self._control)
        fleet_now = self._control.fleet.agents.values()
        changed = [agent for agent in fleet_now if agent.is_changed or agent.is_work_counted]
        for start in range(0, len(changed), _CHUNK):
            chunk = {agent: agent.is_work_counted for agent in changed[start : start + _CHUNK]}
            # What is heard while this is on its way to the disk is for the next time.
            for agent in chunk:
                agent.is_changed = agent.is_work_counted = False

            def operation(tx: engine.Transaction, chunk: dict[fleet.Agent, bool] = chunk) -> None:
                for agent, is_work_counted in chunk.items():
                    host = "" if agent.host is None else msgspec.json.encode(agent.host).decode()
                    agents.flush_heartbeat(
                        tx, agent.id, at_ms=agent.heartbeat_ms, host=host, license_ms=agent.license_issued_ms
                    )
                    if is_work_counted:
                        agents.save_ledger(tx, agent.id, msgspec.json.encode(agent.ledger).decode())

            try:
                await self._control.store.write(operation)
            except BaseException:
                for agent, is_work_counted in chunk.items():
                    agent.is_changed, agent.is_work_counted = True, agent.is_work_counted or is_work_counted
                raise
