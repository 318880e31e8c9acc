"""Reports: each applied once, in order, together with its stream's counter."""

from __future__ import annotations

import dataclasses
import logging
from typing import Final

import msgspec

from agentina.control import fleet, ids, plane
from agentina.control.services import changes, outcomes, sessions
from agentina.control.store import agents, engine, jobs, tasks
from agentina.protocol import names, wire
from agentina.protocol.states import FINAL, REASONS, Reason, State, may_follow

_FINAL_VALUES: Final = frozenset(state.value for state in FINAL)
_STATES: Final = {
    "accepted": (State.PREPARING, "accepted; the workspace is being prepared"),
    "running": (State.RUNNING, "the process runs"),
    "finishing": (State.FINISHING, "the process ended; results are being collected"),
}

_log = logging.getLogger(__name__)


async def apply(control: plane.Plane, agent: fleet.Agent, message: wire.Reports) -> wire.ReportsApplied:
    """Apply what is new; answer how far the stream is durable, and which tasks the host may delete."""
    sessions.check(agent, message.session)
    agent.last_seen = control.clock.boot()

    def operation(work: changes.Work) -> int:
        sessions.check_standing(work.tx, agent, message.session)
        return _Application(work, agent).stream(message)

    applied = await control.write(operation)
    ended = {report.task_id for report in message.reports if report.kind in {"finished", "returned"}}
    forget = control.store.read(lambda tx: _forgettable(tx, control, agent, ended), snapshot=False) if ended else []
    return wire.ReportsApplied(applied=applied, forget=forget)


def _forgettable(tx: engine.Transaction, control: plane.Plane, agent: fleet.Agent, ended: set[str]) -> list[str]:
    """Also for reports seen before: the answer that said so may have been lost."""
    forget = []
    for task_id in sorted(ended):
        task = _find(tx, agent, task_id)
        returned = task is not None and task["reason"] == Reason.RETURNED_UNSTARTED.value
        if task is None or returned or sessions.is_complete(control, task):
            forget.append(task_id)
    return forget


def _find(tx: engine.Transaction, agent: fleet.Agent, task_id: str) -> engine.Row | None:
    if not names.is_task_id(task_id):
        return None
    task = tasks.find(tx, *ids.split_task_id(task_id))
    return task if task is not None and task["agent_id"] == agent.id else None


@dataclasses.dataclass(frozen=True, slots=True)
class _Application:
    """The application of one request's reports within one transaction."""

    work: changes.Work
    agent: fleet.Agent

    def stream(self, message: wire.Reports) -> int:
        """Apply the reports the stream has not seen; the stream's new counter is returned."""
        applied = before = agents.applied(self.work.tx, self.agent.id, message.stream)
        for report in message.reports:
            if report.number <= applied:
                continue
            if report.number != applied + 1:
                # Happens after this side was restored from a backup: what is between is gone for good, and refusing
                # the rest would only lose more.
                _log.warning(
                    "agent %s: reports %d to %d of its stream are missing",
                    self.agent.public_id, applied + 1, report.number - 1,
                )  # fmt: skip
            self.report(report)
            applied = report.number
        if applied != before:
            agents.set_applied(self.work.tx, self.agent.id, message.stream, applied, now_ms=self.work.now_ms)
        return applied

    def report(self, report: wire.Report) -> None:
        """Apply one fact. Facts about tasks that are not this agent's are acknowledged and dropped."""
        task = _find(self.work.tx, self.agent, report.task_id)
        if task is None:
            _log.warning(
                "agent %s reports about task %.40r, which is not its own", self.agent.public_id, report.task_id
            )
            return
        self.work.effects.jobs.add(task["job"])
        if report.kind == "note":
            self._event(task, report.detail or "(empty note)")
        elif report.kind == "finished":
            self._finished(task, report)
        elif report.kind == "returned":
            self._returned(task, report)
        else:
            self._progress(task, report)

    def _progress(self, task: engine.Row, report: wire.Report) -> None:
        state, text = _STATES[report.kind]
        if not may_follow(State(task["state"]), state):
            if task["state"] in _FINAL_VALUES:
                self._event(task, f"late report: {text}")
            return
        started = self.work.now_ms if state is State.RUNNING else None
        tasks.set_progress(self.work.tx, task["id"], state, started_ms=started, pid=report.pid)
        jobs.set_progress(self.work.tx, task["job_id"], state, started_ms=started, counted=not task["counted"])
        text = report.detail or (f"{text} (pid {report.pid})" if report.pid is not None else text)
        self._event(task, text, state)
        self.work.effects.progressed.append((report.task_id, state))
        if started is not None:
            self.work.effects.start_latencies.append(max(started - task["runnable_ms"], 0) / 1000)

    def _returned(self, task: engine.Row, report: wire.Report) -> None:
        if task["state"] in {State.ASSIGNED.value, State.PREPARING.value}:
            outcomes.return_task(self.work, task, report.detail or REASONS[Reason.RETURNED_UNSTARTED])
        else:
            self._event(task, f"late report: given back ({report.detail})")

    def _finished(self, task: engine.Row, report: wire.Report) -> None:
        outcome = report.outcome
        if outcome is None or outcome.state not in FINAL:
            # Refusing it would block the host's outbox for ever; what it means is that nobody knows the end.
            outcome = wire.Outcome(
                state=State.LOST, reason=Reason.RECORD_DAMAGED, detail="its host reported an end without a final state"
            )
        tasks.set_outcome(self.work.tx, task["id"], msgspec.json.encode(outcome).decode())
        if task["state"] not in _FINAL_VALUES:
            outcomes.end_task(self.work, task, outcome)
        elif not task["host_ended"]:
            self._event(task, f"late report: it ended on its host as '{outcome.state.value}'; this changes nothing")

    def _event(self, task: engine.Row, text: str, state: State | None = None) -> None:
        jobs.add_event(self.work.tx, task["job_id"], text, state=state, task=task["number"], now_ms=self.work.now_ms)
