"""What becomes of a job when one of its tasks ends. Pure: (job, how the task ended) in, verdict out.

A job ends in exactly one final state. Until then every end of a task leads to one of: that final state, or the queue
again, at once or after a backoff.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec

from agentina.protocol import jobs
from agentina.protocol.states import FINAL, Reason, State

#: Assignments in a row that may come back unstarted before the next one is delayed.
FREE_RETURNS: Final = 3
#: Longest delay after assignments that came back unstarted, in seconds.
MAX_RETURN_DELAY: Final = 60.0


class Policy(msgspec.Struct):
    """The only part of a stored specification that the end of a task needs."""

    retry: jobs.Retry = jobs.Retry()
    health: jobs.Health | None = None


_policies: Final = msgspec.json.Decoder(Policy)


def read_policy(spec: str) -> Policy:
    """The policy in a specification as it is stored."""
    return _policies.decode(spec)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the decision depends on."""

    retry: jobs.Retry
    #: Started attempts since submission or the last retry by hand, the one that ended included.
    attempts: int
    #: Assignments in a row that came back unstarted, this one included.
    returns: int = 0
    cancel_requested: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The job's next state. ``delay`` (seconds) matters for ``queued`` only."""

    state: State
    reason: Reason
    delay: float = 0.0
    #: Ended without success, not by anybody's wish: kept for a person to look at.
    dead_letter: bool = False


_CANCELED: Final = Verdict(state=State.CANCELED, reason=Reason.CANCELED_BY_OPERATOR)


def after_end(job: Job, state: State, reason: Reason) -> Verdict:
    """The job's next state after its task ended as ``state``."""
    assert state in FINAL, state
    if state is State.SUCCEEDED:
        # Also when a cancellation was on its way: the work is done, and saying otherwise would be untrue.
        return Verdict(state=state, reason=reason)
    if job.cancel_requested:
        return _CANCELED
    if state is State.CANCELED:
        return Verdict(state=state, reason=reason)
    if state is State.CHECKPOINTED:
        return Verdict(state=State.QUEUED, reason=Reason.WAITING_FOR_AGENT)
    if state.value in job.retry.on and job.attempts < job.retry.max_attempts:
        return Verdict(state=State.QUEUED, reason=Reason.RETRY_BACKOFF, delay=backoff(job.retry, job.attempts))
    return Verdict(state=state, reason=reason, dead_letter=True)


def after_return(job: Job) -> Verdict:
    """The job's next state after a task came back provably unstarted. That is no attempt."""
    if job.cancel_requested:
        return _CANCELED
    excess = job.returns - FREE_RETURNS
    # Hosts that take and give back in a circle must not keep everybody busy.
    delay = min(2.0 ** min(excess, 10), MAX_RETURN_DELAY) if excess > 0 else 0.0
    return Verdict(state=State.QUEUED, reason=Reason.RETURNED_UNSTARTED, delay=delay)


def longest_delay(retry: jobs.Retry) -> float:
    """Seconds that any verdict delays a job with this policy at most."""
    return max(retry.max_backoff, MAX_RETURN_DELAY)


def backoff(retry: jobs.Retry, attempts: int) -> float:
    """Seconds before the attempt after ``attempts`` started ones: doubling up to the limit."""
    return min(retry.backoff * 2.0 ** min(max(attempts - 1, 0), 60), retry.max_backoff)
