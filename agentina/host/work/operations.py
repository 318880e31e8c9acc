"""The long steps of a task: prepare, start, watch, collect, upload. Each ends in an event for the state machine."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentina import errors
from agentina.executors import contract
from agentina.host.work import (
    choices,
    collecting,
    doors,
    entries,
    healthwatch,
    outcomes,
    places,
    records,
    state,
    uploads,
)
from agentina.inside import door as inside
from agentina.protocol import jobs
from agentina.protocol.states import Reason, State
from agentina.runners import contract as runner_contract
from agentina.system import clock, files, tasks

if TYPE_CHECKING:
    from agentina.host.trees import workspaces
    from agentina.host.work import checkpointing, gates

#: Errors of this host, not of the job: another host may do better.
_HOST_FAULTS: Final = {
    errors.DISK_FULL.code, errors.GATEWAY_UNUSABLE.code, errors.RUNNER_MISSING.code, errors.STATE_UNWRITABLE.code,
    errors.SYSTEMD_UNREACHABLE.code,
}  # fmt: skip

_log = logging.getLogger(__name__)


class Operations:
    """Performs operations for all tasks of an instance."""

    def __init__(
        self,
        *,
        executor: contract.Executor,
        runners: choices.Runners,
        cache_directory: Path,
        transfers: uploads.Uploads,
        way_out: gates.Gates,
        clocks: clock.Clock,
        boot_id: str,
        agent_linger: float,
    ) -> None:
        #: Called when a task was ended because the system stops.
        self.on_host_shutdown: Callable[[], None] = lambda: None
        #: Says something for the timeline of a task's job.
        self.note: Callable[[str, str], None] = lambda *_: None
        #: Where tasks say what they have to say.
        self.doors: doors.Doors | None = None
        #: The watch over how runs go.
        self.health: healthwatch.HealthWatch | None = None
        #: Where programs are looked for by tasks.
        self.search_path = runner_contract.SEARCH_PATH
        #: The gateway for tasks whose job asks for it.
        self._gates = way_out
        self._executor = executor
        self._runners = runners
        self._cache = cache_directory
        self._transfers = transfers
        self._clock = clocks
        #: Seconds the process of an AI agent may go on, silent, after it said that it had finished.
        self.agent_linger = agent_linger
        self._places = places.Places(executor, runners)
        self._collecting = collecting.Collecting(
            executor=executor,
            runners=runners,
            where=self._places,
            trees=lambda: self._trees,
            checkpoints=lambda: self._checkpoints,
            transfers=transfers,
            on_host_shutdown=self._hear_shutdown,
            boot_id=boot_id,
        )

    async def perform(self, entry: entries.Entry, operation: state.Do) -> state.Event:
        """Perform one operation; its end as an event."""
        await self._gates.before(entry, operation)
        if operation is state.Do.PREPARE:
            return await self._prepare(entry)
        if operation is state.Do.START:
            return await self._start(entry)
        if operation is state.Do.WATCH:
            await self._attend(entry)
            return state.Ended(is_all=collecting.is_all(entry))
        if operation is state.Do.COLLECT:
            return await self._collecting.collect(entry)
        assert operation is state.Do.UPLOAD, operation
        return await self._collecting.upload(entry)

    def _hear_shutdown(self) -> None:
        self.on_host_shutdown()

    def can_move(self, entry: entries.Entry) -> bool:
        """Whether a task can go on elsewhere."""
        return self._places.can_move(entry)

    async def checkpoint(self, entry: entries.Entry) -> str:
        """Take a checkpoint of a task that runs; what became of it, in words.

        Raises:
            AgentinaError: ``CHECKPOINT_FAILED``, ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        if not self._places.can_move(entry):
            raise errors.CHECKPOINT_FAILED(problem="jobs of its runner have none without the key `checkpoint`")
        return await self._checkpoints.now(entry)

    @functools.cached_property
    def _trees(self) -> workspaces.Workspaces:
        # Only jobs with a repository or artifacts pay for the import.
        from agentina.host.trees import workspaces  # noqa: PLC0415

        return workspaces.Workspaces(self._cache)

    @functools.cached_property
    def _checkpoints(self) -> checkpointing.Checkpoints:
        from agentina.host.work import checkpointing  # noqa: PLC0415 - only jobs that can go on pay for the import

        return checkpointing.Checkpoints(
            executor=self._executor,
            runners=self._runners,
            where=self._places,
            trees=self._trees,
            transfers=self._transfers,
        )

    async def _prepare(self, entry: entries.Entry) -> state.Event:
        job = entry.job
        assert job is not None
        try:
            job = self._gates.dress(entry)
            runner = self._runners.choose(entry, job)
            if not await self._go_on(entry, job):
                await self._furnish(entry, job, runner)
        except errors.AgentinaError as error:
            if error.code in _HOST_FAULTS:
                return state.Unable(str(error))
            reason = Reason.WORKSPACE_FAILED if error.code == errors.WORKSPACE_FAILED.code else Reason.START_FAILED
            return state.Failed(outcomes.from_error(error, State.FAILED, reason))
        return state.Prepared()

    async def _furnish(self, entry: entries.Entry, job: jobs.JobSpec, runner: runner_contract.Runner) -> None:
        """Make workspace and home, anew if they are there."""
        if runner.needs_home or places.leaves_files(job):
            records.make_empty(entry.directory.home)
        if runner.needs_home:
            _make_files(entry.directory.home, runner.plan(job, place=self._places.seen(entry, job, runner)).files)
        if job.workspace.git is None:
            if not entry.is_furnished:
                records.make_empty(entry.directory.workspace)
            entry.is_furnished = False  # should it be furnished once more, something may be there
            return
        prepared = await self._trees.prepare(job, entry.directory.path)
        entry.workspace, entry.mirror = prepared.path, prepared.mirror
        if self._places.is_slot(entry):
            await asyncio.to_thread(_expect_loan, prepared.path)
        entry.directory.write_commit(prepared.commit)

    async def _go_on(self, entry: entries.Entry, job: jobs.JobSpec) -> bool:
        """Make them from a checkpoint, if there is one that can be used; whether it was done."""
        if entry.assignment is None or entry.assignment.origin is None:
            return False
        origin = entry.assignment.origin
        try:
            await self._checkpoints.begin(entry, job, furnish=self._furnish)
        except errors.AgentinaError as error:
            if error.code in _HOST_FAULTS:
                raise
            fields = {"action": "task-begins-anew", "task": entry.task_id, "code": error.code}
            _log.warning("task %s begins anew: %s", entry.task_id, error, extra=fields)
            self.note(entry.task_id, f"begins anew, not from {origin.task_id}: {error.message}")
            return False
        self.note(entry.task_id, f"goes on from {origin.artifact.name} of {origin.task_id}")
        return True

    async def _start(self, entry: entries.Entry) -> state.Event:
        deadline = entry.deadline
        if deadline is None or self._clock.boot() >= deadline:
            return state.Unable("its lease ran out before it could start")
        try:
            launch = self._launch(entry, deadline)
            launch = await self._gates.admit(entry, launch)
            running = await self._executor.start(launch)
        except errors.AgentinaError as error:
            if error.code == errors.STATE_CONFLICT.code:
                return state.StartedBefore()
            condition, _ = self._executor.adopt(entry.directory.path)
            if condition in {contract.Condition.RUNNING, contract.Condition.ENDED}:
                # What went wrong came after the start. Given back, it would run here and elsewhere.
                _log.warning("%s has started all the same: %s", entry.task_id, error, extra={"code": error.code})
                return state.StartedBefore()
            self._gates.close(entry)
            if error.code in _HOST_FAULTS:
                return state.Unable(str(error))
            return state.Failed(outcomes.from_error(error, State.FAILED, Reason.START_FAILED))
        if entry.deadline is not None and entry.deadline > deadline:
            self._executor.renew(entry.directory.path, entry.deadline)
        if entry.origin is None:
            entry.declared = []
        return state.Started(running.pid)

    def _launch(self, entry: entries.Entry, deadline: float) -> contract.Launch:
        job = entry.job
        assert job is not None
        job = self._gates.dress(entry)
        if entry.origin is not None:
            from agentina.host.work import moving  # noqa: PLC0415 - loaded already: it furnished the place

            job = moving.resumed(job, entry.origin)
        assert entry.assignment is not None
        workspace = entry.workspace or entry.directory.workspace
        runner = self._runners.require(entry, job)
        place = self._places.seen(entry, job, runner)
        plan = runner.plan(job, place=place)
        home = str(place.home)
        return contract.Launch(
            task_id=entry.task_id,
            directory=entry.directory.path,
            argv=plan.argv,
            environment={
                "PATH": self.search_path,
                "LANG": "C.UTF-8",
                "HOME": home,
                "TMPDIR": home,
                "AGENTINA_TASK_ID": entry.task_id,
                "AGENTINA_JOB_ID": entry.assignment.job_id,
                inside.VARIABLE: place.door,
                **plan.environment,
                **jobs.environment_values(job),
            },
            workspace=workspace,
            mirror=entry.mirror,
            verify=plan.verify,
            memory_bytes=job.memory_bytes,
            cpus=job.cpus,
            pids=job.resources.pids,
            disk_bytes=job.resources.disk,
            output_bytes=job.limits.output,
            timeout_seconds=job.limits.timeout,
            grace_seconds=job.limits.grace,
            lease_deadline=deadline,
            oom=plan.oom,
            result_is_all=not places.leaves_files(job) and job.checkpoint is None,
            has_companions=self._places.can_move(entry),
        )

    async def _attend(self, entry: entries.Entry) -> None:
        """Hear a task until it has ended."""
        if self.doors is None:
            await self._watch(entry)
            return
        self.doors.attend(entry)
        try:
            await self._watch(entry)
        finally:
            await self.doors.leave(entry)

    async def _watch(self, entry: entries.Entry) -> None:
        job = entry.job
        runner = None if job is None else self._runners.find(entry, job)
        beside: list[asyncio.Task[None]] = []
        if runner is not None and runner.stream:
            run = entry.run = collecting.run_of(entry, runner)
            wished = None if job is None or job.health is None else job.health.hung_after
            linger = self.agent_linger if wished is None else wished
            follow = run.follow(lambda: self._end_hung(entry), linger=linger)
            beside.append(tasks.start(follow, name=f"run {entry.task_id}"))
        if self.health is not None and job is not None and healthwatch.applies(job, has_stream=bool(beside)):
            beside.append(tasks.start(self.health.watch(entry, entry.run), name=f"health {entry.task_id}"))
        if self._places.can_move(entry):
            beside.append(tasks.start(self._checkpoints.keep(entry), name=f"checkpoints {entry.task_id}"))
        try:
            await self._executor.wait(entry.directory.path)
        finally:
            await tasks.cancel(*beside)

    def _end_hung(self, entry: entries.Entry) -> None:
        """End a command line that has finished but does not end."""
        if entry.task.stop is None:
            _log.info(
                "task %s has finished but its process does not end: it is ended", entry.task_id,
                extra={"action": "task-hung", "task": entry.task_id},
            )  # fmt: skip
            if self.health is not None:
                self.health.report_hung(entry)
            self._executor.stop(entry.directory.path, contract.StopReason.FINISHED)


def _make_files(home: Path, contents: dict[str, str]) -> None:
    """Make what a runner wants to find in the task's home. They may hold secrets."""
    for name, content in contents.items():
        path = home / name
        try:
            for parent in reversed(path.relative_to(home).parents):
                (home / parent).mkdir(mode=0o700, exist_ok=True)
            path.touch(0o600)
            path.write_text(content, "utf-8")
        except OSError as error:
            raise files.from_os_error(error, path) from error


def _expect_loan(workspace: Path) -> None:
    from agentina.host.trees import workspaces as made  # noqa: PLC0415 - loaded already: it made this workspace

    try:
        made.expect_loan(workspace)
    except OSError as error:
        raise files.from_os_error(error, workspace) from error
