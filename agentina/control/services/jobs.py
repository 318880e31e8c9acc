"""What operators do with jobs: submit, cancel, retry."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.control.services import changes, claims, lifecycle, outcomes, pathclaims, trail
from agentina.control.store import audit, engine, jobs, registry, tasks
from agentina.protocol import api, wire
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol.states import FINAL, Reason, State

_CANCELED: Final = lifecycle.Verdict(state=State.CANCELED, reason=Reason.CANCELED_BY_OPERATOR)
#: Longest idempotency key.
MAX_KEY: Final = 128


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job to submit, by whom and for which organization."""

    spec: protocol_jobs.JobSpec
    organization: str
    #: The idempotency key; None: every request makes a job.
    key: str | None
    actor: str


async def submit(control: plane.Plane, submissions: Sequence[Submission]) -> list[api.JobCreated]:
    """Store jobs durably, all of them or none, and give them to agents that wait in the same transaction.

    Raises:
        AgentinaError: ``NOT_FOUND`` (organization), ``JOB_NEED_UNKNOWN``, ``JOB_KEY_REUSED``, ``INPUT_INVALID`` (key).

    """
    control.check_running()
    for submission in submissions:
        key = submission.key
        if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
            raise errors.INPUT_INVALID(where="Idempotency-Key", problem=f"expected 1 to {MAX_KEY} printable characters")
    attempt = _Attempt(control)

    def committed(_: object) -> None:
        for job_class in attempt.classes:
            if job_class["id"] not in control.fleet.classes:
                control.fleet.add_class(plane.job_class(job_class))
        for agent, claimed in attempt.given:
            claims.hold(control, agent, [claimed])

    def operation(work: changes.Work) -> list[api.JobCreated]:
        return [attempt.submit(work, submission) for submission in submissions]

    try:
        return await control.write(operation, committed=committed)
    finally:
        attempt.reservations.wake()
        if attempt.given:
            # Their polls are answered in this turn of the loop, the submission in the next: a host has more to do.
            await asyncio.sleep(0)


class _Attempt:
    """Submissions of one transaction: stored and, when an agent waits for such a job, given to it at once."""

    def __init__(self, control: plane.Plane) -> None:
        #: Out of the queue of waiting agents before the commit, but whatever becomes of that, they are woken and look.
        self.reservations = claims.Reservations(control)
        self.given: list[tuple[fleet.Agent, claims.Claimed]] = []
        self._organizations: dict[str, int] = {}
        self._classes: dict[tuple[object, ...], engine.Row] = {}

    @property
    def classes(self) -> Iterable[engine.Row]:
        """The classes of the jobs, which may be new."""
        return self._classes.values()

    def submit(self, work: changes.Work, submission: Submission) -> api.JobCreated:
        """Store one job."""
        tx, spec = work.tx, submission.spec
        organization = self._organization(tx, submission.organization)
        text = msgspec.json.encode(spec).decode()
        sha256 = None
        if submission.key is not None:
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            known = jobs.by_submission(tx, organization, submission.key)
            if known is not None and known["submission_sha256"] != sha256:
                raise errors.JOB_KEY_REUSED(job=known["public_id"])
            if known is not None:
                return api.JobCreated(id=known["public_id"], created=False)
        needed = _needed(tx, organization, spec)
        job = self._new_job(work, organization, spec, needed)
        job.tell(f"submitted by {submission.actor}", state=State.QUEUED, now_ms=work.now_ms)
        job.claims_paths = bool(pathclaims.of_spec(spec)[1])
        # Given away before it is stored, it never enters the queue; one with claims goes by that, where it is seen
        # whether it may run.
        is_free = not needed and not job.claims_paths
        agent = self.reservations.find(tx, job.class_id, job.memory_bytes) if is_free else None
        if agent is not None:
            claims.assign(work, agent, job)
        jobs.insert(tx, job, name=spec.name, spec=text, key=submission.key, sha256=sha256, now_ms=work.now_ms)
        trail.asked(work, submission.actor, job, spec)
        if job.claims_paths:
            pathclaims.submit(work, job, spec)
        for need in needed:
            jobs.add_need(tx, job.id, need.id)
        if agent is not None:
            self.given.append((agent, claims.record(work, agent, job, text)))
        else:
            _announce(work, job, needed)
        return api.JobCreated(id=job.public_id)

    def _organization(self, tx: engine.Transaction, name: str) -> int:
        if name not in self._organizations:
            self._organizations[name] = int(registry.get_organization(tx, name)["id"])
        return self._organizations[name]

    def _class(self, tx: engine.Transaction, organization: int, spec: protocol_jobs.JobSpec) -> engine.Row:
        labels = msgspec.json.encode(spec.labels, order="sorted").decode()
        known = (organization, spec.role, spec.runner, labels, spec.gateway)
        if known not in self._classes:
            self._classes[known] = jobs.ensure_class(
                tx, organization, role=spec.role or "", runner=spec.runner, labels=labels, gateway=spec.gateway
            )
        return self._classes[known]

    def _new_job(
        self, work: changes.Work, organization: int, spec: protocol_jobs.JobSpec, needed: list[jobs.Job]
    ) -> jobs.Job:
        left = sum(need.state is not State.SUCCEEDED for need in needed)
        return jobs.Job(
            id=0, public_id=ids.new_job_id(work.now_ms), organization_id=organization,
            class_id=self._class(work.tx, organization, spec)["id"],
            role=spec.role, priority=spec.priority, memory_bytes=spec.memory_bytes, state=State.QUEUED,
            reason=Reason.WAITING_FOR_NEEDS if left else Reason.WAITING_FOR_AGENT, detail="", ready=not left,
            needs_left=left, runnable_ms=work.now_ms,
        )  # fmt: skip


