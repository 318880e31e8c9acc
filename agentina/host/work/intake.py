"""What becomes of an assignment that arrives. Pure.

Dropped when nobody can tell what it is, refused for good when it is not signed, not addressed to us, or is not to run
here by its own nature; given back when this host takes no work at the moment, whatever it is: another one does, or this
one later. What holds work back may have begun while the poll was under way. Everything else is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import msgspec

from agentina import errors
from agentina.protocol import names, signing, wire
from agentina.protocol.jobs import JobSpec
from agentina.protocol.states import Reason, State


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What an assignment is checked against."""

    trusted: Mapping[str, signing.PublicKey]
    agent_id: str
    session: int
    #: Number of the poll whose answer is read, and the highest one taken over before it.
    poll: int
    acknowledged: int
    held: Collection[str]
    runners: Collection[str]
    #: Why no work is taken now, as sentences; none when it is.
    blocks: Collection[str]
    #: The host owner's rules: the sentences that forbid the job, none when it may run.
    check_policy: Callable[[JobSpec], list[str]]
    host: str


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """To be accepted."""

    assignment: wire.Assignment
    signed: signing.Signed


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """To be reported as ``finished: refused``."""

    task_id: str
    reason: Reason
    error: errors.AgentinaError

    @property
    def outcome(self) -> wire.Outcome:
        """The outcome to report."""
        return wire.Outcome(
            state=State.REFUSED,
            reason=self.reason,
            detail=f"{self.error.message} {self.error.remedy}"[:4096],
            error_code=self.error.code,
            error_context={key: str(value)[:500] for key, value in self.error.context.items()},
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Returned:
    """To be reported as ``returned``."""

    task_id: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """Nothing is done: it is held already, or nobody can tell what it is."""

    why: str


Verdict = Taken | Refused | Returned | Dropped


class _Header(msgspec.Struct, frozen=True):
    """The part of an assignment that every version has."""

    task_id: str
    agent_id: str
    session: int
    poll: int


def judge(signed: signing.Signed, situation: Situation) -> Verdict:
    """What to do with one assignment of a poll's answer."""
    try:
        header = msgspec.json.decode(signed.payload, type=_Header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return Dropped("an assignment that cannot be read")
    if not names.is_task_id(header.task_id):
        return Dropped(f"an assignment for {header.task_id[:80]!r}, which is no task id")
    if header.task_id in situation.held:
        return Dropped("")
    try:
        payload = signing.verify(signed, "assignment", situation.trusted, "assignment")
        _check_address(header, situation)
    except errors.AgentinaError as error:
        return Refused(header.task_id, Reason.SIGNATURE, error)
    try:
        assignment = msgspec.json.decode(payload, type=wire.Assignment)
    except (msgspec.MsgspecError, RecursionError) as error:
        # Signed and addressed to us, but with something this version does not know: a newer runner, say.
        return Refused(header.task_id, Reason.UNSUPPORTED, errors.INPUT_INVALID(where="assignment", problem=str(error)))
    return _judge_job(assignment, signed, situation)


def _check_address(header: _Header, situation: Situation) -> None:
    """Only what is addressed to this agent, in this session, in answer to an open poll, counts."""
    if header.agent_id != situation.agent_id:
        raise errors.SIGNATURE_INVALID(what="assignment", problem="it is addressed to another agent")
    if header.session != situation.session:
        problem = f"it belongs to session {header.session}; this is {situation.session}"
        raise errors.SIGNATURE_INVALID(what="assignment", problem=problem)
    # Unacknowledged answers are sent again with later polls, so every number since the last taken over is current.
    if not situation.acknowledged < header.poll <= situation.poll:
        problem = f"it answers poll {header.poll}; open are {situation.acknowledged + 1} to {situation.poll}"
        raise errors.SIGNATURE_INVALID(what="assignment", problem=problem)


def _judge_job(assignment: wire.Assignment, signed: signing.Signed, situation: Situation) -> Verdict:
    job, task_id = assignment.job, assignment.task_id
    if job.runner not in situation.runners:
        problem = f"this host has no runner {job.runner!r}; it has {', '.join(sorted(situation.runners))}"
        return Refused(task_id, Reason.UNSUPPORTED, errors.INPUT_INVALID(where="job.runner", problem=problem))
    if situation.blocks:
        return Returned(task_id, "; ".join(situation.blocks))
    forbidden = situation.check_policy(job)
    if forbidden:
        refusal = errors.POLICY_REFUSED(host=situation.host, rule="; ".join(forbidden))
        return Refused(task_id, Reason.POLICY, refusal)
    return Taken(assignment, signed)
