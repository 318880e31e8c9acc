"""What operators do with jobs: submit, cancel, retry."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

import msgspec

from agentina import errors
from agentina.control import ids, plane
from agentina.control.services import changes, claims, lifecycle, outcomes
from agentina.control.store import audit, engine, jobs, registry, tasks
from agentina.protocol import api, wire
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol.states import FINAL, Reason, State

_FINAL_VALUES: Final = frozenset(state.value for state in FINAL)
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


async def submit(control: plane.Plane, submission: Submission) -> api.JobCreated:
    """Store a job durably and wake an agent that can take it; one that waits is given it in the same transaction.

    Raises:
        AgentinaError: ``NOT_FOUND`` (organization), ``JOB_NEED_UNKNOWN``, ``JOB_KEY_REUSED``, ``INPUT_INVALID`` (key).

    """
    control.check_running()
    if submission.key is not None and not (0 < len(submission.key) <= MAX_KEY and submission.key.isprintable()):
        raise errors.INPUT_INVALID(where="Idempotency-Key", problem=f"expected 1 to {MAX_KEY} printable characters")
    attempt = _Attempt(submission, msgspec.json.encode(submission.spec).decode(), control)

    def committed(_: object) -> None:
        if attempt.job_class is not None and attempt.job_class["id"] not in control.fleet.classes:
            control.fleet.add_class(plane.job_class(attempt.job_class))
        if attempt.reserved is not None and attempt.claimed is not None:
            claims.hold(control, attempt.reserved.agent, [attempt.claimed])

    try:
        return await control.write(attempt.run, committed=committed)
    finally:
        if attempt.reserved is not None:
            attempt.reserved.agent.wake()


@dataclasses.dataclass(slots=True)
class _Attempt:
    """One submission, stored and, when an agent waits for such a job, given to it in the same transaction."""

    submission: Submission
    #: The specification as stored.
    text: str
    control: plane.Plane
    job_class: engine.Row | None = None
    #: Out of the queue of waiting agents before the commit, but whatever becomes of that, it is woken and looks again.
    reserved: claims.Reserved | None = None
    claimed: claims.Claimed | None = None

    def run(self, work: changes.Work) -> api.JobCreated:
        """The operation."""
        tx, submission = work.tx, self.submission
        organization = registry.organization(tx, submission.organization)
        if organization is None:
            raise errors.NOT_FOUND(what="organization", name=submission.organization)
        sha256 = None
        if submission.key is not None:
            sha256 = hashlib.sha256(self.text.encode()).hexdigest()
            known = jobs.by_submission(tx, organization["id"], submission.key)
            if known is not None and known["submission_sha256"] != sha256:
                raise errors.JOB_KEY_REUSED(job=known["public_id"])
            if known is not None:
                return api.JobCreated(id=known["public_id"], created=False)
        needed = _needed(tx, organization["id"], submission.spec)
        row = self._store(work, organization["id"], needed, sha256)
        if not needed:
            self._offer(work, row)
        if self.claimed is None:
            _announce(work, row, needed)
        return api.JobCreated(id=row["public_id"])

    def _store(self, work: changes.Work, organization: int, needed: list[engine.Row], sha256: str | None) -> engine.Row:
        tx, now_ms, spec = work.tx, work.now_ms, self.submission.spec
        self.job_class = jobs.ensure_class(
            tx, organization, role=spec.role or "", labels=msgspec.json.encode(spec.labels, order="sorted").decode(),
            runner=spec.runner,
        )  # fmt: skip
        new = jobs.NewJob(
            public_id=ids.new_job_id(now_ms), organization_id=organization, class_id=self.job_class["id"],
            name=spec.name, role=spec.role, spec=self.text, priority=spec.priority, memory_bytes=spec.memory_bytes,
            submission_key=self.submission.key, submission_sha256=sha256,
        )  # fmt: skip
        left = sum(row["state"] != State.SUCCEEDED.value for row in needed)
        row = jobs.insert(tx, new, needs_left=left, now_ms=now_ms)
        jobs.add_event(tx, row["id"], "submitted", state=State.QUEUED, now_ms=now_ms)
        for need in needed:
            jobs.add_need(tx, row["id"], need["id"])
        return row

    def _offer(self, work: changes.Work, row: engine.Row) -> None:
        self.reserved = claims.reserve(self.control, row["class_id"], row["memory_bytes"])
        if self.reserved is not None:
            self.claimed = claims.give(work, self.reserved, row)


def _needed(tx: engine.Transaction, organization: int, spec: protocol_jobs.JobSpec) -> list[engine.Row]:
    rows = []
    for public_id in dict.fromkeys(spec.needs):
        row = jobs.by_public_id(tx, public_id)
        if row is None or row["organization_id"] != organization:
            raise errors.JOB_NEED_UNKNOWN(job=public_id[:40])
        rows.append(row)
    return rows


def _announce(work: changes.Work, row: engine.Row, needed: list[engine.Row]) -> None:
    """Announce a queued job, or cancel it at once when something it needs has already ended badly."""
    work.effects.jobs.add(row["public_id"])
    for need in needed:
        if need["state"] in _FINAL_VALUES and need["state"] != State.SUCCEEDED.value:
            outcomes.cancel_unmet(work, row, f"{need['public_id']} ended as '{need['state']}'")
            return
    if row["ready"]:
        work.effects.ready.append((row["class_id"], row["memory_bytes"]))


async def cancel(control: plane.Plane, public_id: str, *, actor: str, reason: str = "") -> str:
    """End a job: a waiting one now, one that an agent holds as soon as its process is gone. The id is returned.

    Raises:
        AgentinaError: ``JOB_UNKNOWN``, ``JOB_FINISHED``.

    """
    said = f"by {actor}: {reason}" if reason else f"by {actor}"

    def operation(work: changes.Work) -> str:
        tx, now_ms = work.tx, work.now_ms
        job = _job(tx, public_id)
        if job["state"] in _FINAL_VALUES:
            raise errors.JOB_FINISHED(job=public_id, state=job["state"])
        if job["cancel_requested"]:
            return public_id
        audit.append(tx, actor=actor, action="job.cancel", subject=public_id, detail={"reason": reason}, now_ms=now_ms)
        jobs.set_cancel_requested(tx, job["id"])
        if job["state"] == State.QUEUED.value:
            jobs.add_event(tx, job["id"], f"canceled {said}", state=State.CANCELED, now_ms=now_ms)
            outcomes.end_job(work, job, _CANCELED, said)
            return public_id
        task = tasks.find(tx, public_id, job["tasks"])
        assert task is not None
        tasks.set_stop(tx, task["id"], Reason.CANCELED_BY_OPERATOR)
        jobs.add_event(tx, job["id"], f"canceled {said}; the agent is told", task=job["tasks"], now_ms=now_ms)
        stop = wire.StopTask(task_id=outcomes.task_id(task), reason=Reason.CANCELED_BY_OPERATOR, detail=said)
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
        job = _job(tx, public_id)
        if job["state"] not in _FINAL_VALUES:
            raise errors.JOB_NOT_FINISHED(job=public_id, state=job["state"])
        needed = jobs.needs(tx, job["id"])
        left = 0
        for need in needed:
            if need["state"] == State.SUCCEEDED.value:
                continue
            if need["state"] in _FINAL_VALUES:
                raise errors.STATE_CONFLICT(
                    what=f"Job {need['public_id']}, which it needs,", state=f"'{need['state']}'",
                    expected="'succeeded' or queued again; retry that one first",
                )  # fmt: skip
            left += 1
        audit.append(tx, actor=actor, action="job.retry", subject=public_id, now_ms=now_ms)
        jobs.reopen(tx, job["id"], needs_left=left, now_ms=now_ms)
        jobs.add_event(tx, job["id"], f"queued again by {actor}", state=State.QUEUED, now_ms=now_ms)
        _announce(work, jobs.by_id(tx, job["id"]), [])
        return public_id

    return await control.write(operation)


def _job(tx: engine.Transaction, public_id: str) -> engine.Row:
    job = jobs.by_public_id(tx, public_id)
    if job is None:
        raise errors.JOB_UNKNOWN(job=public_id[:40])
    return job
