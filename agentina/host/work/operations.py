"""The long steps of a task: prepare, start, watch, collect, upload. Each ends in an event for the state machine."""

from __future__ import annotations

import asyncio
import glob
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.work import choices, doors, entries, healthwatch, outcomes, records, state, uploads
from agentina.inside import door as inside
from agentina.protocol import jobs, states, wire
from agentina.protocol.states import Reason, State
from agentina.runners import contract as runner_contract
from agentina.system import clock, files, tasks

if TYPE_CHECKING:
    from agentina.host.trees import workspaces
    from agentina.host.work import gates, moving, runs

#: Errors of this host, not of the job: another host may do better.
_HOST_FAULTS: Final = {
    errors.DISK_FULL.code, errors.GATEWAY_UNUSABLE.code, errors.RUNNER_MISSING.code, errors.STATE_UNWRITABLE.code,
    errors.SYSTEMD_UNREACHABLE.code,
}  # fmt: skip

#: Ends of tasks that go on elsewhere where they can.
_MOVES: Final = {contract.StopReason.CHECKPOINT, contract.StopReason.HOST_SHUTDOWN}

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
        self._boot_id = boot_id
        #: Seconds the process of an AI agent may go on, silent, after it said that it had finished.
        self.agent_linger = agent_linger
        self._git: workspaces.Workspaces | None = None
        #: Who takes checkpoints, by the task.
        self._keepers: dict[str, moving.Keeper] = {}
        #: How many slots are packed at once.
        self._packers: asyncio.Semaphore | None = None

    async def perform(self, entry: entries.Entry, operation: state.Do) -> state.Event:
        """Perform one operation; its end as an event."""
        await self._gates.before(entry, operation)
        if operation is state.Do.PREPARE:
            return await self._prepare(entry)
        if operation is state.Do.START:
            return await self._start(entry)
        if operation is state.Do.WATCH:
            await self._attend(entry)
            return state.Ended(is_all=_is_all(entry))
        if operation is state.Do.COLLECT:
            return await self._collect(entry)
        assert operation is state.Do.UPLOAD, operation
        return await self._upload(entry)

    def _workspaces(self) -> workspaces.Workspaces:
        if self._git is None:
            # Only jobs with a repository or artifacts pay for the import.
            from agentina.host.trees import workspaces as made  # noqa: PLC0415

            self._git = made.Workspaces(self._cache)
        return self._git

    async def _prepare(self, entry: entries.Entry) -> state.Event:
        job = entry.job
        assert job is not None
        try:
            job = self._gates.dress(entry)
            runner = self._runners.choose(entry, job)
            if not await self._go_on(entry, job, runner):
                await self._furnish(entry, job, runner)
        except errors.AgentinaError as error:
            if error.code in _HOST_FAULTS:
                return state.Unable(str(error))
            reason = Reason.WORKSPACE_FAILED if error.code == errors.WORKSPACE_FAILED.code else Reason.START_FAILED
            return state.Failed(outcomes.from_error(error, State.FAILED, reason))
        return state.Prepared()

    async def _furnish(self, entry: entries.Entry, job: jobs.JobSpec, runner: runner_contract.Runner) -> None:
        """Make workspace and home, anew if they are there."""
        if runner.needs_home or leaves_files(job):
            records.make_empty(entry.directory.home)
        if runner.needs_home:
            _make_files(entry.directory.home, runner.plan(job, place=self._place(entry, job, runner)).files)
        if job.workspace.git is None:
            records.make_empty(entry.directory.workspace)
            return
        prepared = await self._workspaces().prepare(job, entry.directory.path)
        entry.workspace, entry.mirror = prepared.path, prepared.mirror
        if self._executor.place(entry.directory.path) != entry.directory.path:
            await asyncio.to_thread(_expect_loan, prepared.path)
        _write_commit(entry.directory, prepared.commit)

    async def _go_on(self, entry: entries.Entry, job: jobs.JobSpec, runner: runner_contract.Runner) -> bool:
        """Make them from a checkpoint, if there is one that can be used; whether it was done."""
        if entry.assignment is None or entry.assignment.origin is None:
            return False
        from agentina.host.work import moving  # noqa: PLC0415 - only jobs that go on pay for the import

        origin = entry.assignment.origin
        try:
            manifest = await moving.fetch(entry, self._transfers)
            at = msgspec.structs.replace(job.workspace, ref=manifest.commit or job.workspace.ref)
            wanted = moving.resumed(msgspec.structs.replace(job, workspace=at), manifest)
            await self._furnish(entry, wanted, runner)
            await moving.furnish(self._place_to_move(entry, job), manifest)
        except errors.AgentinaError as error:
            if error.code in _HOST_FAULTS:
                raise
            _log.warning("task %s begins anew: %s", entry.task_id, error, extra=_collect_fields(entry, error))
            self.note(entry.task_id, f"begins anew, not from {origin.task_id}: {error.message}")
            return False
        entry.origin = manifest
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
        place = self._place(entry, job, runner)
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
            result_is_all=not leaves_files(job) and job.checkpoint is None,
            has_companions=self.can_move(entry),
        )

    def _place(self, entry: entries.Entry, job: jobs.JobSpec, runner: runner_contract.Runner) -> runner_contract.Place:
        place = self._executor.place(entry.directory.path)
        seen = entry.directory if place is entry.directory.path else records.TaskDirectory(place)
        workspace = seen.workspace
        has_home = runner.needs_home or leaves_files(job)
        door = self._executor.door(entry.directory.path).inside / doors.socket_name(entry.task_id)
        return runner_contract.Place(workspace=workspace, home=seen.home if has_home else workspace, door=str(door))

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
            run = entry.run = _run_of(entry, runner)
            follow = run.follow(lambda: self._end_hung(entry), linger=self.agent_linger)
            beside.append(tasks.start(follow, name=f"run {entry.task_id}"))
        if self.health is not None and job is not None and healthwatch.applies(job, has_stream=bool(beside)):
            beside.append(tasks.start(self.health.watch(entry, entry.run), name=f"health {entry.task_id}"))
        if self.can_move(entry):
            beside.append(tasks.start(self._keep_checkpoints(entry), name=f"checkpoints {entry.task_id}"))
        try:
            await self._executor.wait(entry.directory.path)
        finally:
            await tasks.cancel(*beside)

    async def _keep_checkpoints(self, entry: entries.Entry) -> None:
        """Take checkpoints of a task while it runs."""
        from agentina.host.trees import packing  # noqa: PLC0415 - only jobs that go on pay for the import
        from agentina.host.work import moving  # noqa: PLC0415 - only jobs that go on pay for the import

        job = entry.job
        assert job is not None
        place = self._place_to_move(entry, job)
        commit = _read_commit(entry.directory)
        slot = None
        if self._executor.place(entry.directory.path) != entry.directory.path:
            if self._packers is None:
                self._packers = asyncio.Semaphore(packing.AT_ONCE)
            slot = packing.Slot(executor=self._executor, directory=entry.directory.path, turns=self._packers)
        keeper = moving.Keeper(place, commit=commit, trees=self._workspaces(), transfers=self._transfers, slot=slot)
        self._keepers[entry.task_id] = keeper
        try:
            await keeper.run()
        finally:
            del self._keepers[entry.task_id]

    def _place_to_move(self, entry: entries.Entry, job: jobs.JobSpec) -> moving.Place:
        """A task's place, for those who pack or fill it."""
        from agentina.host.work import moving  # noqa: PLC0415 - only jobs that go on pay for the import

        runner = self._runners.require(entry, job)
        return moving.Place(entry=entry, job=job, runner=runner, seen=self._place(entry, job, runner))

    async def checkpoint(self, entry: entries.Entry) -> str:
        """Take a checkpoint of a task that runs; what became of it, in words.

        Raises:
            AgentinaError: ``CHECKPOINT_FAILED``, ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        keeper = self._keepers.get(entry.task_id)
        if keeper is not None:
            return await keeper.now()
        problem = "jobs of its runner have none without the key `checkpoint`"
        if self.can_move(entry):
            problem = "its task does not run now"
        raise errors.CHECKPOINT_FAILED(problem=problem)

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

    async def _read_run(self, entry: entries.Entry, job: jobs.JobSpec) -> wire.AgentRun | None:
        """What the whole output says of the run, where that can be read."""
        runner = self._runners.find(entry, job)
        if runner is None or not runner.stream:
            return None
        if entry.run is None:
            entry.run = _run_of(entry, runner)
        await asyncio.to_thread(entry.run.complete)
        return entry.run.summary(entry.secrets)

    async def _collect(self, entry: entries.Entry) -> state.Event:
        job = entry.job
        result = self._executor.read_result(entry.directory.path)
        if result is None or job is None:
            return state.Collected(await self._collect_vanished(entry))
        is_synced = result.boot_id == self._boot_id or result.stopped is contract.StopReason.HOST_SHUTDOWN
        if result.stopped is contract.StopReason.HOST_SHUTDOWN and result.boot_id == self._boot_id:
            self._hear_shutdown(entry)
        outcome = outcomes.from_result(result, job, await self._read_run(entry, job))
        if entry.task.stop is not None and outcome.reason is Reason.CANCELED_BY_OPERATOR:
            outcome = _with_stop(outcome, entry.task.stop)
        elif entry.task.stop is None:
            outcome = healthwatch.explain(entry.directory.path, outcome)
        if result.stopped in _MOVES and self.can_move(entry):
            return state.Collected(await self._pack(entry, job, outcome, is_synced=is_synced))
        declared = _declared(entry)
        if not leaves_files(job) and not declared:
            return state.Collected(outcome)
        if not is_synced:
            # Nobody synced its files, as was done for its result and output: they may be empty after a power cut.
            return state.Collected(outcomes.without_files(outcome))
        # Paths, not patterns: a name may have any character.
        wanted = [*job.artifacts, *map(glob.escape, declared)]
        outcome = await self._gather(entry, msgspec.structs.replace(job, artifacts=wanted), outcome)
        if result.stopped is contract.StopReason.LEASE_EXPIRED and self.can_move(entry):
            # It may be heard of before the job is given to another.
            outcome = await self._with_checkpoint(entry, job, outcome)
        return state.Collected(outcome)

    def can_move(self, entry: entries.Entry) -> bool:
        """Whether a task can go on elsewhere."""
        job = entry.job
        runner = None if job is None else self._runners.find(entry, job)
        if job is None or runner is None:
            return False
        return job.checkpoint is not None or bool(runner.session_directory(self._place(entry, job, runner)))

    def _hear_shutdown(self, entry: entries.Entry) -> None:
        """The system stops; or a task was to go on elsewhere, which supervisors of older releases take for that."""
        if entry.task.stop is None:
            self.on_host_shutdown()

    async def _collect_vanished(self, entry: entries.Entry) -> wire.Outcome:
        # Nothing is reported lost, and so perhaps run again, while a part of it may still run here.
        await asyncio.to_thread(self._executor.end_leftovers, entry.directory.path)
        lost = self._vanished(entry)
        if entry.job is None:
            return lost
        # Its session may be all that is left of hours of work.
        lost = msgspec.structs.replace(lost, agent=await self._read_run(entry, entry.job))
        if lost.reason is Reason.SUPERVISOR_DIED and self.can_move(entry):
            lost = await self._with_checkpoint(entry, entry.job, lost)
        return lost

    async def _pack(
        self, entry: entries.Entry, job: jobs.JobSpec, outcome: wire.Outcome, *, is_synced: bool
    ) -> wire.Outcome:
        """The outcome of a task that ended to go on elsewhere, with its checkpoint."""
        if not is_synced:
            return outcomes.lost(Reason.HOST_RESTARTED, "before its checkpoint was taken")
        moved = wire.Outcome(state=State.CHECKPOINTED, reason=Reason.CHECKPOINT)
        detail = entry.task.stop.detail if entry.task.stop is not None else ""
        outcome = msgspec.structs.replace(
            outcome, state=moved.state, reason=moved.reason,
            detail=f"It {states.REASONS[moved.reason]}" + (f": {detail}." if detail else "."),
        )  # fmt: skip
        return await self._with_checkpoint(entry, job, outcome)

    async def _with_checkpoint(self, entry: entries.Entry, job: jobs.JobSpec, outcome: wire.Outcome) -> wire.Outcome:
        """``outcome`` of a task of which nothing runs any more, with its checkpoint, or why there is none."""
        from agentina.host.work import moving  # noqa: PLC0415 - only jobs that go on pay for the import

        place = self._place_to_move(entry, job)
        commit = _read_commit(entry.directory)
        try:
            taken = await moving.take(place, commit=commit, trees=self._workspaces())
        except errors.AgentinaError as error:
            _log.error("task %s: %s", entry.task_id, error, extra=_collect_fields(entry, error))
            return msgspec.structs.replace(
                outcome, error_code=error.code, detail=f"{outcome.detail} {error.message}"[: wire.MAX_DETAIL]
            )
        if taken is None:
            return msgspec.structs.replace(outcome, detail=f"{outcome.detail} It had not begun to work.")
        outcome = msgspec.structs.replace(
            outcome, commit=commit, artifacts=[*outcome.artifacts, taken.artifact],
            detail=moving.to_outcome(outcome, taken.left_out)[: wire.MAX_DETAIL],
        )  # fmt: skip
        entry.artifacts = {**entry.artifacts, taken.artifact.name: str(taken.path)}
        self._keep(entry, records.Collection(outcome=outcome, paths=entry.artifacts))
        return outcome

    async def _gather(self, entry: entries.Entry, job: jobs.JobSpec, outcome: wire.Outcome) -> wire.Outcome:
        """Find patch and artifacts; keep the collection on disk."""
        commit = _read_commit(entry.directory)
        found: list[tuple[wire.ArtifactInfo, Path]] = []
        trouble: errors.AgentinaError | None = None
        try:
            found = await self._workspaces().collect(job, entry.directory.path, commit)
        except errors.AgentinaError as error:
            _log.warning("task %s: %s", entry.task_id, error, extra=_collect_fields(entry, error))
            trouble = error
        artifacts = [artifact for artifact, _ in found]
        outcome = outcomes.with_collection(outcome, artifacts=artifacts, commit=commit, trouble=trouble)
        outcome = outcomes.without_declared(outcome, await _missing(entry))
        outcome = msgspec.structs.replace(outcome, changed=await _changed(found))
        paths = {artifact.name: str(path) for artifact, path in found}
        entry.artifacts = paths
        self._keep(entry, records.Collection(outcome=outcome, paths=paths))
        return outcome

    def _keep(self, entry: entries.Entry, collection: records.Collection) -> None:
        try:
            entry.directory.write_collection(collection)
        except errors.AgentinaError as error:
            # No room for it now: after a restart it is collected again.
            _log.warning("task %s: %s", entry.task_id, error, extra=_collect_fields(entry, error))

    def _vanished(self, entry: entries.Entry) -> wire.Outcome:
        """The outcome of a task that was started, does not run and left no result."""
        try:
            record = msgspec.json.decode(entry.record, type=records.Record)
        except msgspec.MsgspecError:
            return outcomes.lost(Reason.RECORD_DAMAGED)
        restarted = record.boot_id != self._boot_id
        return outcomes.lost(Reason.HOST_RESTARTED if restarted else Reason.SUPERVISOR_DIED)

    async def _upload(self, entry: entries.Entry) -> state.Event:
        assert entry.task.outcome is not None
        outcome = msgspec.structs.replace(entry.task.outcome, models=entry.models, hosts=entry.hosts)
        try:
            size = await self._upload_output(entry)
            outcome = msgspec.structs.replace(outcome, output_bytes=size)
            outcome = await self._upload_artifacts(entry, outcome)
        except uploads.Unwanted:
            fields = {"action": "task-unknown", "task": entry.task_id}
            _log.info("task %s is not known to the control plane", entry.task_id, extra=fields)
        return state.Uploaded(outcome)

    async def _upload_output(self, entry: entries.Entry) -> int:
        # A piece of the live output may still be on its way; its answer says where to go on.
        await entry.wait_until_sent()
        if not entry.sent and entry.directory.output_size() == 0:
            return 0
        if entry.job is None:
            # Its record is damaged, so nobody knows which secrets to mask: the output stays here.
            return 0
        path = entry.directory.output
        entry.sent = await self._transfers.send_output(entry.task_id, path, entry.secrets, entry.sent)
        return entry.sent

    async def _upload_artifacts(self, entry: entries.Entry, outcome: wire.Outcome) -> wire.Outcome:
        if not outcome.artifacts:
            return outcome
        if not entry.artifacts:
            collection = entry.directory.read_collection()
            entry.artifacts = {} if collection is None else collection.paths
        sent: list[wire.ArtifactInfo] = []
        trouble: errors.AgentinaError | None = None
        for artifact in outcome.artifacts:
            try:
                await self._transfers.send_artifact(entry.task_id, artifact, Path(entry.artifacts[artifact.name]))
                sent.append(artifact)
            except KeyError:
                trouble = errors.ARTIFACT_UNKNOWN(job=entry.task_id, name=artifact.name)
            except errors.AgentinaError as error:
                trouble = error
        return outcomes.with_collection(outcome, artifacts=sent, commit=outcome.commit, trouble=trouble)


def _run_of(entry: entries.Entry, runner: runner_contract.Runner) -> runs.Run:
    # Only jobs of AI agents pay for the import.
    from agentina.host.work import runs as made  # noqa: PLC0415

    return made.Run(runner.stream, entry.directory.output, chosen=entry.chosen)


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


async def _changed(found: list[tuple[wire.ArtifactInfo, Path]]) -> list[str]:
    """The paths that the patch among what was found changes."""
    from agentina.host.trees import patches  # noqa: PLC0415 - only jobs with a repository or artifacts pay for it

    for artifact, path in found:
        if artifact.kind == "patch":
            paths = await asyncio.to_thread(patches.changed_paths, path, most=wire.MAX_CHANGED)
            return [name[:4096] for name in paths]
    return []


def _collect_fields(entry: entries.Entry, error: errors.AgentinaError) -> dict[str, str]:
    return {"action": "task-collected", "task": entry.task_id, "code": error.code}


def leaves_files(job: jobs.JobSpec) -> bool:
    """Whether files are collected when the job has ended."""
    return job.workspace.git is not None or bool(job.artifacts)


def _is_all(entry: entries.Entry) -> bool:
    """Whether a task that ended left nothing but its result."""
    job = entry.job
    if job is None or leaves_files(job) or job.checkpoint is not None or entry.sent or entry.directory.output_size():
        return False
    return not _declared(entry)


def _declared(entry: entries.Entry) -> list[str]:
    """The paths that a task which has ended declared as artifacts."""
    if entry.declared is None:
        entry.declared = doors.read(entry.directory.path).artifacts
    return entry.declared


async def _missing(entry: entries.Entry) -> list[str]:
    """The paths that the task declared as artifacts and that are not there."""
    declared = _declared(entry)
    if not declared:
        return []
    from agentina.host.trees import snapshots  # noqa: PLC0415 - loaded already: it looked for what there is

    try:
        return await asyncio.to_thread(snapshots.find_missing, entry.directory.workspace, declared)
    except (errors.AgentinaError, OSError):
        return []  # what stood in the way was said when they were collected


def _with_stop(outcome: wire.Outcome, asked: state.StopAsked) -> wire.Outcome:
    """Name the control plane's own reason for the end."""
    stopped = state.stopped_outcome(asked.reason, asked.detail)
    detail = asked.detail or outcome.detail
    return msgspec.structs.replace(outcome, state=stopped.state, reason=stopped.reason, detail=detail)


def _expect_loan(workspace: Path) -> None:
    from agentina.host.trees import workspaces as made  # noqa: PLC0415 - loaded already: it made this workspace

    try:
        made.expect_loan(workspace)
    except OSError as error:
        raise files.from_os_error(error, workspace) from error


def _write_commit(directory: records.TaskDirectory, commit: str) -> None:
    files.write_atomic(directory.path / "commit", commit.encode(), durable=False)


def _read_commit(directory: records.TaskDirectory) -> str:
    try:
        return files.read_bounded(directory.path / "commit", limit=256).decode("ascii", "replace")
    except (OSError, errors.AgentinaError):
        return ""
