from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentina.control.services import lifecycle
from agentina.protocol import jobs
from agentina.protocol.states import FINAL, Reason, State

RETRYABLE = ["failed", "timed-out", "out-of-memory", "lost", "refused"]
retries = st.builds(
    jobs.Retry,
    max_attempts=st.integers(1, 100),
    on=st.lists(st.sampled_from(RETRYABLE), unique=True),
    backoff=st.floats(0, 31_536_000),
    max_backoff=st.floats(0, 31_536_000),
)
endings = st.sampled_from(sorted(FINAL, key=lambda state: state.value))


def job(retry: jobs.Retry | None = None, **changes: Any) -> lifecycle.Job:
    values: dict[str, Any] = {"retry": retry or jobs.Retry(), "attempts": 1, **changes}
    return lifecycle.Job(**values)


@given(retry=retries, attempts=st.integers(1, 200), cancel=st.booleans(), state=endings)
def test_every_end_leads_to_the_queue_or_to_one_final_state(
    *, retry: jobs.Retry, attempts: int, cancel: bool, state: State
) -> None:
    before = lifecycle.Job(retry=retry, attempts=attempts, cancel_requested=cancel)
    verdict = lifecycle.after_end(before, state, Reason.LEASE_EXPIRED)

    assert verdict.state in FINAL | {State.QUEUED}
    assert verdict.state is not State.CHECKPOINTED
    assert 0 <= verdict.delay <= retry.max_backoff
    if state is State.SUCCEEDED:
        assert verdict.state is State.SUCCEEDED
    if cancel:
        assert verdict.state in {State.SUCCEEDED, State.CANCELED}
    if verdict.state is State.QUEUED and state is not State.CHECKPOINTED:
        assert state.value in retry.on
        assert attempts < retry.max_attempts
    assert verdict.dead_letter == (verdict.state in FINAL - {State.SUCCEEDED, State.CANCELED})


@given(retries, st.lists(st.sampled_from(["return", *RETRYABLE]), max_size=150))
def test_a_job_that_only_fails_ends_within_its_attempts(retry: jobs.Retry, ends: list[str]) -> None:
    attempts = returns = 0
    for end in ends:
        if end == "return":
            returns += 1
            now = job(retry, attempts=attempts, returns=returns)
            assert lifecycle.after_return(now).state is State.QUEUED
            continue
        attempts, returns = attempts + 1, 0
        verdict = lifecycle.after_end(job(retry, attempts=attempts), State(end), Reason.EXIT_NONZERO)
        if verdict.state is not State.QUEUED:
            return
    assert attempts < retry.max_attempts


def test_only_what_the_infrastructure_lost_is_repeated_by_default() -> None:
    failed = lifecycle.after_end(job(), State.FAILED, Reason.EXIT_NONZERO)
    lost = lifecycle.after_end(job(), State.LOST, Reason.LEASE_EXPIRED)
    assert (failed.state, failed.reason, failed.dead_letter) == (State.FAILED, Reason.EXIT_NONZERO, True)
    assert (lost.state, lost.reason, lost.delay) == (State.QUEUED, Reason.RETRY_BACKOFF, 10.0)


def test_backoff_doubles_up_to_its_limit() -> None:
    retry = jobs.Retry(backoff=10, max_backoff=60)
    assert [lifecycle.backoff(retry, attempts) for attempts in (1, 2, 3, 4, 10_000)] == [10, 20, 40, 60, 60]


def test_the_first_returns_are_free_and_later_ones_slow_down() -> None:
    delays = [lifecycle.after_return(job(returns=count)).delay for count in (1, 3, 4, 5, 6, 40)]
    assert delays == [0, 0, 2, 4, 8, 60]


def test_a_returned_job_that_was_canceled_is_not_queued_again() -> None:
    verdict = lifecycle.after_return(job(cancel_requested=True))
    assert (verdict.state, verdict.reason) == (State.CANCELED, Reason.CANCELED_BY_OPERATOR)


def test_a_checkpoint_goes_on_elsewhere_without_delay() -> None:
    verdict = lifecycle.after_end(job(), State.CHECKPOINTED, Reason.CHECKPOINT)
    assert (verdict.state, verdict.delay) == (State.QUEUED, 0)
