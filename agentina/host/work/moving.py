"""Tasks that go on elsewhere: takes their checkpoints, and begins a task from one (docs/explanation/checkpoints.md).

Only jobs that somebody, or something, knows how to go on with have checkpoints: those of AI agents whose sessions can
be resumed, and those that ask for it with ``checkpoint``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agentina import errors
from agentina.host.trees import checkpoints, git, packing
from agentina.host.work import doors, entries, said, uploads
from agentina.protocol import jobs, units, wire
from agentina.runners import agents
from agentina.runners import contract as runner_contract
from agentina.system import files, tasks

if TYPE_CHECKING:
    from agentina.host.trees import workspaces

#: The archive that a task begins from.
_ORIGIN: Final = "origin.tar"
#: Where one has to be told from where it comes.
VARIABLE: Final = "AGENTINA_RESUMED_FROM"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A task's place, as those see it who pack or fill it."""

    entry: entries.Entry
    job: jobs.JobSpec
    runner: runner_contract.Runner
    #: As the task sees it.
    seen: runner_contract.Place

    @property
    def session(self) -> Path | None:
        """Where the files of the runner's sessions are; None: it has none that can be moved."""
        name = self.runner.session_directory(self.seen)
        return self.entry.directory.home / name if name else None

    @property
    def wishes(self) -> jobs.Checkpoint:
        """What the job says about its checkpoints."""
        return self.job.checkpoint or jobs.Checkpoint()


async def take(
    place: Place, *, commit: str, trees: workspaces.Workspaces, slot: packing.Slot | None = None
) -> checkpoints.Taken | None:
    """Take a checkpoint; None: the agent has not begun, so there is nothing to go on with.

    ``slot``: where the task runs, if the daemon cannot see its files.

    Raises:
        AgentinaError: ``CHECKPOINT_FAILED``, ``DISK_FULL`` or ``STATE_UNWRITABLE``.

    """
    entry, job = place.entry, place.job
    session_id = "" if entry.run is None else entry.run.so_far([]).session_id
    if job.checkpoint is None and not session_id:
        return None
    told = doors.read(entry.directory.path)
    manifest = checkpoints.Manifest(
        task_id=entry.task_id,
        runner=job.runner,
        commit=commit,
        session_id=session_id if place.session is not None else "",
        progress=told.progress,
        artifacts=told.artifacts,
    )
    source = checkpoints.Source(
        directory=entry.directory.path,
        manifest=manifest,
        session=place.session,
        mirror=await _mirror(place, commit, trees),
        ignored=place.wishes.ignored,
        limit=place.wishes.limit,
        slot=slot,
    )
    taken = await checkpoints.take(source, checkpoints.next_number(entry.directory.path))
    _log.info(
        "task %s has a checkpoint of %d bytes", entry.task_id, taken.artifact.size,
        extra={"action": "checkpoint-taken", "task": entry.task_id},
    )  # fmt: skip
    return taken


async def _mirror(place: Place, commit: str, trees: workspaces.Workspaces) -> Path | None:
    """The mirror that has the commit; None: the job has no repository."""
    address = place.job.workspace.git
    if address is None:
        return None
    try:
        return await trees.mirror_for(address, commit)
    except git.GitError as error:
        raise errors.CHECKPOINT_FAILED(problem=f"its repository is not here any more: {error}") from error
    except OSError as error:
        raise files.from_os_error(error, place.entry.directory.path) from error


