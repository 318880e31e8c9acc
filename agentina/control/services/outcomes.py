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


def end_task(
    tx: engine.Transaction, effects: changes.Changes, task: engine.Row, outcome: wire.Outcome, *, now_ms: int
) -> None:
    """Give a task its final state and its job the next one."""
    assert outcome.state in FINAL, outcome.state
    tasks.set_ended(tx, task["id"], outcome.state, outcome.reason, outcome.detail, counted=True, now_ms=now_ms)
    if not task["counted"]:
        jobs.adjust_attempts(tx, task["job_id"], 1)
    _record_end(effects, task, outcome, now_ms)
    job = jobs.by_id(tx, task["job_id"])
    if job["tasks"] == task["number"] and job["state"] not in _FINAL_VALUES:
        verdict = lifecycle.after_end(_facts(job), outcome.state, outcome.reason)
        _settle(tx, effects, job, verdict, task=task, outcome=outcome, now_ms=now_ms)


def return_task(
    tx: engine.Transaction, effects: changes.Changes, task: engine.Row, detail: str, *, now_ms: int
) -> None:
    """A task provably never started: its job goes back to the queue and no attempt is counted."""
    outcome = wire.Outcome(state=State.CANCELED, reason=Reason.RETURNED_UNSTARTED, detail=detail)
    tasks.set_ended(tx, task["id"], outcome.state, outcome.reason, detail, counted=False, now_ms=now_ms)
    if task["counted"]:
        jobs.adjust_attempts(tx, task["job_id"], -1)
    jobs.count_return(tx, task["job_id"])
    effects.ended_tasks.append(_ended(task, outcome, duration=None))
    job = jobs.by_id(tx, task["job_id"])
    if job["tasks"] == task["number"] and job["state"] not in _FINAL_VALUES:
        _settle(tx, effects, job, lifecycle.after_return(_facts(job)), task=task, outcome=outcome, now_ms=now_ms)


def end_job(
    tx: engine.Transaction, effects: changes.Changes, job: engine.Row, verdict: lifecycle.Verdict, detail: str,
    *, now_ms: int,
) -> None:  # fmt: skip
    """Give a job its final state, and free or cancel the jobs that need it, and those that need them."""
    _end(tx, effects, job, verdict, detail, now_ms=now_ms)
    ended = [(job["id"], job["public_id"], verdict.state)]
    while ended:
        number, public_id, state = ended.pop()
        for dependent in jobs.queued_dependents(tx, number):
            if state is State.SUCCEEDED:
                _meet_need(tx, effects, dependent, public_id, now_ms)
                continue
            unmet = f"{public_id} ended as '{state.value}'"
            text = f"canceled: {REASONS[Reason.NEED_NOT_MET]} ({unmet})"
            jobs.add_event(tx, dependent["id"], text, state=State.CANCELED, now_ms=now_ms)
            # Ended before anything else is looked at, so a job that is reached twice is canceled once.
            _end(tx, effects, dependent, _UNMET, unmet, now_ms=now_ms)
            ended.append((dependent["id"], dependent["public_id"], State.CANCELED))


def _end(
    tx: engine.Transaction, effects: changes.Changes, job: engine.Row, verdict: lifecycle.Verdict, detail: str,
    *, now_ms: int,
) -> None:  # fmt: skip
    jobs.set_ended(tx, job["id"], verdict.state, verdict.reason, detail, dead_letter=verdict.dead_letter, now_ms=now_ms)
    effects.jobs.add(job["public_id"])
    effects.ended_jobs.append(verdict.state)


def _meet_need(tx: engine.Transaction, effects: changes.Changes, job: engine.Row, needed: str, now_ms: int) -> None:
    row = jobs.meet_need(tx, job["id"])
    if row is not None and row["ready"]:
        jobs.add_event(tx, job["id"], f"{needed} has succeeded; ready to run", state=State.QUEUED, now_ms=now_ms)
        effects.ready.append((row["class_id"], row["memory_bytes"]))
        effects.jobs.add(job["public_id"])


def _settle(
    tx: engine.Transaction, effects: changes.Changes, job: engine.Row, verdict: lifecycle.Verdict,
    *, task: engine.Row, outcome: wire.Outcome, now_ms: int,
) -> None:  # fmt: skip
    """Carry a verdict out and write the line of the timeline that tells both ends."""
    text = outcome.detail or REASONS[outcome.reason]
    if verdict.state is not State.QUEUED:
        said = "" if verdict.reason is outcome.reason else f"; {REASONS[verdict.reason]}"
        jobs.add_event(tx, job["id"], f"{verdict.state.value}: {text}{said}", state=verdict.state,
                       task=task["number"], now_ms=now_ms)  # fmt: skip
        end_job(tx, effects, job, verdict, outcome.detail, now_ms=now_ms)
        return
    delay_ms = round(verdict.delay * 1000)
    when = f"again in {units.show_duration(verdict.delay)}" if delay_ms else "queued again"
    detail = f"attempt {task['number']}: {text}" if outcome.reason is not Reason.RETURNED_UNSTARTED else text
    jobs.set_queued(tx, job["id"], verdict.reason, detail, ready=not delay_ms, runnable_ms=now_ms + delay_ms)
    jobs.add_event(tx, job["id"], f"{outcome.state.value}: {text}; {when}", state=State.QUEUED, task=task["number"],
                   now_ms=now_ms)  # fmt: skip
    effects.jobs.add(job["public_id"])
    if delay_ms:
        effects.delayed.append((job["id"], verdict.delay))
    else:
        effects.ready.append((job["class_id"], job["memory_bytes"]))


def _facts(job: engine.Row) -> lifecycle.Job:
    return lifecycle.Job(
        retry=_retry_decoder.decode(job["spec"]).retry,
        attempts=job["attempts"] - job["attempts_before"],
        returns=job["returns"],
        cancel_requested=bool(job["cancel_requested"]),
    )


def _record_end(effects: changes.Changes, task: engine.Row, outcome: wire.Outcome, now_ms: int) -> None:
    started = task["started_ms"]
    duration = None if started is None else max(now_ms - started, 0) / 1000
    effects.ended_tasks.append(_ended(task, outcome, duration=duration))
    effects.jobs.add(task["job"])


def _ended(task: engine.Row, outcome: wire.Outcome, *, duration: float | None) -> changes.EndedTask:
    return changes.EndedTask(
        task_id=task_id(task), role=task["role"] or "", state=outcome.state, priority=task["priority"],
        duration=duration, memory_peak_bytes=outcome.usage.memory_peak_bytes,
    )  # fmt: skip