def _needed(tx: engine.Transaction, organization: int, spec: protocol_jobs.JobSpec) -> list[jobs.Job]:
    needed = []
    for public_id in dict.fromkeys(spec.needs):
        job = jobs.find(tx, public_id)
        if job is None or job.organization_id != organization:
            raise errors.JOB_NEED_UNKNOWN(job=public_id[:40])
        needed.append(job)
    return needed


def _announce(work: changes.Work, job: jobs.Job, needed: list[jobs.Job]) -> None:
    """Announce a queued job, or cancel it at once when something it needs has already ended badly."""
    work.effects.jobs.add(job.public_id)
    for need in needed:
        if need.state in FINAL and need.state is not State.SUCCEEDED:
            outcomes.cancel_unmet(work, job, f"{need.public_id} ended as '{need.state.value}'")
            return
    if job.ready:
        work.effects.ready.append((job.class_id, job.memory_bytes))


async def cancel(control: plane.Plane, public_id: str, *, actor: str, reason: str = "") -> str:
    """End a job: a waiting one now, one that an agent holds as soon as its process is gone. The id is returned.

    Raises:
        AgentinaError: ``JOB_UNKNOWN``, ``JOB_FINISHED``.

    """
    said = f"by {actor}: {reason}" if reason else f"by {actor}"

    def operation(work: changes.Work) -> str:
        tx, now_ms = work.tx, work.now_ms
        job = jobs.get(tx, public_id)
        if job.state in FINAL:
            raise errors.JOB_FINISHED(job=public_id, state=job.state.value)
        if job.cancel_requested:
            return public_id
        audit.append(tx, actor=actor, action="job.cancel", subject=public_id, detail={"reason": reason}, now_ms=now_ms)
        if job.state is State.QUEUED:
            job.cancel_requested = True
            job.tell(f"canceled {said}", state=State.CANCELED, now_ms=now_ms)
            outcomes.end_job(work, job, _CANCELED, said)
            return public_id
        task = tasks.find(tx, public_id, job.tasks)
        assert task is not None
        task.job.cancel_requested = True
        task.job.tell(f"canceled {said}; the agent is told", task=task.number, now_ms=now_ms)
        if task.stop_reason is None:
            task.stop_reason = Reason.CANCELED_BY_OPERATOR.value
        tasks.save(tx, task)
        stop = wire.StopTask(task_id=task.public_id, reason=Reason.CANCELED_BY_OPERATOR, detail=said)
        work.effects.stops.append(stop)
        work.effects.jobs.add(public_id)
        return public_id

    return await control.write(operation)


async def retry(control: plane.Plane, public_id: str, *, actor: str) -> str:
    """Queue an ended job again with a fresh budget of attempts. The id is returned.

    Raises:
        AgentinaError: ``JOB_UNKNOWN``, ``JOB_NOT_FINISHED``, ``STATE_CONFLICT`` (a job it needs has not succeeded).

    """

    def operation(work: changes.Work) -> str:
        tx, now_ms = work.tx, work.now_ms
        job = jobs.get(tx, public_id)
        if job.state not in FINAL:
            raise errors.JOB_NOT_FINISHED(job=public_id, state=job.state.value)
        left = _unmet(jobs.needs(tx, job.id))
        audit.append(tx, actor=actor, action="job.retry", subject=public_id, now_ms=now_ms)
        job.state, job.detail, job.ready, job.needs_left = State.QUEUED, "", not left, left
        job.reason = Reason.WAITING_FOR_NEEDS if left else Reason.WAITING_FOR_AGENT
        job.runnable_ms, job.ended_ms, job.dead_letter = now_ms, None, False
        job.cancel_requested, job.attempts_before, job.returns = False, job.attempts, 0
        job.tell(f"queued again by {actor}", state=State.QUEUED, now_ms=now_ms)
        jobs.save(tx, job)
        _announce(work, job, [])
        return public_id

    return await control.write(operation)


def _unmet(needed: list[jobs.Job]) -> int:
    """How many of the needed jobs may still succeed; ``STATE_CONFLICT`` when one has ended badly."""
    left = 0
    for need in needed:
        if need.state is State.SUCCEEDED:
            continue
        if need.state in FINAL:
            raise errors.STATE_CONFLICT(
                what=f"Job {need.public_id}, which it needs,", state=f"'{need.state.value}'",
                expected="'succeeded' or queued again; retry that one first",
            )  # fmt: skip
        left += 1
    return left
