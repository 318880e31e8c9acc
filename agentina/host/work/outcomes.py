"""From an executor's result to the outcome that is reported. Pure.

Of a task whose output tells how an AI agent's run went, success is said here, never by the command line alone. The
first line that fits counts:

| what happened | outcome |
| --- | --- |
| it was ended by us, not because it had finished | that reason, whatever it printed: some print a success at SIGTERM |
| all of it ran out of memory | ``out-of-memory`` |
| it said that it failed | ``failed``, ``agent-failed``, with its words |
| ``verify`` did not pass, or could not run | ``failed``, ``verify-failed`` |
| it was ended because it had finished | ``succeeded``, ``agent-finished`` |
| it ended by a signal, or with another exit code than 0 | ``failed``, as for any command, with its last complaint |
| it ended without saying that it had finished | ``failed``, ``agent-unfinished``: some exit 0 in the middle of things |
| otherwise | ``succeeded``, ``agent-finished`` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.protocol import states, units, wire
from agentina.protocol.jobs import JobSpec
from agentina.protocol.states import Reason, State

_STOPPED: Final[dict[contract.StopReason, tuple[State, Reason]]] = {
    contract.StopReason.CANCELED: (State.CANCELED, Reason.CANCELED_BY_OPERATOR),
    contract.StopReason.TIME_LIMIT: (State.TIMED_OUT, Reason.TIME_LIMIT),
    contract.StopReason.MEMORY_LIMIT: (State.OUT_OF_MEMORY, Reason.MEMORY_LIMIT),
    contract.StopReason.PROCESS_LIMIT: (State.FAILED, Reason.PROCESS_LIMIT),
    contract.StopReason.OUTPUT_LIMIT: (State.FAILED, Reason.OUTPUT_LIMIT),
    contract.StopReason.DISK_LIMIT: (State.FAILED, Reason.DISK_LIMIT),
    contract.StopReason.LEASE_EXPIRED: (State.LOST, Reason.LEASE_EXPIRED),
    contract.StopReason.CHECKPOINT: (State.CHECKPOINTED, Reason.CHECKPOINT),
    contract.StopReason.HOST_SHUTDOWN: (State.LOST, Reason.HOST_RESTARTED),
}


#: Artifacts named, of those that are missing.
_SHOWN: Final = 5
#: Ends that are not ours, nor the kernel's.
_ITS_OWN_END: Final = frozenset({Reason.EXIT_ZERO, Reason.EXIT_NONZERO, Reason.KILLED_BY_SIGNAL, Reason.VERIFY_FAILED})

#: What a person needs to know beyond a reason.
_PARTICULARS: Final[dict[Reason, Callable[[contract.Result, JobSpec], str]]] = {
    Reason.START_FAILED: lambda result, _: result.start_error,
    Reason.TIME_LIMIT: lambda _, job: f"limit {units.show_duration(job.limits.timeout)}",
    Reason.MEMORY_LIMIT: lambda _, job: f"limit {units.show_size(job.memory_bytes)}",
    Reason.PROCESS_LIMIT: lambda _, job: f"limit {job.resources.pids}",
    Reason.OUTPUT_LIMIT: lambda _, job: f"limit {units.show_size(job.limits.output)}",
    Reason.DISK_LIMIT: lambda _, job: f"limit {units.show_size(job.resources.disk)}",
    Reason.KILLED_BY_SIGNAL: lambda result, _: result.signal or "",
    Reason.EXIT_NONZERO: lambda result, _: f"exit code {result.exit_code}",
    Reason.VERIFY_FAILED: lambda result, _: "" if result.exit_code is None else f"exit code {result.exit_code}",
}


def from_result(result: contract.Result, job: JobSpec, agent: wire.AgentRun | None = None) -> wire.Outcome:
    """The outcome of a task that left a result, before output and artifacts are known.

    Args:
        result: The executor's word.
        job: What was asked for.
        agent: What an AI agent's command line said; None for anything else.

    """
    state, reason = _classify(result) if agent is None else _classify_agent(result, job, agent)
    return wire.Outcome(
        state=state,
        reason=reason,
        detail=(_describe(result, reason, job) + _remark(agent, reason))[: wire.MAX_DETAIL],
        exit_code=result.exit_code,
        signal=result.signal,
        oom=result.oom,
        usage=result.usage,
        output_truncated=result.output_truncated,
        error_code=errors.TASK_START_FAILED.code if reason is Reason.START_FAILED else "",
        agent=agent,
    )


def _classify(result: contract.Result) -> tuple[State, Reason]:
    if result.phase == "start" or result.start_error:
        return State.FAILED, Reason.START_FAILED
    if result.stopped in _STOPPED:
        return _STOPPED[result.stopped]
    if result.oom == "full":
        return State.OUT_OF_MEMORY, Reason.MEMORY_LIMIT
    if result.signal is not None or result.exit_code is None:
        return State.FAILED, Reason.KILLED_BY_SIGNAL
    if result.exit_code == 0:
        return State.SUCCEEDED, Reason.EXIT_ZERO
    return State.FAILED, Reason.VERIFY_FAILED if result.phase == "verify" else Reason.EXIT_NONZERO


def _classify_agent(result: contract.Result, job: JobSpec, agent: wire.AgentRun) -> tuple[State, Reason]:
    state, reason = _classify(result)
    if reason not in _ITS_OWN_END:
        return state, reason
    was_ended = result.stopped is contract.StopReason.FINISHED
    if agent.finished and agent.failed:
        return State.FAILED, Reason.AGENT_FAILED
    if reason is Reason.VERIFY_FAILED or (was_ended and job.verify is not None and result.phase == "command"):
        return State.FAILED, Reason.VERIFY_FAILED
    if reason is not Reason.EXIT_ZERO and not was_ended:
        return state, reason
    if not agent.finished:
        return State.FAILED, Reason.AGENT_UNFINISHED
    return State.SUCCEEDED, Reason.AGENT_FINISHED


def _remark(agent: wire.AgentRun | None, reason: Reason) -> str:
    """What a person should know of an AI agent's run besides."""
    if agent is None:
        return ""
    if agent.error and reason is not Reason.AGENT_FINISHED:
        kind = f"{agent.error_kind}: " if agent.error_kind else ""
        return f" It said: {kind}{agent.error}"
    if agent.denials and reason is Reason.AGENT_FINISHED:
        return f" {units.show_count(agent.denials, 'use')} of tools denied to it."
    return ""


