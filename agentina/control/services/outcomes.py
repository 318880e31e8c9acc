"""The end of a task and what follows from it for the job and the jobs that need it, within one transaction."""

from __future__ import annotations

from typing import Final

import msgspec

from agentina.control.services import changes, lifecycle
from agentina.control.store import engine, jobs, tasks
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol import units, wire
from agentina.protocol.states import FINAL, REASONS, Reason, State

_FINAL_VALUES: Final = frozenset(state.value for state in FINAL)


class _RetryPart(msgspec.Struct):
    """The only part of a stored specification that the end of a task needs."""

    retry: protocol_jobs.Retry = protocol_jobs.Retry()


_UNMET: Final = lifecycle.Verdict(state=State.CANCELED, reason=Reason.NEED_NOT_MET)
_retry_decoder: Final = msgspec.json.Decoder(_RetryPart)


def task_id(task: engine.Row) -> str:
    """The public id of a task row."""
    return f"{task['job']}.{task['number']}"


def end_task(work: changes.Work, task: engine.Row, outcome: wire.Outcome) -> None:
    """Give a task its final state and its job the next one."""
    assert outcome.state in FINAL, outcome.state
    if not task["counted"]:
        jobs.adjust_attempts(work.tx, task["job_id"], 1)
    _end_task(work, task, outcome, counted=True)
    job = jobs.by_id(work.tx, task["job_id"])
    if job["tasks"] == task["number"] and job["state"] not in _FINAL_VALUES:
        verdict = lifecycle.after_end(_facts(job), outcome.state, outcome.reason)
        _settle(work, job, verdict, task=task, outcome=outcome)


def return_task(work: changes.Work, task: engine.Row, detail: str) -> None:
    """A task provably never started: its job goes back to the queue and no attempt is counted."""
    outcome = wire.Outcome(state=State.CANCELED, reason=Reason.RETURNED_UNSTARTED, detail=detail)
    if task["counted"]:
        jobs.adjust_attempts(work.tx, task["job_id"], -1)
    jobs.count_return(work.tx, task["job_id"])
    _end_task(work, task, outcome, counted=False)
    job = jobs.by_id(work.tx, task["job_id"])
    if job["tasks"] == task["number"] and job["state"] not in _FINAL_VALUES:
        _settle(work, job, lifecycle.after_return(_facts(job)), task=task, outcome=outcome)


def end_job(work: changes.Work, job: engine.Row, verdict: lifecycle.Verdict, detail: str) -> None:
    """Give a job its final state, and free or cancel the jobs that need it, and those that need them."""
    _end_job(work, job, verdict, detail)
    ended = [(job["id"], job["public_id"], verdict.state)]
    while ended:
        number, public_id, state = ended.pop()
        for dependent in jobs.queued_dependents(work.tx, number):
            if state is State.SUCCEEDED:
                _meet_need(work, dependent, public_id)
                continue
            # Ended before anything else is looked at, so a job that is reached twice is canceled once.
            cancel_unmet(work, dependent, f"{public_id} ended as '{state.value}'")
            ended.append((dependent["id"], dependent["public_id"], State.CANCELED))


def cancel_unmet(work: changes.Work, job: engine.Row, unmet: str) -> None:
    """Cancel one waiting job because of a need that cannot be met any more."""
    text = f"canceled: {REASONS[Reason.NEED_NOT_MET]} ({unmet})"
    jobs.add_event(work.tx, job["id"], text, state=State.CANCELED, now_ms=work.now_ms)
    _end_job(work, job, _UNMET, unmet)


def _end_job(work: changes.Work, job: engine.Row, verdict: lifecycle.Verdict, detail: str) -> None:
    jobs.set_ended(
        work.tx, job["id"], state=verdict.state, reason=verdict.reason, detail=detail,
        dead_letter=verdict.dead_letter, now_ms=work.now_ms,
    )  # fmt: skip
    work.effects.jobs.add(job["public_id"])
    work.effects.ended_jobs.append(verdict.state)


def _meet_need(work: changes.Work, job: engine.Row, needed: str) -> None:
    row = jobs.meet_need(work.tx, job["id"])
    if row is not None and row["ready"]:
        text = f"{needed} has succeeded; ready to run"
        jobs.add_event(work.tx, job["id"], text, state=State.QUEUED, now_ms=work.now_ms)
        work.effects.ready.append((row["class_id"], row["memory_bytes"]))
        work.effects.jobs.add(job["public_id"])


def _settle(
    work: changes.Work, job: engine.Row, verdict: lifecycle.Verdict, *, task: engine.Row, outcome: wire.Outcome
) -> None:
    """Carry a verdict out and write the line of the timeline that tells both ends."""
    tx, number, text = work.tx, task["number"], outcome.detail or REASONS[outcome.reason]
    if verdict.state is not State.QUEUED:
        said = "" if verdict.reason is outcome.reason else f"; {REASONS[verdict.reason]}"
        line = f"{verdict.state.value}: {text}{said}"
        jobs.add_event(tx, job["id"], line, state=verdict.state, task=number, now_ms=work.now_ms)
        end_job(work, job, verdict, outcome.detail)
        return
    delay_ms = round(verdict.delay * 1000)
    when = f"again in {units.show_duration(verdict.delay)}" if delay_ms else "queued again"
    is_returned = outcome.reason is Reason.RETURNED_UNSTARTED
    line = f"{'returned' if is_returned else outcome.state.value}: {text}; {when}"
    detail = text if is_returned else f"attempt {number}: {text}"
    jobs.set_queued(
        tx, job["id"], reason=verdict.reason, detail=detail, ready=not delay_ms, runnable_ms=work.now_ms + delay_ms
    )
    jobs.add_event(tx, job["id"], line, state=State.QUEUED, task=number, now_ms=work.now_ms)
    work.effects.jobs.add(job["public_id"])
    if delay_ms:
        work.effects.delayed.append((job["id"], verdict.delay))
    else:
        work.effects.ready.append((job["class_id"], job["memory_bytes"]))


def _end_task(work: changes.Work, task: engine.Row, outcome: wire.Outcome, *, counted: bool) -> None:
    tasks.set_ended(
        work.tx, task["id"], state=outcome.state, reason=outcome.reason, detail=outcome.detail, counted=counted,
        now_ms=work.now_ms,
    )  # fmt: skip
    started = task["started_ms"]
    work.effects.jobs.add(task["job"])
    work.effects.ended_tasks.append(
        changes.EndedTask(
            task_id=task_id(task),
            role=task["role"] or "",
            state=outcome.state,
            priority=task["priority"],
            duration=None if started is None else max(work.now_ms - started, 0) / 1000,
            memory_peak_bytes=outcome.usage.memory_peak_bytes,
        )
    )


def _facts(job: engine.Row) -> lifecycle.Job:
    return lifecycle.Job(
        retry=_retry_decoder.decode(job["spec"]).retry,
        attempts=job["attempts"] - job["attempts_before"],
        returns=job["returns"],
        cancel_requested=bool(job["cancel_requested"]),
    )
