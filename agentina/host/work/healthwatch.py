"""Watches over the runs of tasks, as :mod:`agentina.host.work.health` judges them: reports what it finds, and acts.

What was done is written down beside the task (``health.json``) before it is done, so that the daemon that collects the
task, which may be another one, knows why it was stopped.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.work import anomalies, doors, entries, health, runs
from agentina.protocol import budgets, jobs, wire
from agentina.protocol.states import Reason, State
from agentina.system import clock, files

_NAME: Final = "health.json"
_MAX: Final = 65_536
_CODES: Final = {
    "stuck": errors.RUN_STUCK.code,
    "looping": errors.RUN_LOOPING.code,
    "context": errors.RUN_CONTEXT_FULL.code,
}
_NUDGES: Final = {
    "stuck": "nothing has happened for long: {text}. Give up what you wait for and go on in another way.",
    "looping": "you go in circles: {text}. Stop, think about what you really need, and do something else.",
}

_log = logging.getLogger(__name__)


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task was stopped."""

    text: str


def applies(job: jobs.JobSpec, *, has_stream: bool) -> bool:
    """Whether a job's run is watched over. Pure."""
    return has_stream or job.health is not None


def explain(directory: Path, outcome: wire.Outcome) -> wire.Outcome:
    """``outcome`` of a task that was stopped, with the true reason if that was its health."""
    if outcome.reason is not Reason.CANCELED_BY_OPERATOR:
        return outcome
    try:
        stopped = msgspec.json.decode(files.read_bounded(directory / _NAME, limit=_MAX), type=Stopped)
    except (OSError, msgspec.MsgspecError, errors.AgentinaError):
        return outcome
    detail = f"It was stopped because it was unwell: {stopped.text}."
    return msgspec.structs.replace(outcome, state=State.FAILED, reason=Reason.UNHEALTHY, detail=detail)


class HealthWatch:
    """The watch over all tasks of an instance."""

    def __init__(
        self, *, executor: contract.Executor, findings: anomalies.Anomalies, notices: doors.Doors, clocks: clock.Clock
    ) -> None:
        self._executor = executor
        self._anomalies = findings
        self._doors = notices
        self._clock = clocks

    async def watch(self, entry: entries.Entry, run: runs.Run | None) -> None:
        """Watch over one task until canceled; ``run`` reads its stream, if it has one."""
        assert entry.job is not None
        policy = entry.job.health or jobs.Health()
        judge = health.Watch(policy, self._clock.boot())
        if run is not None:
            run.hear = judge.hear
        while True:
            await asyncio.sleep(health.period(policy))
            for finding in judge.look(self._signals(entry)):
                await self._take(entry, policy, finding)

    def report_hung(self, entry: entries.Entry) -> None:
        """An agent has finished, its process has not ended, and is being ended."""
        code = errors.RUN_HUNG.code
        self._anomalies.report(
            "health", code, "hung after its result", task_id=entry.task_id, name=_name(entry, "hung")
        )

    def _signals(self, entry: entries.Entry) -> health.Signals:
        used = budgets.add(entry.models)
        return health.Signals(
            at=self._clock.boot(),
            output_bytes=entry.directory.output_size(),
            cpu_seconds=self._executor.cpu_seconds(entry.directory.path),
            model_use=used.tokens + used.calls,
        )

    async def _take(self, entry: entries.Entry, policy: jobs.Health, finding: health.Finding) -> None:
        fields = {"action": "task-health", "task": entry.task_id, "code": _CODES[finding.kind]}
        if not finding.is_due:
            _log.warning("task %s is unwell: %s", entry.task_id, finding.text, extra=fields)
            self._anomalies.report(
                "health", _CODES[finding.kind], f"{finding.kind}: {finding.text}",
                task_id=entry.task_id, evidence=finding.evidence, name=_name(entry, finding.kind),
            )  # fmt: skip
            return
        if policy.act == "report":
            return
        _log.warning("task %s is unwell (%s): %s", entry.task_id, policy.act, finding.text, extra=fields)
        try:
            if policy.act == "nudge":
                await self._doors.notify(entry.task_id, _NUDGES[finding.kind].format(text=finding.text))
            else:
                await self._stop(entry, finding)
        except errors.AgentinaError as error:
            _log.error("nothing is done about task %s: %s", entry.task_id, error, extra=fields)

    async def _stop(self, entry: entries.Entry, finding: health.Finding) -> None:
        if entry.task.stop is not None:
            return  # somebody wants its end already
        content = msgspec.json.encode(Stopped(text=finding.text))
        await asyncio.to_thread(files.write_atomic, entry.directory.path / _NAME, content)
        self._executor.stop(entry.directory.path, contract.StopReason.CANCELED)


def _name(entry: entries.Entry, kind: str) -> str:
    """Once for each task and kind, also by daemons that read the stream again."""
    return f"health:{entry.task_id}:{kind}"
