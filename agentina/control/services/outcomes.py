"""The end of a task and what follows from it for the job and the jobs that need it, within one transaction.

What is given is written back here: whoever goes on with it reads it again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentina.control.services import changes, lifecycle, pathclaims, trail
from agentina.control.store import jobs, tasks
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol import units, wire
from agentina.protocol.states import FINAL, REASONS, Reason, State

_UNMET: Final = lifecycle.Verdict(state=State.CANCELED, reason=Reason.NEED_NOT_MET)


def end_task(work: changes.Work, task: tasks.Task, outcome: wire.Outcome) -> None:
    """Give a task its final state and its job the next one."""
    assert outcome.state in FINAL, outcome.state
    if not task.counted:
        task.job.attempts += 1
    _end_task(work, task, outcome, counted=True)
    trail.touched(work, task, outcome)
    if outcome.changed:
        pathclaims.compare(work, task, outcome.changed)
    if outcome.state is State.CHECKPOINTED:
        # Nobody failed: being moved uses no attempt up.
        task.job.attempts_before += 1
    if _decides(task):
        # A success is one whatever the policy says: nearly all jobs end so, and their specification stays unread.
        retry = protocol_jobs.Retry() if outcome.state is State.SUCCEEDED else _retry(work, task.job, outcome.reason)
        verdict = lifecycle.after_end(_facts(task.job, retry), outcome.state, outcome.reason)
        _settle(work, task, verdict, outcome)
    else:
        tasks.save(work.tx, task)


def return_task(work: changes.Work, task: tasks.Task, detail: str) -> None:
    """A task provably never started: its job goes back to the queue and no attempt is counted."""
    outcome = wire.Outcome(state=State.CANCELED, reason=Reason.RETURNED_UNSTARTED, detail=detail)
    if task.counted:
        task.job.attempts -= 1
    task.job.returns += 1
    _end_task(work, task, outcome, counted=False)
    if _decides(task):
        _settle(work, task, lifecycle.after_return(_facts(task.job, _retry(work, task.job, outcome.reason))), outcome)
    else:
        tasks.save(work.tx, task)


def end_job(work: changes.Work, job: jobs.Job, verdict: lifecycle.Verdict, detail: str) -> None:
    """Give a job that no agent holds its final state."""
    _end_job(work, job, verdict, detail)
    jobs.save(work.tx, job)
    _follow(work, job)


def cancel_unmet(work: changes.Work, job: jobs.Job, unmet: str) -> None:
    """Cancel one waiting job because of a need that cannot be met any more."""
    text = f"canceled: {REASONS[Reason.NEED_NOT_MET]} ({unmet})"
    job.tell(text, state=State.CANCELED, now_ms=work.now_ms)
    _end_job(work, job, _UNMET, unmet)
    jobs.save(work.tx, job)


def _follow(work: changes.Work, job: jobs.Job) -> None:
    """Free or cancel the jobs that need one that has ended, and those that need them."""
    ended = [job]
    while ended:
        needed = ended.pop()
        for dependent in jobs.queued_dependents(work.tx, needed.id):
            if needed.state is State.SUCCEEDED:
                _meet_need(work, dependent, needed.public_id)
                continue
            # Written before anything else is read, so a job that is reached twice is canceled once.
            cancel_unmet(work, dependent, f"{needed.public_id} ended as '{needed.state.value}'")
            ended.append(dependent)


def _end_job(work: changes.Work, job: jobs.Job, verdict: lifecycle.Verdict, detail: str) -> None:
    job.state, job.reason, job.detail = verdict.state, verdict.reason, detail
    job.ready, job.dead_letter, job.ended_ms = False, verdict.dead_letter, work.now_ms
    pathclaims.release(work, job)
    work.effects.jobs.add(job.public_id)
    work.effects.ended_jobs.append(verdict.state)


def _meet_need(work: changes.Work, job: jobs.Job, needed: str) -> None:
    job.needs_left = jobs.needs_left(work.tx, job.id)
    if not job.needs_left:
        job.ready, job.reason = True, Reason.WAITING_FOR_AGENT
        job.tell(f"{needed} has succeeded; ready to run", state=State.QUEUED, now_ms=work.now_ms)
        work.effects.ready.append((job.class_id, job.memory_bytes))
        work.effects.jobs.add(job.public_id)
    jobs.save(work.tx, job)


def _decides(task: tasks.Task) -> bool:
    """Whether the job's life goes by the end of this task."""
    return task.is_newest and task.job.state not in FINAL


