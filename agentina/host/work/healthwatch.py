"""Watches over the runs of tasks, as :mod:`agentina.host.work.health` judges them: reports what it finds, and acts.

What was done is written down beside the task (``health.json``) before it is done, so that the daemon that collects the
task, which may be another one, knows why it was stopped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.work import anomalies, doors, entries, health, runs
from agentina.protocol import jobs, wire
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
        self,
        *,
        executor: contract.Executor,
        findings: anomalies.Anomalies,
        notices: doors.Doors,
        nudge: Callable[[str, str], bool],
        clocks: clock.Clock,
    ) -> None:
        """``nudge`` has a task's model told something by the gateway, if its calls pass there."""
        self._executor = executor
        self._anomalies = findings
        self._doors = notices
        self._nudge = nudge
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
        return health.Signals(
            at=self._clock.boot(),
            output_bytes=entry.directory.output_size(),
            cpu_seconds=self._executor.cpu_seconds(entry.directory.path),
            gateway_bytes=entry.passed,
            context=entry.metered,
            waits=bool(entry.parked or entry.asking),
        )

    async def _take(self, entry: entries.Entry, policy: jobs.Health, finding: health.Finding) -> None:
        if not finding.is_due:
            self._report(entry, finding, name=finding.kind)
        elif policy.act != "report" and entry.task.stop is None:  # else somebody wants its end already
            try:
                done = await (self._tell(entry, finding) if policy.act == "nudge" else self._stop(entry, finding))
            except errors.AgentinaError as error:
                done = f"nothing, for {error}"
            evidence = {**finding.evidence, "done about it": f"{policy.act}: {done}"}
            self._report(entry, dataclasses.replace(finding, evidence=evidence), name=f"{finding.kind}:{policy.act}")

    def _report(self, entry: entries.Entry, finding: health.Finding, *, name: str) -> None:
        code, text = _CODES[finding.kind], f"{finding.kind}: {finding.text}"
        fields = {"action": "task-health", "task": entry.task_id, "code": code}
        # Not the evidence: what the agent does may hold secrets, which are masked in what is reported only.
        _log.warning("task %s is unwell (%s): %s", entry.task_id, name, text, extra=fields)
        self._anomalies.report(
            "health", code, text, task_id=entry.task_id, evidence=finding.evidence, name=_name(entry, name)
        )

    async def _tell(self, entry: entries.Entry, finding: health.Finding) -> str:
        """Tell the agent; what became of that."""
        text = _NUDGES[finding.kind].format(text=finding.text)
        if self._nudge(entry.task_id, f"A note from agentina, which watches over this run: {text}"):
            return "its model is told with its next call"
        if await self._doors.notify(entry.task_id, text):
            return "it is told with the next tool of agentina's that it calls, for its calls of models pass no gateway"
        return "it cannot be told"

    async def _stop(self, entry: entries.Entry, finding: health.Finding) -> str:
        content = msgspec.json.encode(Stopped(text=finding.text))
        await asyncio.to_thread(files.write_atomic, entry.directory.path / _NAME, content)
        self._executor.stop(entry.directory.path, contract.StopReason.CANCELED)
        return "its task is ended"


def _name(entry: entries.Entry, kind: str) -> str:
    """Once for each task and kind, also by daemons that read the stream again."""
    return f"health:{entry.task_id}:{kind}"
