from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.executors.contract import Result, StopReason
from agentina.host.work import outcomes
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


OK = wire.AgentRun(finished=True, answer="done")
SAID_NO = wire.AgentRun(finished=True, failed=True, error_kind="api-402", error="no budget")
CUT_OFF = wire.AgentRun(error="Reconnecting... 1/5")
FINISHED = StopReason.FINISHED


@pytest.mark.parametrize(
    ("fields", "agent", "ended", "words"),
    [
        ({"exit_code": 0}, OK, (State.SUCCEEDED, Reason.AGENT_FINISHED), "own account"),
        ({"exit_code": 0, "phase": "verify"}, OK, (State.SUCCEEDED, Reason.AGENT_FINISHED), ""),
        ({"exit_code": 0}, SAID_NO, (State.FAILED, Reason.AGENT_FAILED), "It said: api-402: no budget"),
        ({"exit_code": 1}, SAID_NO, (State.FAILED, Reason.AGENT_FAILED), "no budget"),
        ({"exit_code": 146}, SAID_NO, (State.FAILED, Reason.AGENT_FAILED), "no budget"),
        ({"exit_code": 0}, CUT_OFF, (State.FAILED, Reason.AGENT_UNFINISHED), "Reconnecting"),
        ({"exit_code": 1}, CUT_OFF, (State.FAILED, Reason.EXIT_NONZERO), "exit code 1). It said: Reconnecting"),
        ({"exit_code": 2}, OK, (State.FAILED, Reason.EXIT_NONZERO), "exit code 2"),
        ({"signal": "SIGKILL"}, CUT_OFF, (State.FAILED, Reason.KILLED_BY_SIGNAL), "SIGKILL"),
        ({"signal": "SIGKILL"}, OK, (State.FAILED, Reason.KILLED_BY_SIGNAL), "SIGKILL"),
        ({"exit_code": 3, "phase": "verify"}, OK, (State.FAILED, Reason.VERIFY_FAILED), "exit code 3"),
        # Ended by us: what it prints then is no evidence.
        ({"exit_code": 0, "stopped": StopReason.CANCELED}, OK, (State.CANCELED, Reason.CANCELED_BY_OPERATOR), ""),
        ({"exit_code": 0, "stopped": StopReason.TIME_LIMIT}, OK, (State.TIMED_OUT, Reason.TIME_LIMIT), ""),
        ({"exit_code": 0, "stopped": StopReason.LEASE_EXPIRED}, OK, (State.LOST, Reason.LEASE_EXPIRED), ""),
        ({"signal": "SIGTERM", "stopped": FINISHED}, OK, (State.SUCCEEDED, Reason.AGENT_FINISHED), ""),
        ({"exit_code": 143, "stopped": FINISHED}, OK, (State.SUCCEEDED, Reason.AGENT_FINISHED), ""),
        ({"signal": "SIGTERM", "stopped": FINISHED}, SAID_NO, (State.FAILED, Reason.AGENT_FAILED), "no budget"),
        ({"exit_code": 0, "stopped": FINISHED}, CUT_OFF, (State.FAILED, Reason.AGENT_UNFINISHED), ""),
        ({"exit_code": 0, "oom": "partial"}, OK, (State.SUCCEEDED, Reason.AGENT_FINISHED), ""),
        ({"signal": "SIGKILL", "oom": "full"}, OK, (State.OUT_OF_MEMORY, Reason.MEMORY_LIMIT), "2 GiB"),
        ({"phase": "start", "start_error": "x"}, wire.AgentRun(), (State.FAILED, Reason.START_FAILED), "(x)"),
    ],
)
def test_success_of_an_agent_is_ours_to_say(
    fields: dict[str, Any], agent: wire.AgentRun, ended: tuple[State, Reason], words: str
) -> None:
    made = outcomes.from_result(Result(task_id="t", **fields), JOB, agent)
    assert (made.state, made.reason) == ended
    assert words in made.detail
    assert made.agent == agent


