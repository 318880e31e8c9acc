"""The end of a task: what it left is collected, becomes its outcome, and is uploaded."""

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
from agentina.host.work import choices, doors, entries, healthwatch, outcomes, places, records, state, uploads
from agentina.protocol import jobs, states, wire
from agentina.protocol.states import Reason, State
from agentina.runners import contract as runner_contract

if TYPE_CHECKING:
    from agentina.host.trees import workspaces
    from agentina.host.work import checkpointing, runs

#: Ends of tasks that go on elsewhere where they can.
_MOVES: Final = {contract.StopReason.CHECKPOINT, contract.StopReason.HOST_SHUTDOWN}

#: Seconds between attempts to read a result.
RETRY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class Collecting:
    """Collects and uploads for all tasks of an instance."""

    def __init__(
        self,
        *,
        executor: contract.Executor,
        runners: choices.Runners,
        where: places.Places,
        trees: Callable[[], workspaces.Workspaces],
        checkpoints: Callable[[], checkpointing.Checkpoints],
        transfers: uploads.Uploads,
        on_host_shutdown: Callable[[], None],
        boot_id: str,
    ) -> None:
        self._executor = executor
        self._runners = runners
        self._places = where
        self._trees = trees
        self._checkpoints = checkpoints
        self._transfers = transfers
        self._on_host_shutdown = on_host_shutdown
        self._boot_id = boot_id

    async def _read_run(self, entry: entries.Entry, job: jobs.JobSpec) -> wire.AgentRun | None:
        """What the whole output says of the run, where that can be read."""
        runner = self._runners.find(entry, job)
        if runner is None or not runner.stream:
            return None
        if entry.run is None:
            entry.run = run_of(entry, runner)
        await asyncio.to_thread(entry.run.complete)
        return entry.account(is_whole=True)

    async def collect(self, entry: entries.Entry) -> state.Event:
        """Find out how a task ended, and keep what it left."""
        job = entry.job
        result = await self._read_result(entry)
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
        if result.stopped in _MOVES and self._places.can_move(entry):
            return state.Collected(await self._pack(entry, job, outcome, is_synced=is_synced))
        can_go_on = is_synced and self._places.can_move(entry)
        if can_go_on and outcomes.was_cut_off(result, outcome):
            # Nobody knows how it would have ended, and the next task goes on from here: nothing is done twice.
            outcome = msgspec.structs.replace(outcome, state=State.LOST)
        outcome = await self._with_files(entry, job, outcome, is_synced=is_synced)
        if can_go_on and outcome.state is State.LOST:
            outcome = await self._checkpoints().add(entry, job, outcome)
        return state.Collected(outcome)

    async def _read_result(self, entry: entries.Entry) -> contract.Result | None:
        """What the executor left; waits for as long as this process cannot look."""
        while True:
            try:
                return self._executor.read_result(entry.directory.path)
            except errors.AgentinaError as error:
                fields = {"action": "task-collected", "task": entry.task_id, "code": error.code}
                _log.warning("the result of task %s cannot be read yet: %s", entry.task_id, error, extra=fields)
            await asyncio.sleep(RETRY_SECONDS)

    async def _with_files(
        self, entry: entries.Entry, job: jobs.JobSpec, outcome: wire.Outcome, *, is_synced: bool
    ) -> wire.Outcome:
        """``outcome`` with what the task left, where somebody wants that."""
        declared = _declared(entry)
        if not places.leaves_files(job) and not declared:
            return outcome
        if not is_synced:
            # Nobody synced its files, as was done for its result and output: they may be empty after a power cut.
            return outcomes.without_files(outcome)
        # Paths, not patterns: a name may have any character.
        wanted = [*job.artifacts, *map(glob.escape, declared)]
        return await self._gather(entry, msgspec.structs.replace(job, artifacts=wanted), outcome)

    def _hear_shutdown(self, entry: entries.Entry) -> None:
        """The system stops; or a task was to go on elsewhere, which supervisors of older releases take for that."""
        if entry.task.stop is None:
            self._on_host_shutdown()

    async def _collect_vanished(self, entry: entries.Entry) -> wire.Outcome:
        # Nothing is reported lost, and so perhaps run again, while a part of it may still run here.
        await asyncio.to_thread(self._executor.end_leftovers, entry.directory.path)
        lost = self._vanished(entry)
        if entry.job is None:
            return lost
        # Its session may be all that is left of hours of work.
        lost = msgspec.structs.replace(lost, agent=await self._read_run(entry, entry.job))
        if lost.reason is Reason.SUPERVISOR_DIED and self._places.can_move(entry):
            lost = await self._checkpoints().add(entry, entry.job, lost)
        return lost

    async def _pack(
        self, entry: entries.Entry, job: jobs.JobSpec, outcome: wire.Outcome, *, is_synced: bool
    ) -> wire.Outcome:
        """The outcome of a task that ended to go on elsewhere, with its checkpoint."""
        if not is_synced:
            return outcomes.lost(Reason.HOST_RESTARTED, "before its checkpoint was taken")
        why = f": {entry.task.stop.detail}" if entry.task.stop is not None and entry.task.stop.detail else ""
        outcome = msgspec.structs.replace(
            outcome, state=State.CHECKPOINTED, reason=Reason.CHECKPOINT,
            detail=f"It {states.REASONS[Reason.CHECKPOINT]}{why}.",
        )  # fmt: skip
        return await self._checkpoints().add(entry, job, outcome)

    async def _gather(self, entry: entries.Entry, job: jobs.JobSpec, outcome: wire.Outcome) -> wire.Outcome:
        """Find patch and artifacts; keep the collection on disk."""
        commit = entry.directory.read_commit()
        found: list[tuple[wire.ArtifactInfo, Path]] = []
        trouble: errors.AgentinaError | None = None
        try:
            found = await self._trees().collect(job, entry.directory.path, commit)
        except errors.AgentinaError as error:
            fields = {"action": "task-collected", "task": entry.task_id, "code": error.code}
            _log.warning("task %s: %s", entry.task_id, error, extra=fields)
            trouble = error
        artifacts = [artifact for artifact, _ in found]
        outcome = outcomes.with_collection(outcome, artifacts=artifacts, commit=commit, trouble=trouble)
        outcome = outcomes.without_declared(outcome, await _missing(entry))
        outcome = msgspec.structs.replace(outcome, changed=await _changed(found))
        entry.keep(outcome, {artifact.name: str(path) for artifact, path in found})
        return outcome

    def _vanished(self, entry: entries.Entry) -> wire.Outcome:
        """The outcome of a task that was started, does not run and left no result."""
        try:
            record = msgspec.json.decode(entry.record, type=records.Record)
        except msgspec.MsgspecError:
            return outcomes.lost(Reason.RECORD_DAMAGED)
        restarted = record.boot_id != self._boot_id
        return outcomes.lost(Reason.HOST_RESTARTED if restarted else Reason.SUPERVISOR_DIED)

    async def upload(self, entry: entries.Entry) -> state.Event:
        """Send the rest of its output, and what was kept of it."""
        assert entry.task.outcome is not None
        outcome = msgspec.structs.replace(entry.task.outcome, models=entry.models, hosts=entry.hosts)
        if entry.carried is not None:
            received, sent = entry.carried.received, entry.carried.sent
            usage = msgspec.structs.replace(outcome.usage, network_received_bytes=received, network_sent_bytes=sent)
            outcome = msgspec.structs.replace(outcome, usage=usage)
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


def run_of(entry: entries.Entry, runner: runner_contract.Runner) -> runs.Run:
    """What reads the output of a task's AI agent."""
    # Only jobs of AI agents pay for the import.
    from agentina.host.work import runs as made  # noqa: PLC0415

    return made.Run(runner.stream, entry.directory.output, chosen=entry.chosen)


def is_all(entry: entries.Entry) -> bool:
    """Whether a task that ended left nothing but its result."""
    job = entry.job
    if job is None or places.leaves_files(job) or job.checkpoint is not None:
        return False
    if entry.sent or entry.directory.output_size():
        return False
    return not _declared(entry)


async def _changed(found: list[tuple[wire.ArtifactInfo, Path]]) -> list[str]:
    """The paths that the patch among what was found changes."""
    from agentina.host.trees import patches  # noqa: PLC0415 - only jobs with a repository or artifacts pay for it

    for artifact, path in found:
        if artifact.kind == "patch":
            paths = await asyncio.to_thread(patches.changed_paths, path, most=wire.MAX_CHANGED)
            return [name[:4096] for name in paths]
    return []


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
