"""Reports: each applied once, in order, together with its stream's counter."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from agentina.control import fleet, ids, plane
from agentina.control.services import anomalies, changes, outcomes, sessions, usage
from agentina.control.store import agents, engine, tasks
from agentina.protocol import names, wire
from agentina.protocol.states import FINAL, REASONS, Reason, State, may_follow

_STATES: Final = {
    "accepted": (State.PREPARING, "accepted; the workspace is being prepared"),
    "running": (State.RUNNING, "the process runs"),
    "finishing": (State.FINISHING, "the process ended; results are being collected"),
}

#: Lines a timeline may have for progress to be added.
_PROGRESS_EVENTS: Final = 500

_log = logging.getLogger(__name__)


async def apply(control: plane.Plane, agent: fleet.Agent, message: wire.Reports) -> wire.ReportsApplied:
    """Apply what is new; answer how far the stream is durable, and which tasks the host may delete."""
    sessions.check(agent, message.session)
    agent.last_seen = control.clock.boot()

    def operation(work: changes.Work) -> tuple[int, set[str]]:
        application = _Application(work, agent)
        return application.stream(message), application.complete

    # Nobody waits for it but the host's outbox, whose next message is the larger for it.
    applied, complete = await control.write(operation, is_patient=True)
    ended = {report.task_id for report in message.reports if report.kind in {"finished", "returned"}} - complete
    forget = control.store.read(lambda tx: _forgettable(tx, control, agent, ended), snapshot=False) if ended else []
    return wire.ReportsApplied(applied=applied, forget=sorted({*complete, *forget}))


def _forgettable(tx: engine.Transaction, control: plane.Plane, agent: fleet.Agent, ended: set[str]) -> list[str]:
    """Also for reports seen before: the answer that said so may have been lost."""
    forget = []
    for task_id in ended:
        task = _find(tx, agent, task_id)
        if task is None or task.reason is Reason.RETURNED_UNSTARTED or sessions.is_complete(control, task):
            forget.append(task_id)
    return forget


def _find(tx: engine.Transaction, agent: fleet.Agent, task_id: str) -> tasks.Task | None:
    if not names.is_task_id(task_id):
        return None
    task = tasks.find(tx, *ids.split_task_id(task_id))
    return task if task is not None and task.agent_id == agent.id else None


def _job_of(report: wire.Report) -> str:
    return report.task_id.partition(".")[0]


class _Application:
    """The application of one request's reports within one transaction."""

    def __init__(self, work: changes.Work, agent: fleet.Agent) -> None:
        self._work = work
        self._agent = agent
        #: The task whose reports are being applied, read once for all of them, and its id.
        self._task: tasks.Task | None = None
        self._task_id = ""
        #: Tasks whose end is all there is of them: nothing is missing here once this is durable.
        self.complete: set[str] = set()

    def stream(self, message: wire.Reports) -> int:
        """Apply the reports the stream has not seen; the stream's new counter is returned."""
        tx, agent = self._work.tx, self._agent
        sessions.check_standing(tx, agent, message.session)
        applied = before = agents.applied(tx, agent.id, message.stream)
        new = []
        for report in message.reports:
            if report.number <= applied:
                continue
            if report.number != applied + 1:
                # Happens after this side was restored from a backup: what is between is gone for good, and refusing
                # the rest would only lose more.
                _log.warning(
                    "agent %s: reports %d to %d of its stream are missing",
                    agent.public_id, applied + 1, report.number - 1,
                )  # fmt: skip
            new.append(report)
            applied = report.number
        # Facts about one job stay in order; those about different ones do not touch each other.
        for report in sorted(new, key=_job_of):
            self._report(report)
        self._save()
        if applied != before:
            agents.set_applied(tx, agent.id, message.stream, applied, now_ms=self._work.now_ms)
        return applied

    def _save(self) -> None:
        """Write back the task whose reports are applied, if there is one."""
        if self._task is not None:
            tasks.save(self._work.tx, self._task)
            self._task = None

    def _report(self, report: wire.Report) -> None:
        """Apply one fact. Facts about tasks that are not this agent's are acknowledged and dropped."""
        if report.kind == "anomaly":
            # It reads and saves the task by itself.
            self._save()
            anomalies.note_report(self._work, self._agent, report)
            return
        if self._task is None or self._task_id != report.task_id:
            self._save()
            self._task, self._task_id = _find(self._work.tx, self._agent, report.task_id), report.task_id
        task = self._task
        if task is None:
            _log.warning(
                "agent %s reports about task %.40r, which is not its own", self._agent.public_id, report.task_id
            )
            return
        self._work.effects.jobs.add(task.job.public_id)
        if report.kind == "note":
            self._tell(task, report.detail or "(empty note)")
        elif report.kind == "progress":
            self._note_progress(task, report.progress)
        elif report.kind == "finished":
            self._finished(task, report)
        elif report.kind == "returned":
            self._returned(task, report)
        else:
            self._progress(task, report)

    def _progress(self, task: tasks.Task, report: wire.Report) -> None:
        state, text = _STATES[report.kind]
        if not may_follow(task.state, state):
            if task.state in FINAL:
                self._tell(task, f"late report: {text}")
            return
        job, effects = task.job, self._work.effects
        if not task.counted:
            # From here its attempt counts.
            job.attempts += 1
            task.counted = True
        if state is State.RUNNING:
            task.started_ms = self._work.now_ms if task.started_ms is None else task.started_ms
            job.started_ms = self._work.now_ms if job.started_ms is None else job.started_ms
            job.returns = 0
            effects.start_latencies.append(max(self._work.now_ms - job.runnable_ms, 0) / 1000)
        task.pid = task.pid if report.pid is None else report.pid
        task.state = job.state = state
        task.reason = job.reason = Reason(state.value)
        text = report.detail or (f"{text} (pid {report.pid})" if report.pid is not None else text)
        self._tell(task, text, state)
        effects.progressed.append((report.task_id, state))

    def _note_progress(self, task: tasks.Task, progress: wire.Progress | None) -> None:
        """Keep how far a task says it is; its timeline has that too, while there is room for what matters more."""
        if progress is None:
            return
        task.progress = msgspec.json.encode(progress).decode()
        if task.job.events < _PROGRESS_EVENTS:
            percent = "" if progress.percent is None else f" ({progress.percent:.0f} %)"
            self._tell(task, f"says{percent}: {progress.text}")

    def _returned(self, task: tasks.Task, report: wire.Report) -> None:
        if task.state in {State.ASSIGNED, State.PREPARING}:
            outcomes.return_task(self._work, task, report.detail or REASONS[Reason.RETURNED_UNSTARTED])
            self._task = None
        else:
            self._tell(task, f"late report: given back ({report.detail})")

    def _finished(self, task: tasks.Task, report: wire.Report) -> None:
        outcome = report.outcome
        if outcome is None or outcome.state not in FINAL:
            # Refusing it would block the host's outbox for ever; what it means is that nobody knows the end.
            outcome = wire.Outcome(
                state=State.LOST, reason=Reason.RECORD_DAMAGED, detail="its host reported an end without a final state"
            )
        usage.keep(self._work, task, outcome.models)
        is_first, task.host_ended = not task.host_ended, True
        if task.outcome is None:
            # What the host said first counts.
            task.outcome = msgspec.json.encode(outcome).decode()
            if not outcome.output_bytes:
                self.complete.add(report.task_id)
        if task.state not in FINAL:
            outcomes.end_task(self._work, task, outcome)
            self._task = None
        elif is_first:
            self._tell(task, f"late report: it ended on its host as '{outcome.state.value}'; this changes nothing")

    def _tell(self, task: tasks.Task, text: str, state: State | None = None) -> None:
        task.job.tell(text, state=state, task=task.number, now_ms=self._work.now_ms)