def test_a_verification_that_could_not_run_is_none_that_passed() -> None:
    job = jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}, "verify": {"argv": ["true"]}})
    made = outcomes.from_result(Result(task_id="t", signal="SIGTERM", stopped=FINISHED), job, OK)
    assert (made.state, made.reason) == (State.FAILED, Reason.VERIFY_FAILED)
    made = outcomes.from_result(Result(task_id="t", exit_code=0, phase="verify"), job, OK)
    assert made.state is State.SUCCEEDED


def test_denied_tools_are_told_of_a_success() -> None:
    made = outcomes.from_result(Result(task_id="t", exit_code=0), JOB, wire.AgentRun(finished=True, denials=2))
    assert made.detail.endswith("2 uses of tools denied to it.")


@given(
    st.builds(wire.AgentRun, finished=st.booleans(), failed=st.booleans(), error=st.text(max_size=4096)),
    st.sampled_from(StopReason), st.none() | st.integers(0, 255), st.sampled_from(["command", "verify"]),
)  # fmt: skip
def test_no_success_without_an_end_that_is_one(
    agent: wire.AgentRun, stopped: StopReason, code: int, phase: Any
) -> None:
    result = Result(
        task_id="t", exit_code=code, signal="SIGTERM" if code is None else None, stopped=stopped, phase=phase
    )
    made = outcomes.from_result(result, JOB, agent)
    assert len(made.detail) <= wire.MAX_DETAIL
    if made.state is State.SUCCEEDED:
        assert agent.finished
        assert not agent.failed
        assert stopped in {StopReason.NONE, FINISHED}
        assert code == 0 or stopped is FINISHED


def test_failed_collection_takes_a_success_away_but_explains_no_failure_away() -> None:
    trouble = errors.DISK_FULL(path="/x")
    spoiled = outcomes.with_collection(outcome(exit_code=0), artifacts=[], commit="c", trouble=trouble)
    assert (spoiled.state, spoiled.error_code, spoiled.exit_code) == (State.FAILED, "DISK_FULL", 0)
    failed = outcomes.with_collection(outcome(exit_code=3), artifacts=[ARTIFACT], commit="c", trouble=trouble)
    assert (failed.reason, failed.artifacts) == (Reason.EXIT_NONZERO, [ARTIFACT])
    assert "No room" in failed.detail


def test_files_that_the_power_took_take_a_success_away_but_explain_no_failure_away() -> None:
    lost = outcomes.without_files(outcome(exit_code=0))
    assert (lost.state, lost.reason, lost.exit_code) == (State.LOST, Reason.HOST_RESTARTED, 0)
    failed = outcomes.without_files(outcome(exit_code=3))
    assert (failed.reason, failed.artifacts) == (Reason.EXIT_NONZERO, [])
    assert "before what it left was collected" in failed.detail


def test_error_outcome_is_bounded_and_carries_the_code() -> None:
    error = errors.WORKSPACE_FAILED(repository="r", ref="x", problem="p" * 10_000)
    made = outcomes.from_error(error, State.FAILED, Reason.WORKSPACE_FAILED)
    assert made.error_code == "WORKSPACE_FAILED"
    assert len(made.detail) <= 4096
    assert all(len(str(value)) <= 500 for value in made.error_context.values())


def test_declared_artifacts_that_are_not_there_are_told_and_fit() -> None:
    ended = outcome(exit_code=0)
    assert outcomes.without_declared(ended, []) == ended
    told = outcomes.without_declared(ended, [f"f{number}" for number in range(7)])
    assert (told.state, told.reason) == (State.SUCCEEDED, Reason.EXIT_ZERO)
    assert told.detail.endswith("not there in the end: f0, f1, f2, f3, f4 and 2 more.")
    long = outcomes.without_declared(ended, ["x" * wire.MAX_DETAIL] * 3)
    assert len(long.detail) == wire.MAX_DETAIL
