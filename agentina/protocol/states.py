"""The states of jobs and tasks, and what may follow what.

A job and each of its tasks (attempts) use the same words. Values are written out because they leave the process.
Every state comes with a :class:`Reason`: a stable kebab-case code that says why, and a sentence beside it.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    """Where a job or a task is in its life."""

    #: Job only: waits for an agent, for other jobs, or for its backoff (the reason says which).
    QUEUED = "queued"
    #: The control plane gave it to an agent; the agent has not yet said that it holds it.
    ASSIGNED = "assigned"
    #: The agent durably accepted it and prepares the workspace.
    PREPARING = "preparing"
    #: The process was started.
    RUNNING = "running"
    #: The process ended; results, output and artifacts are being collected and sent.
    FINISHING = "finishing"
    #: Final: the process ended with exit code 0 and `verify`, if any, passed.
    SUCCEEDED = "succeeded"
    #: Final: it ended otherwise.
    FAILED = "failed"
    #: Final: stopped at its time limit.
    TIMED_OUT = "timed-out"
    #: Final: killed at its memory limit.
    OUT_OF_MEMORY = "out-of-memory"
    #: Final: somebody canceled it, or a job it needs did not succeed.
    CANCELED = "canceled"
    #: Final: a host's policy or a check refused it; it never started.
    REFUSED = "refused"
    #: Final: nobody can say how it ended (host gone, lease expired, power cut), or would have (an AI agent killed).
    LOST = "lost"
    #: Final for the task only: packed to go on elsewhere; the job returns to the queue.
    CHECKPOINTED = "checkpointed"


FINAL: Final = frozenset(
    {
        State.SUCCEEDED,
        State.FAILED,
        State.TIMED_OUT,
        State.OUT_OF_MEMORY,
        State.CANCELED,
        State.REFUSED,
        State.LOST,
        State.CHECKPOINTED,
    }
)

#: States in which an agent holds a lease on the task.
HELD: Final = frozenset({State.ASSIGNED, State.PREPARING, State.RUNNING, State.FINISHING})

_ORDER: Final = (State.QUEUED, State.ASSIGNED, State.PREPARING, State.RUNNING, State.FINISHING)


def may_follow(before: State, after: State) -> bool:
    """Whether a task may go from ``before`` to ``after``.

    A task only moves forward and may skip steps (a task refused before it ran); a final state is the end.
    """
    if before in FINAL:
        return False
    if after in FINAL:
        return True
    return _ORDER.index(after) > _ORDER.index(before)


class Reason(enum.Enum):
    """Why a job or task is in its state. Codes are stable; :data:`REASONS` has the sentence for people."""

    # queued
    WAITING_FOR_AGENT = "waiting-for-agent"
    WAITING_FOR_NEEDS = "waiting-for-needs"
    WAITING_FOR_PATHS = "waiting-for-paths"
    RETRY_BACKOFF = "retry-backoff"
    RETURNED_UNSTARTED = "returned-unstarted"
    # on the way
    ASSIGNED = "assigned"
    PREPARING = "preparing"
    RUNNING = "running"
    FINISHING = "finishing"
    # succeeded
    EXIT_ZERO = "exit-zero"
    AGENT_FINISHED = "agent-finished"
    # failed
    EXIT_NONZERO = "exit-nonzero"
    KILLED_BY_SIGNAL = "killed-by-signal"
    VERIFY_FAILED = "verify-failed"
    AGENT_FAILED = "agent-failed"
    AGENT_UNFINISHED = "agent-unfinished"
    START_FAILED = "start-failed"
    WORKSPACE_FAILED = "workspace-failed"
    OUTPUT_LIMIT = "output-limit"
    DISK_LIMIT = "disk-limit"
    PROCESS_LIMIT = "process-limit"
    ARTIFACT_LIMIT = "artifact-limit"
    UNHEALTHY = "unhealthy"
    # timed-out, out-of-memory
    TIME_LIMIT = "time-limit"
    MEMORY_LIMIT = "memory-limit"
    # canceled
    CANCELED_BY_OPERATOR = "canceled-by-operator"
    NEED_NOT_MET = "need-not-met"
    # refused
    POLICY = "policy"
    SIGNATURE = "signature"
    LICENSE = "license"
    UNSUPPORTED = "unsupported"
    # lost
    LEASE_EXPIRED = "lease-expired"
    HOST_RESTARTED = "host-restarted"
    SUPERVISOR_DIED = "supervisor-died"
    RECORD_DAMAGED = "record-damaged"
    AGENT_REMOVED = "agent-removed"
    # checkpointed
    CHECKPOINT = "checkpoint"


REASONS: Final[dict[Reason, str]] = {
    Reason.WAITING_FOR_AGENT: "waits for an agent that can run it",
    Reason.WAITING_FOR_NEEDS: "waits for the jobs it needs",
    Reason.WAITING_FOR_PATHS: "waits for a job that changes the same paths of the repository",
    Reason.RETRY_BACKOFF: "waits before the next attempt",
    Reason.RETURNED_UNSTARTED: "an agent gave it back before starting it",
    Reason.ASSIGNED: "given to an agent",
    Reason.PREPARING: "the agent prepares its workspace",
    Reason.RUNNING: "its process runs",
    Reason.FINISHING: "its results are being collected and sent",
    Reason.EXIT_ZERO: "ended with exit code 0",
    Reason.AGENT_FINISHED: "finished what it was asked to do, by its own account",
    Reason.EXIT_NONZERO: "ended with a non-zero exit code",
    Reason.KILLED_BY_SIGNAL: "was killed by a signal agentina did not send",
    Reason.VERIFY_FAILED: "ended well, but its verify command did not pass",
    Reason.AGENT_FAILED: "gave up, by its own account",
    Reason.AGENT_UNFINISHED: "ended without saying that it had finished",
    Reason.START_FAILED: "its process could not be started",
    Reason.WORKSPACE_FAILED: "its workspace could not be made",
    Reason.OUTPUT_LIMIT: "wrote more output than its limit",
    Reason.DISK_LIMIT: "used more disk than its limit",
    Reason.PROCESS_LIMIT: "had more processes than its limit",
    Reason.ARTIFACT_LIMIT: "left more artifacts than its limit",
    Reason.UNHEALTHY: "was stopped because it was stuck or went in circles",
    Reason.TIME_LIMIT: "ran longer than its time limit",
    Reason.MEMORY_LIMIT: "used more memory than its limit",
    Reason.CANCELED_BY_OPERATOR: "was canceled",
    Reason.NEED_NOT_MET: "a job it needs did not succeed",
    Reason.POLICY: "the host's policy refuses it",
    Reason.SIGNATURE: "its assignment does not verify",
    Reason.LICENSE: "the host's license does not allow it",
    Reason.UNSUPPORTED: "the host has no such runner or executor",
    Reason.LEASE_EXPIRED: "its agent was not heard of until the lease ran out",
    Reason.HOST_RESTARTED: "its host restarted while it ran",
    Reason.SUPERVISOR_DIED: "its supervisor process was killed or stopped",
    Reason.RECORD_DAMAGED: "its record on the host is damaged",
    Reason.AGENT_REMOVED: "its agent was removed",
    Reason.CHECKPOINT: "was packed to go on elsewhere",
}
