"""Checkpoints of jobs: which one a task goes on from, and which are kept (docs/explanation/checkpoints.md)."""

from __future__ import annotations

from typing import Final, NamedTuple

from agentina import errors
from agentina.control import plane
from agentina.control.services import changes
from agentina.control.store import audit, engine, jobs, tasks
from agentina.protocol import units, wire
from agentina.protocol.states import State

#: How many of a job are kept: a task may be bringing the one before the newest just now.
KEPT: Final = 2
#: Seconds for which those of a job that was lost are kept: somebody may retry it, and it goes on then.
KEEP_LOST_SECONDS: Final = 7 * 86400
_REMOVE_SECONDS: Final = 60.0
#: Rows in one operation; requests come in between.
_CHUNK: Final = 200
#: Ends after which a job goes on where it was. After any other it begins anew: what went wrong may be in there.
_GOES_ON: Final = frozenset({State.LOST, State.CHECKPOINTED})


def origin(tx: engine.Transaction, job: int, public_id: str, number: int) -> wire.Origin | None:
    """What task ``number`` of a job goes on from; None: it begins."""
    if tasks.state_before(tx, job, number) not in _GOES_ON:
        return None
    found = tasks.checkpoints(tx, job, before=number)
    if not found:
        return None
    row = found[0]
    artifact = wire.ArtifactInfo(name=row["name"], size=row["size"], sha256=row["sha256"], kind="checkpoint")
    return wire.Origin(task_id=f"{public_id}.{row['number']}", artifact=artifact)


async def ask(control: plane.Plane, public_id: str, *, actor: str) -> str:
    """Have a checkpoint taken of the task that an agent runs for a job; the job's id is returned.

    The wish is durable, and forgotten when its agent has heard it or the task has ended.

    Raises:
        AgentinaError: ``JOB_UNKNOWN``; ``STATE_CONFLICT`` when it does not run.

    """

    def operation(work: changes.Work) -> str:
        job = jobs.get(work.tx, public_id)
        if job.state is not State.RUNNING:
            raise errors.STATE_CONFLICT(what=f"Job {public_id}", state=f"'{job.state.value}'", expected="'running'")
        audit.append(work.tx, actor=actor, action="job.checkpoint", subject=public_id, detail={}, now_ms=work.now_ms)
        job.tell(f"a checkpoint is asked for by {actor}", task=job.tasks, now_ms=work.now_ms)
        jobs.save(work.tx, job)
        work.effects.jobs.add(public_id)
        task = tasks.find(work.tx, public_id, job.tasks)
        assert task is not None, public_id
        tasks.wish_checkpoint(work.tx, task.id)
        return task.public_id

    await control.write(operation, committed=control.fleet.want_checkpoint)
    return public_id


class Useless(NamedTuple):
    """A checkpoint, or a part of one, that nobody goes on from."""

    #: The task's row, and its public id.
    task: int
    task_id: str
    name: str


def left_off(tx: engine.Transaction, task: tasks.Task, *, besides: str) -> list[Useless]:
    """What a task's host announced and left off: it sends one after the other."""
    found = tasks.unfinished_checkpoints(tx, task.id, besides=besides)
    return [Useless(task.id, task.public_id, name) for name in found]


def complete(work: changes.Work, task: tasks.Task, name: str, sha256: str) -> list[Useless]:
    """A checkpoint is stored in full: it counts from now on. Those that it makes useless are returned."""
    tasks.complete_artifact(work.tx, task.id, name, sha256)
    row = tasks.artifact(work.tx, task.id, name)
    assert row is not None
    text = f"{name} is stored ({units.show_size(row['size'])})"
    task.job.tell(text, task=task.number, now_ms=work.now_ms)
    tasks.save(work.tx, task)
    work.effects.jobs.add(task.job.public_id)
    work.effects.checkpointed.append(task.public_id)
    older = tasks.checkpoints(work.tx, task.job_id)[KEPT:]
    return [Useless(old["task_id"], f"{task.job.public_id}.{old['number']}", old["name"]) for old in older]


async def remove(control: plane.Plane, found: list[Useless]) -> None:
    """Delete checkpoints. Files first: what a crash leaves is a row without its file, which is found again."""
    if not found:
        return
    for one in found:
        await control.blobs.remove_artifact(one.task_id, one.name)
        await control.blobs.restart_artifact(one.task_id, one.name)

    def forget(tx: engine.Transaction) -> None:
        for one in found:
            tasks.drop_artifact(tx, one.task, one.name)

    await control.store.write(forget)


class Removal:
    """The duty that deletes checkpoints which no task goes on from any more."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        #: Boot time of the next removal.
        self.due = control.clock.boot()

    async def remove_if_due(self) -> None:
        """Remove those of jobs that have ended.

        A job that somebody retries in between begins anew, as it would have a moment later.
        """
        control = self._control
        now = control.clock.boot()
        if now < self.due:
            return
        self.due = now + _REMOVE_SECONDS
        before_ms = control.clock.wall_ms() - KEEP_LOST_SECONDS * 1000
        while True:
            found, wishes = control.store.read(
                lambda tx: (
                    tasks.useless_checkpoints(tx, before_ms=before_ms, limit=_CHUNK), tasks.wished_checkpoints(tx)
                ),
                snapshot=False,
            )  # fmt: skip
            if not (found or wishes):
                return
            useless = [Useless(row["task_id"], f"{row['job']}.{row['number']}", row["name"]) for row in found]
            await remove(control, useless)
            await control.store.write(tasks.forget_vain_wishes)
            if len(found) < _CHUNK:
                return
