"""Output and artifacts from hosts: pieces at offsets, acknowledged when durable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.control.services import changes, checkpoints, sessions
from agentina.control.store import engine, jobs, tasks
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol import names, wire

#: What a host may send beyond a job's own limits: notices of truncation, the patch of the workspace.
OUTPUT_SLACK: Final = 1 << 20
ARTIFACT_SLACK: Final = 256 << 20
MAX_ARTIFACTS: Final = 1000


class _LimitsPart(msgspec.Struct):
    limits: protocol_jobs.Limits = protocol_jobs.Limits()
    checkpoint: protocol_jobs.Checkpoint | None = None


class _Turn:
    """Who writes for a task, and how many wait for their turn."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Uploads:
    """Uploads of all agents. One writer at a time for each task."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        self._turns: dict[str, _Turn] = {}

    async def output(
        self, agent: fleet.Agent, task_id: str, *, session: int, offset: int, piece: bytes
    ) -> wire.PieceStored:
        """Store a piece of output.

        Raises:
            AgentinaError: ``OFFSET_MISMATCH``, ``STORAGE_FULL``, ``TASK_UNKNOWN``, ``SESSION_SUPERSEDED``,
                ``INPUT_TOO_LARGE`` (beyond the job's own limit).

        """
        task = self._task(agent, task_id, session)
        limit = self._limits(task).limits.output + OUTPUT_SLACK
        if offset + len(piece) > limit:
            raise errors.INPUT_TOO_LARGE(where=f"output of {task_id}", size=offset + len(piece), limit=limit)
        async with self._turn(task_id):
            size = await self._control.blobs.append_output(task_id, offset, piece)
        self._control.bells.ring(task.job.public_id)
        return wire.PieceStored(offset=size)

    async def begin_artifact(self, agent: fleet.Agent, task_id: str, message: wire.ArtifactBegin) -> wire.PieceStored:
        """Announce an artifact; the answer says where to go on.

        Raises:
            AgentinaError: ``NAME_INVALID``, ``INPUT_TOO_LARGE``, ``STATE_CONFLICT`` (too many), and as above.

        """
        info = message.artifact
        names.check_artifact(info.name)
        task = self._task(agent, task_id, message.session)
        largest, most = self._room(task, info)
        if info.size > largest:
            raise errors.INPUT_TOO_LARGE(where=f"{info.name} of {task_id}", size=info.size, limit=largest)

        def announce(tx: engine.Transaction) -> tuple[engine.Row | None, engine.Row, list[checkpoints.Useless]]:
            sessions.check_standing(tx, agent, message.session)
            before = tasks.artifact(tx, task.id, info.name)
            row = tasks.announce_artifact(
                tx, task.id, name=info.name, size=info.size, sha256=info.sha256, kind=info.kind
            )
            left = checkpoints.left_off(tx, task, besides=info.name) if info.kind == "checkpoint" else []
            count, total = tasks.artifact_totals(tx, task.id)
            if total > most or count > MAX_ARTIFACTS:
                raise errors.INPUT_TOO_LARGE(where=f"artifacts of {task_id}", size=total, limit=most)
            return before, row, left

        async with self._turn(task_id):
            before, row, left = await self._control.store.write(announce)
            await checkpoints.remove(self._control, left)
            if row["complete"]:
                return wire.PieceStored(offset=info.size, complete=True)
            if before is not None and before["sha256"] != info.sha256:
                await self._control.blobs.restart_artifact(task_id, info.name)
            if info.size == 0:
                await self._control.blobs.append_artifact(task_id, info.name, 0, b"")
                return await self._complete(task, row)
            return wire.PieceStored(offset=self._control.blobs.artifact_size(task_id, info.name))

    async def artifact_piece(
        self, agent: fleet.Agent, task_id: str, name: str, *, session: int, offset: int, piece: bytes
    ) -> wire.PieceStored:
        """Store a piece of an announced artifact; the last one verifies it.

        Raises:
            AgentinaError: ``ARTIFACT_UNKNOWN`` (not announced), ``ARTIFACT_CORRUPT``, and as above.

        """
        task = self._task(agent, task_id, session)
        async with self._turn(task_id):
            row = self._control.store.read(lambda tx: tasks.artifact(tx, task.id, name), snapshot=False)
            if row is None:
                raise errors.ARTIFACT_UNKNOWN(job=task.job.public_id, name=name[: names.MAX_ARTIFACT_NAME])
            if row["complete"]:
                return wire.PieceStored(offset=row["size"], complete=True)
            if offset + len(piece) > row["size"]:
                raise errors.INPUT_TOO_LARGE(where=f"artifact {name!r}", size=offset + len(piece), limit=row["size"])
            size = await self._control.blobs.append_artifact(task_id, name, offset, piece)
            if size < row["size"]:
                return wire.PieceStored(offset=size)
            return await self._complete(task, row)

    async def _complete(self, task: tasks.Task, row: engine.Row) -> wire.PieceStored:
        task_id, name, sha256 = task.public_id, row["name"], row["sha256"]
        found = await self._control.blobs.finish_artifact(task_id, name, sha256)
        if found != sha256:
            raise errors.ARTIFACT_CORRUPT(name=name, found=found, expected=sha256)
        if row["kind"] == "checkpoint":
            await self._complete_checkpoint(task, name, sha256)
        else:
            await self._control.store.write(lambda tx: tasks.complete_artifact(tx, task.id, name, sha256))
        return wire.PieceStored(offset=row["size"], complete=True)

    async def _complete_checkpoint(self, task: tasks.Task, name: str, sha256: str) -> None:
        def complete(work: changes.Work) -> list[checkpoints.Useless]:
            return checkpoints.complete(work, tasks.by_id(work.tx, task.id), name, sha256)

        await checkpoints.remove(self._control, await self._control.write(complete))

    async def checkpoint_piece(
        self, agent: fleet.Agent, task_id: str, *, session: int, of: str, name: str, offset: int
    ) -> bytes:
        """A piece of a checkpoint of an earlier task of the same job.

        Raises:
            AgentinaError: ``ARTIFACT_UNKNOWN``, ``TASK_UNKNOWN``, ``SESSION_SUPERSEDED``.

        """
        task = self._task(agent, task_id, session)
        rows = self._control.store.read(
            lambda tx: tasks.checkpoints(tx, task.job_id, before=task.number), snapshot=False
        )
        named = {(f"{task.job.public_id}.{row['number']}", row["name"]) for row in rows}
        if (of, name) not in named:
            raise errors.ARTIFACT_UNKNOWN(job=task.job.public_id, name=name[: names.MAX_ARTIFACT_NAME])
        path = self._control.blobs.artifact_path(of, name)
        try:
            return await self._control.blobs.read_piece(path, offset, wire.MAX_PIECE)
        except FileNotFoundError as error:
            raise errors.ARTIFACT_UNKNOWN(job=task.job.public_id, name=name) from error

    def _task(self, agent: fleet.Agent, task_id: str, session: int) -> tasks.Task:
        sessions.check(agent, session)
        agent.last_seen = self._control.clock.boot()
        if not names.is_task_id(task_id):
            raise errors.TASK_UNKNOWN(task=task_id[:40])
        task = self._control.store.read(lambda tx: tasks.find(tx, *ids.split_task_id(task_id)), snapshot=False)
        if task is None or task.agent_id != agent.id:
            raise errors.TASK_UNKNOWN(task=task_id)
        return task

    def _room(self, task: tasks.Task, info: wire.ArtifactInfo) -> tuple[int, int]:
        """The largest size of one artifact like this, and of all together that are no checkpoints."""
        limits = self._limits(task)
        most = limits.limits.artifacts + ARTIFACT_SLACK
        if info.kind == "checkpoint":
            return (limits.checkpoint or protocol_jobs.Checkpoint()).limit, most
        return most, most

    def _limits(self, task: tasks.Task) -> _LimitsPart:
        spec = self._control.store.read(lambda tx: jobs.spec(tx, task.job_id), snapshot=False)
        return msgspec.json.decode(spec, type=_LimitsPart)

    @contextlib.asynccontextmanager
    async def _turn(self, task_id: str) -> AsyncIterator[None]:
        """A request repeated after a lost answer waits for its twin, then finds the new offset."""
        turn = self._turns.setdefault(task_id, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[task_id]