def _describe(result: contract.Result, reason: Reason, job: JobSpec) -> str:
    """A sentence with the particulars a person needs to act."""
    describe = _PARTICULARS.get(reason)
    particulars = "" if describe is None else describe(result, job)
    words = states.REASONS[reason]
    words = f"Its {words[4:]}" if words.startswith("its ") else f"It {words}"
    sentence = words + (f" ({particulars})" if particulars else "") + "."
    detail = result.detail.rstrip(".")
    return f"{sentence} {detail[0].upper()}{detail[1:]}." if detail else sentence


def was_cut_off(result: contract.Result, outcome: wire.Outcome) -> bool:
    """Whether the command was killed (SIGKILL) by somebody else: by hand, or by the kernel of a host without memory.

    That says nothing of its work, unlike any other end of its own.
    """
    return outcome.reason is Reason.KILLED_BY_SIGNAL and result.signal == "SIGKILL" and result.phase == "command"


def lost(reason: Reason, particulars: str = "") -> wire.Outcome:
    """The outcome of a task of which nobody can say how it ended."""
    sentence = "Lost: " + states.REASONS[reason] + (f" ({particulars})" if particulars else "") + "."
    return wire.Outcome(state=State.LOST, reason=reason, detail=sentence)


def without_files(outcome: wire.Outcome) -> wire.Outcome:
    """``outcome`` of a task whose files the power may have taken: a success without them is none any more.

    How it ended is known, for a result is durable. What it left in its workspace is durable once it is collected.
    """
    problem = "The host restarted before what it left was collected."
    if outcome.state is not State.SUCCEEDED:
        return msgspec.structs.replace(outcome, detail=f"{outcome.detail} {problem}"[:4096])
    return msgspec.structs.replace(
        outcome, state=State.LOST, reason=Reason.HOST_RESTARTED, detail=f"Lost: {problem[0].lower()}{problem[1:]}"
    )


def from_error(error: errors.AgentinaError, state: State, reason: Reason) -> wire.Outcome:
    """The outcome of a task that an error of agentina's ended."""
    return wire.Outcome(
        state=state,
        reason=reason,
        detail=f"{error.message} {error.remedy}"[:4096],
        error_code=error.code,
        error_context={key: str(value)[:500] for key, value in error.context.items()},
    )


def without_declared(outcome: wire.Outcome, missing: list[str]) -> wire.Outcome:
    """``outcome`` of a task that declared artifacts at paths where nothing was in the end."""
    if not missing:
        return outcome
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    detail = f"{outcome.detail} It declared artifacts that were not there in the end: {shown}."
    return msgspec.structs.replace(outcome, detail=detail[: wire.MAX_DETAIL])


def with_collection(
    outcome: wire.Outcome,
    *,
    artifacts: list[wire.ArtifactInfo],
    commit: str,
    trouble: errors.AgentinaError | None = None,
) -> wire.Outcome:
    """``outcome`` with what the task left; when collecting failed, a success is none any more."""
    outcome = msgspec.structs.replace(outcome, artifacts=artifacts, commit=commit)
    if trouble is None:
        return outcome
    if outcome.state is not State.SUCCEEDED:
        return msgspec.structs.replace(outcome, detail=f"{outcome.detail} {trouble.message}"[:4096])
    failed = from_error(trouble, State.FAILED, Reason.ARTIFACT_LIMIT)
    return msgspec.structs.replace(
        outcome,
        state=failed.state,
        reason=failed.reason,
        detail=failed.detail,
        error_code=failed.error_code,
        error_context=failed.error_context,
    )
