"""Tasks that go on elsewhere: takes their checkpoints, and begins a task from one (docs/explanation/checkpoints.md).

Only jobs that somebody, or something, knows how to go on with have checkpoints: those of AI agents whose sessions can
be resumed, and those that ask for it with ``checkpoint``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agentina import errors
from agentina.host import checkpoints, doors, entries, said, uploads
from agentina.protocol import jobs, wire
from agentina.runners import agents
from agentina.runners import contract as runner_contract
from agentina.system import files, tasks

if TYPE_CHECKING:
    from agentina.host import workspaces

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


async def take(place: Place, *, commit: str, trees: workspaces.Workspaces) -> checkpoints.Taken | None:
    """Take a checkpoint; None: the agent has not begun, so there is nothing to go on with.

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
    mirror = None if job.workspace.git is None else await trees.mirror_for(job.workspace.git, commit)
    source = checkpoints.Source(
        directory=entry.directory.path,
        manifest=manifest,
        session=place.session,
        mirror=mirror,
        ignored=place.wishes.ignored,
        limit=place.wishes.limit,
    )
    taken = await checkpoints.take(source, checkpoints.next_number(entry.directory.path))
    _log.info(
        "task %s has a checkpoint of %d bytes", entry.task_id, taken.artifact.size,
        extra={"action": "checkpoint-taken", "task": entry.task_id},
    )  # fmt: skip
    return taken


async def keep(place: Place, *, commit: str, trees: workspaces.Workspaces, transfers: uploads.Uploads) -> None:
    """Take a checkpoint of a running task again and again, until canceled, and send those that tell something new."""
    entry, sent = place.entry, ""
    while place.wishes.every:
        await asyncio.sleep(place.wishes.every)
        taking = tasks.start(
            take(place, commit=commit, trees=trees), name=f"checkpoint {entry.task_id}", on_failure=lambda _: None
        )
        try:
            taken = await asyncio.shield(taking)
            if taken is None:
                continue
            if taken.artifact.sha256 == sent:
                taken.path.unlink()
                continue
            await transfers.send_artifact(entry.task_id, taken.artifact, taken.path)
            sent = taken.artifact.sha256
            checkpoints.keep_newest(entry.directory.path)
        except asyncio.CancelledError:
            # Threads go on regardless: whoever packs next must not meet them.
            await asyncio.wait({taking})
            raise
        except errors.AgentinaError as error:
            fields = {"action": "checkpoint-failed", "task": entry.task_id, "code": error.code}
            _log.warning("task %s: %s", entry.task_id, error, extra=fields)
        except uploads.Unwanted:
            return


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