def _settle(work: changes.Work, task: tasks.Task, verdict: lifecycle.Verdict, outcome: wire.Outcome) -> None:
    """Carry a verdict out and write the line of the timeline that tells both ends."""
    job, text = task.job, outcome.detail or REASONS[outcome.reason]
    if verdict.state is not State.QUEUED:
        said = "" if verdict.reason is outcome.reason else f"; {REASONS[verdict.reason]}"
        line = f"{verdict.state.value}: {text}{said}"
        job.tell(line, state=verdict.state, task=task.number, now_ms=work.now_ms)
        _end_job(work, job, verdict, outcome.detail)
        tasks.save(work.tx, task)
        _follow(work, job)
        return
    pathclaims.release(work, job)
    delay_ms = round(verdict.delay * 1000)
    when = f"again in {units.show_duration(verdict.delay)}" if delay_ms else "queued again"
    is_returned = outcome.reason is Reason.RETURNED_UNSTARTED
    line = f"{'returned' if is_returned else outcome.state.value}: {text.rstrip('.')}; {when}"
    job.tell(line, state=State.QUEUED, task=task.number, now_ms=work.now_ms)
    job.state, job.reason = State.QUEUED, verdict.reason
    job.detail = text if is_returned else f"attempt {task.number}: {text}"
    job.ready, job.runnable_ms = not delay_ms, work.now_ms + delay_ms
    tasks.save(work.tx, task)
    work.effects.jobs.add(job.public_id)
    if delay_ms:
        work.effects.delayed.append((job.id, verdict.delay))
    else:
        work.effects.ready.append((job.class_id, job.memory_bytes))


def _end_task(work: changes.Work, task: tasks.Task, outcome: wire.Outcome, *, counted: bool) -> None:
    task.state, task.reason, task.detail = outcome.state, outcome.reason, outcome.detail
    task.counted, task.ended_ms = counted, work.now_ms
    _correct_start(task, outcome.usage.wall_seconds, now_ms=work.now_ms)
    job = task.job
    work.effects.jobs.add(job.public_id)
    work.effects.ended_tasks.append(
        changes.EndedTask(
            task_id=task.public_id,
            agent=task.agent_id,
            role=job.role or "",
            state=outcome.state,
            priority=job.priority,
            duration=None if task.started_ms is None else max(work.now_ms - task.started_ms, 0) / 1000,
            usage=outcome.usage,
            run=outcome.agent,
        )
    )


def _correct_start(task: tasks.Task, wall_seconds: float | None, *, now_ms: int) -> None:
    """Let a task that ends have begun as long ago as its host measured, but not before it could.

    That it began was heard a moment later, or with its end when the control plane was away meanwhile.
    """
    heard, job = task.started_ms, task.job
    if heard is None or wall_seconds is None:
        return
    began = max(job.runnable_ms, now_ms - 1000 * wall_seconds)
    task.started_ms = min(heard, int(began))
    if job.started_ms == heard:
        job.started_ms = task.started_ms


def _retry(work: changes.Work, job: jobs.Job, reason: Reason) -> protocol_jobs.Retry:
    """The job's policy; a run that was stopped for its health may have one of its own."""
    part = lifecycle.read_policy(jobs.spec(work.tx, job.id))
    if reason is Reason.UNHEALTHY and part.health is not None and part.health.act == "retry":
        return msgspec.structs.replace(part.retry, on=[*part.retry.on, "failed"])
    return part.retry


def _facts(job: jobs.Job, retry: protocol_jobs.Retry) -> lifecycle.Job:
    return lifecycle.Job(
        retry=retry, attempts=job.attempts - job.attempts_before, returns=job.returns,
        cancel_requested=job.cancel_requested,
    )  # fmt: skip
