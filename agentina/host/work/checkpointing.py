"""The checkpoints of all tasks of an instance: begins tasks from them, and takes them while tasks run and at their end.

How one is made and used is :mod:`agentina.host.work.moving`'s. Loaded for the first task that can go on elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.trees import packing, turns
from agentina.host.work import choices, entries, moving, places, uploads
from agentina.protocol import jobs, wire
from agentina.runners import contract as runner_contract

if TYPE_CHECKING:
    from agentina.host.trees import workspaces

_Furnish = Callable[[entries.Entry, jobs.JobSpec, runner_contract.Runner], Awaitable[None]]

_log = logging.getLogger(__name__)


class Checkpoints:
    """Takes and uses them."""

    def __init__(
        self,
        *,
        executor: contract.Executor,
        runners: choices.Runners,
        where: places.Places,
        trees: workspaces.Workspaces,
        transfers: uploads.Uploads,
    ) -> None:
        self._executor = executor
        self._runners = runners
        self._places = where
        self._trees = trees
        self._transfers = transfers
        #: Who takes them, by the task that runs.
        self._keepers: dict[str, moving.Keeper] = {}
        self._turns = turns.Turns()

    async def begin(self, entry: entries.Entry, job: jobs.JobSpec, *, furnish: _Furnish) -> None:
        """Make the place of a task from the one that the control plane names, upon what ``furnish`` makes.

        Raises:
            AgentinaError: ``CHECKPOINT_FAILED``, or what ``furnish`` raises: the place is to be made anew;
                ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        manifest = await moving.fetch(entry, self._transfers)
        at = msgspec.structs.replace(job.workspace, ref=manifest.commit or job.workspace.ref)
        wanted = moving.resumed(msgspec.structs.replace(job, workspace=at), manifest)
        place = self._place(entry, job)
        await furnish(entry, wanted, place.runner)
        await moving.furnish(place, manifest)
        entry.origin = manifest

    async def keep(self, entry: entries.Entry) -> None:
        """Take them of a task that runs, until canceled."""
        job = entry.job
        assert job is not None
        slot = None
        if self._places.is_slot(entry):
            share = turns.Share(self._turns)
            slot = packing.Slot(executor=self._executor, directory=entry.directory.path, share=share)
        keeper = moving.Keeper(
            self._place(entry, job),
            commit=entry.directory.read_commit(),
            trees=self._trees,
            transfers=self._transfers,
            slot=slot,
        )
        self._keepers[entry.task_id] = keeper
        try:
            await keeper.run()
        finally:
            del self._keepers[entry.task_id]

    async def now(self, entry: entries.Entry) -> str:
        """Take one of a task that runs; what became of it, in words.

        Raises:
            AgentinaError: ``CHECKPOINT_FAILED``, ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        keeper = self._keepers.get(entry.task_id)
        if keeper is None:
            raise errors.CHECKPOINT_FAILED(problem="its task does not run now")
        return await keeper.now()

    async def add(self, entry: entries.Entry, job: jobs.JobSpec, outcome: wire.Outcome) -> wire.Outcome:
        """``outcome`` of a task of which nothing runs any more, with its checkpoint, or why there is none."""
        commit = entry.directory.read_commit()
        try:
            taken = await moving.take(self._place(entry, job), commit=commit, trees=self._trees)
        except errors.AgentinaError as error:
            fields = {"action": "checkpoint-failed", "task": entry.task_id, "code": error.code}
            _log.error("task %s: %s", entry.task_id, error, extra=fields)
            return msgspec.structs.replace(
                outcome, error_code=error.code, detail=f"{outcome.detail} {error.message}"[: wire.MAX_DETAIL]
            )
        if taken is None:
            return msgspec.structs.replace(outcome, detail=f"{outcome.detail} It had not begun to work.")
        outcome = msgspec.structs.replace(
            outcome, commit=commit, artifacts=[*outcome.artifacts, taken.artifact],
            detail=moving.to_outcome(outcome, taken.left_out)[: wire.MAX_DETAIL],
        )  # fmt: skip
        entry.keep(outcome, {**entry.artifacts, taken.artifact.name: str(taken.path)})
        return outcome

    def _place(self, entry: entries.Entry, job: jobs.JobSpec) -> moving.Place:
        runner = self._runners.require(entry, job)
        return moving.Place(entry=entry, job=job, runner=runner, seen=self._places.seen(entry, job, runner))
