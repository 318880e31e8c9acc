"""Builds what `agentina status` shows, from the daemon's own objects. No I/O."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from agentina import __version__
from agentina.executors import contract
from agentina.host import heartbeat, remote, standing
from agentina.host.instance import config, identity, outbox, session
from agentina.host.updating import orders, probe
from agentina.host.work import entries, state, tasks
from agentina.protocol import budgets, local
from agentina.protocol.states import Reason, State
from agentina.system import clock, paths

_REASONS = {
    State.ASSIGNED: Reason.ASSIGNED,
    State.PREPARING: Reason.PREPARING,
    State.RUNNING: Reason.RUNNING,
    State.FINISHING: Reason.FINISHING,
}


class StatusView:
    """Sees everything, changes nothing."""

    def __init__(
        self,
        instance: paths.InstancePaths,
        settings: config.HostConfig,
        who: identity.Identity,
        *,
        sessions: session.Session,
        held: tasks.Tasks,
        reports: outbox.Outbox,
        stands: standing.Standing,
        beats: heartbeat.Heartbeat,
        executor: contract.Executor,
        updates: orders.Orders,
        remotely: remote.Remote,
        probing: probe.Probe,
        programs: Callable[[], dict[str, str]],
        clocks: clock.Clock,
    ) -> None:
        self._instance = instance
        self._settings = settings
        self._identity = who
        self._session = sessions
        self._tasks = held
        self._outbox = reports
        self._standing = stands
        self._heartbeat = beats
        self._executor = executor
        self._updates = updates
        self._remote = remotely
        self._probe = probing
        self._programs = programs
        self._clock = clocks
        self._started_ms = clocks.wall_ms()

    def build(self) -> local.InstanceStatus:
        """The present status."""
        offer = self._standing.offer()
        problems = self._standing.problems()
        shown, why = self._state()
        failure = self._session.failure
        license_, grace_left = self._standing.license, self._standing.grace_left_seconds
        return local.InstanceStatus(
            instance=self._instance.name,
            version=__version__,
            state=shown,
            state_reason=why,
            healthy=shown in {"online", "draining"} and not any(p.severity == "error" for p in problems),
            agent_id=self._identity.agent_id,
            organization=self._identity.organization,
            role=self._identity.role,
            labels=self._identity.labels,
            control_plane=self._settings.control_plane,
            session=self._session.number,
            pid=os.getpid(),
            started_ms=self._started_ms,
            last_heartbeat_ms=self._heartbeat.last_ms or self._session.last_answer_ms,
            last_error="" if failure is None else str(failure),
            license=None if license_ is None else local.LicenseView.of(license_, grace_left_seconds=grace_left),
            channel="" if license_ is None else license_.channel,
            update_available=self._session.directives.update_available,
            update_title=self._session.directives.update_title,
            configuration=self._remote.version,
            configuration_report=self._remote.report(),
            update=self._updates.report(),
            probe=self._probe.seen,
            tasks=[self._task(entry) for entry in self._tasks.all],
            max_concurrent_tasks=self._remote.effective().max_concurrent_tasks,
            slots_free=offer.slots,
            admission=offer.why,
            executor=self._executor.name,
            guarantees=self._executor.guarantees(),
            runners=self._programs(),
            host=self._standing.facts(),
            reports_waiting=self._outbox.waiting,
            problems=problems,
        )

    def _state(self) -> tuple[Literal["online", "offline", "draining", "quarantined"], str]:
        directives = self._session.directives
        if directives.quarantine:
            return "quarantined", directives.quarantine
        if self._session.refusal is not None:
            return "quarantined", self._session.refusal.message
        if self._session.trouble is not None:
            return "offline", f"this host cannot take over a session: {self._session.trouble.message}"
        if not self._session.is_open or self._session.failure is not None:
            failure = self._session.failure
            return "offline", "connecting to the control plane" if failure is None else failure.message
        draining = self._standing.why_draining
        if draining is not None:
            return "draining", draining
        return "online", ""

    def _task(self, entry: entries.Entry) -> local.LocalTask:
        shown, outcome = entry.task.shown, entry.task.outcome
        running = entry.task.phase is state.Phase.RUNNING
        left = None if entry.deadline is None or not running else entry.deadline - self._clock.boot()
        return local.LocalTask(
            task_id=entry.task_id,
            name="" if entry.job is None else entry.job.name,
            state=shown,
            reason=outcome.reason if outcome is not None else _REASONS.get(shown, Reason.PREPARING),
            detail="" if outcome is None else outcome.detail,
            pid=entry.pid if running else 0,
            started_ms=entry.started_ms,
            memory_limit_bytes=entry.memory_bytes,
            output_bytes=entry.directory.output_size(),
            lease_seconds=left,
            progress=entry.progress,
            used=budgets.add(entry.models) if entry.models else None,
            budget=None if entry.job is None else entry.budget or entry.job.budget,
            parked=entry.parked,
        )
