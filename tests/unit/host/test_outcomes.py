from __future__ import annotations

from typing import Any

import pytest

from agentina import errors
from agentina.executors.contract import Result, StopReason
from agentina.host import outcomes
from agentina.protocol import jobs, wire
from agentina.protocol.states import FINAL, Reason, State

JOB = jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}, "limits": {"timeout": 90, "output": "1MiB"}})
ARTIFACT = wire.ArtifactInfo(name="a", size=1, sha256="0" * 64)


def outcome(**fields: Any) -> wire.Outcome:
    return outcomes.from_result(Result(task_id="t", **fields), JOB)


@pytest.mark.parametrize(
    ("fields", "state", "reason", "words"),
    [
        ({"exit_code": 0}, State.SUCCEEDED, Reason.EXIT_ZERO, "exit code 0"),
        ({"exit_code": 3}, State.FAILED, Reason.EXIT_NONZERO, "exit code 3"),
        ({"exit_code": 1, "phase": "verify"}, State.FAILED, Reason.VERIFY_FAILED, "verify"),
        ({"signal": "SIGSEGV"}, State.FAILED, Reason.KILLED_BY_SIGNAL, "SIGSEGV"),
        ({}, State.FAILED, Reason.KILLED_BY_SIGNAL, "signal"),
        ({"phase": "start", "start_error": "x"}, State.FAILED, Reason.START_FAILED, "Its process could not"),
        ({"phase": "start", "start_error": "no such file"}, State.FAILED, Reason.START_FAILED, "(no such file)"),
        ({"signal": "SIGKILL", "oom": "full"}, State.OUT_OF_MEMORY, Reason.MEMORY_LIMIT, "2 GiB"),
        ({"exit_code": 0, "oom": "partial"}, State.SUCCEEDED, Reason.EXIT_ZERO, ""),
        ({"stopped": StopReason.TIME_LIMIT}, State.TIMED_OUT, Reason.TIME_LIMIT, "1m 30s"),
        ({"stopped": StopReason.OUTPUT_LIMIT}, State.FAILED, Reason.OUTPUT_LIMIT, "1 MiB"),
        ({"stopped": StopReason.LEASE_EXPIRED}, State.LOST, Reason.LEASE_EXPIRED, "lease"),
        ({"stopped": StopReason.CANCELED, "exit_code": 0}, State.CANCELED, Reason.CANCELED_BY_OPERATOR, "canceled"),
    ],
)
def test_each_result_has_its_outcome(fields: dict[str, Any], state: State, reason: Reason, words: str) -> None:
    made = outcome(**fields)
    assert (made.state, made.reason) == (state, reason)
    assert words in made.detail


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_stop_reason_ends_in_a_final_state_that_is_no_success(reason: StopReason) -> None:
    made = outcome(stopped=reason, signal="SIGKILL")
    assert made.state in FINAL
    assert made.state is not State.SUCCEEDED


def test_failed_collection_takes_a_success_away_but_explains_no_failure_away() -> None:
    trouble = errors.DISK_FULL(path="/x")
    spoiled = outcomes.with_collection(outcome(exit_code=0), artifacts=[], commit="c", trouble=trouble)
    assert (spoiled.state, spoiled.error_code, spoiled.exit_code) == (State.FAILED, "DISK_FULL", 0)
    failed = outcomes.with_collection(outcome(exit_code=3), artifacts=[ARTIFACT], commit="c", trouble=trouble)
    assert (failed.reason, failed.artifacts) == (Reason.EXIT_NONZERO, [ARTIFACT])
    assert "No room" in failed.detail


def test_error_outcome_is_bounded_and_carries_the_code() -> None:
    error = errors.WORKSPACE_FAILED(repository="r", ref="x", problem="p" * 10_000)
    made = outcomes.from_error(error, State.FAILED, Reason.WORKSPACE_FAILED)
    assert made.error_code == "WORKSPACE_FAILED"
    assert len(made.detail) <= 4096
    assert all(len(str(value)) <= 500 for value in made.error_context.values())