class Keeper:
    """Takes checkpoints of one task while it runs, in time or when asked to, and sends those that tell something new.

    On the host the one that was sent last is kept, for its number, and the newest that is not sent yet.
    """

    def __init__(
        self,
        place: Place,
        *,
        commit: str,
        trees: workspaces.Workspaces,
        transfers: uploads.Uploads,
        slot: packing.Slot | None,
    ) -> None:
        self._place = place
        self._slot = slot
        self._commit = commit
        self._trees = trees
        self._transfers = transfers
        self._asked: list[asyncio.Future[str]] = []
        self._wanted = asyncio.Event()
        #: The last one, as told by its content, and the one that waits to be sent.
        self._known = ""
        self._waiting: checkpoints.Taken | None = None
        self._fresh = asyncio.Event()

    async def run(self) -> None:
        """Work until canceled."""
        sender = tasks.start(self._send(), name=f"checkpoints {self._place.entry.task_id}")
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._place.wishes.every or None):
                        await self._wanted.wait()
                self._wanted.clear()
                await self._take()
        finally:
            await tasks.cancel(sender)
            self._answer(errors.CHECKPOINT_FAILED(problem="the task has ended"))

    async def now(self) -> str:
        """Take one; what became of it, in words. It is on disk then, and on its way.

        Raises:
            AgentinaError: ``CHECKPOINT_FAILED``, ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._wanted.set()
        return await answer

    async def _take(self) -> None:
        asked, self._asked = self._asked, []
        try:
            taken = await take(self._place, commit=self._commit, trees=self._trees, slot=self._slot)
            said = self._take_over(taken)
        except asyncio.CancelledError:
            # Others may have asked meanwhile: whoever ends this answers them all.
            self._asked = [*asked, *self._asked]
            raise
        except errors.AgentinaError as error:
            fields = {"action": "checkpoint-failed", "task": self._place.entry.task_id, "code": error.code}
            _log.warning("task %s: %s", self._place.entry.task_id, error, extra=fields)
            _answer(asked, error)
            return
        _answer(asked, said)

    def _take_over(self, taken: checkpoints.Taken | None) -> str:
        if taken is None:
            return "there is nothing to go on with yet: the agent has no session"
        if taken.artifact.sha256 == self._known:
            taken.path.unlink()
            return "nothing has changed since the last checkpoint"
        if self._waiting is not None:
            self._waiting.path.unlink(missing_ok=True)
        self._known, self._waiting = taken.artifact.sha256, taken
        self._fresh.set()
        left_out = f"; not in it: {', '.join(taken.left_out[:3])}" if taken.left_out else ""
        return f"{taken.artifact.name} is taken ({units.show_size(taken.artifact.size)}) and on its way{left_out}"

    async def _send(self) -> None:
        entry = self._place.entry
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            taken, self._waiting = self._waiting, None
            if taken is None:
                continue
            try:
                await self._transfers.send_artifact(entry.task_id, taken.artifact, taken.path)
            except errors.AgentinaError as error:
                fields = {"action": "checkpoint-failed", "task": entry.task_id, "code": error.code}
                _log.warning("task %s: %s", entry.task_id, error, extra=fields)
            except uploads.Unwanted:
                return
            checkpoints.drop_before(entry.directory.path, taken.artifact.name)

    def _answer(self, said: str | errors.AgentinaError) -> None:
        asked, self._asked = self._asked, []
        _answer(asked, said)


def _answer(asked: list[asyncio.Future[str]], said: str | errors.AgentinaError) -> None:
    for one in asked:
        if one.done():
            continue
        if isinstance(said, str):
            one.set_result(said)
        else:
            one.set_exception(said)


async def fetch(entry: entries.Entry, transfers: uploads.Uploads) -> checkpoints.Manifest:
    """Bring the checkpoint that the control plane wants a task to begin from.

    Raises:
        AgentinaError: ``CHECKPOINT_FAILED``: it cannot be had; ``DISK_FULL`` or ``STATE_UNWRITABLE``.

    """
    assert entry.assignment is not None
    assert entry.assignment.origin is not None
    origin = entry.assignment.origin
    path = _origin(entry)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        await transfers.fetch_checkpoint(entry.task_id, origin, path)
    except OSError as error:
        raise files.from_os_error(error, path) from error
    except uploads.Unwanted as error:
        raise errors.CHECKPOINT_FAILED(problem="the control plane does not have it any more") from error
    return await asyncio.to_thread(checkpoints.read_manifest, path)


async def furnish(place: Place, manifest: checkpoints.Manifest) -> None:
    """Put what the fetched checkpoint holds into a new task's place.

    Raises:
        AgentinaError: ``CHECKPOINT_FAILED``: the place is to be made anew; ``DISK_FULL`` or ``STATE_UNWRITABLE``.

    """
    entry, path = place.entry, _origin(place.entry)
    if manifest.runner != place.job.runner:
        raise errors.CHECKPOINT_FAILED(problem=f"it is one of the runner {manifest.runner[:40]!r}")
    session = place.session if manifest.session_id else None
    limit = 4 * place.wishes.limit  # names and small files take more room in the archive than outside, never less
    await asyncio.to_thread(checkpoints.restore, path, entry.directory.workspace, session, limit=limit)
    if manifest.progress is not None or manifest.artifacts:
        told = said.Said(progress=manifest.progress, artifacts=manifest.artifacts[: said.MAX_ARTIFACTS])
        files.write_atomic(entry.directory.path / said.FILE, msgspec.json.encode(told), durable=False)
    path.unlink(missing_ok=True)


def resumed(job: jobs.JobSpec, manifest: checkpoints.Manifest) -> jobs.JobSpec:
    """What a task that begins from a checkpoint is to run: the agent's session goes on."""
    environment = {VARIABLE: manifest.task_id, **job.environment}
    payload = job.payload
    if manifest.session_id:
        payload = msgspec.structs.replace(payload, resume=manifest.session_id, prompt=agents.CONTINUE, prompt_file=None)
    return msgspec.structs.replace(job, environment=environment, payload=payload)


def to_outcome(outcome: wire.Outcome, left_out: list[str]) -> str:
    """The sentence that ends the detail of a task which goes on elsewhere."""
    names = ", ".join(left_out[:3])
    return f"{outcome.detail} Not taken along: {names}." if names else outcome.detail


def _origin(entry: entries.Entry) -> Path:
    return entry.directory.path / checkpoints.DIRECTORY / _ORIGIN
