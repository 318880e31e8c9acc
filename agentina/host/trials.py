"""When a release on trial is good, when it is bad, and when nobody can tell. Pure.

What is looked at, and what each says when it is missing at the end of the patience:

==========================================================  ================================================
PID 1: the unit runs, and said that it is ready              ``start-failed``, ``exited``, ``crashed``,
                                                             ``watchdog``, ``not-ready``, ``out-of-memory``
the daemon answers on its socket, as the unit's main         ``deadline``
process and with the version on trial
as many running tasks as there are units that ran before     ``tasks-lost``
the control plane answered it: session and heartbeat         ``no-heartbeat``; ``control-plane-away`` where
                                                             the updater does not reach it either, or it said
                                                             that it is overloaded
==========================================================  ================================================

All of it has to hold at one look, after the release was up for the whole soak time: longer than the watchdog's
interval, so that a release that stops feeding it is seen. Tasks are found before a daemon says that it is ready, so
little patience is needed with a release that does not know them, and none with their leases, which end meanwhile.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final

from agentina import errors
from agentina.system import unit_states
from agentina.updates.journal import Reason

_STARTED: Final = frozenset({"running", "finishing"})
#: Answers of a control plane that is there and wants to be left alone.
_BUSY: Final = frozenset({errors.OVERLOADED.code, errors.STORAGE_FULL.code, errors.SHUTTING_DOWN.code})
#: Seconds after which a release knows the tasks that run, or never will.
_ADOPTION_SECONDS: Final = 10.0
_RESULTS: Final = {
    "watchdog": Reason.WATCHDOG,
    "oom-kill": Reason.OUT_OF_MEMORY,
    "protocol": Reason.EXITED,
    "success": Reason.EXITED,
}


class Verdict(enum.Enum):
    """What a look says."""

    WAIT = "wait"
    GOOD = "good"
    BAD = "bad"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How long things may take, in seconds."""

    #: Up before it is good.
    soak: float = 90.0
    #: Up before it is bad for what is missing.
    patience: float = 180.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One look."""

    unit: unit_states.Unit
    #: What the daemon says of itself (agentina.protocol.local.InstanceStatus); None: it does not answer.
    status: dict[str, Any] | None
    #: Units of tasks that run and ran before the trial began.
    older_tasks: int
    #: CLOCK_MONOTONIC.
    now: float


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """What a look says, and why."""

    verdict: Verdict
    reason: Reason | None = None
    detail: str = ""


def judge(seen: Seen, *, version: str, terms: Terms) -> Judgement:
    """Judge the release ``version`` on trial."""
    unit = seen.unit
    if not unit.runs or unit.state == "deactivating":
        # On its way down its result is known, but not what ended it; the next look has it.
        return Judgement(Verdict.WAIT) if unit.runs else Judgement(Verdict.BAD, *why_ended(unit))
    if unit.state != "active" or not unit.was_up:
        return Judgement(Verdict.WAIT)
    age = seen.now - unit.up
    missing = _missing(seen, version)
    if missing is None:
        return Judgement(Verdict.GOOD if age >= terms.soak else Verdict.WAIT)
    patience = min(terms.patience, _ADOPTION_SECONDS) if missing[0] is Reason.TASKS_LOST else terms.patience
    return Judgement(Verdict.BAD, *missing) if age >= patience else Judgement(Verdict.WAIT)


def why_ended(unit: unit_states.Unit) -> tuple[Reason, str]:
    """Why a trial that ended did, by what PID 1 says of its unit."""
    detail = f"systemd says {unit.result}" + (f", {unit.ended}" if unit.ended else "")
    if unit.result == "timeout":
        return (Reason.DEADLINE if unit.was_up else Reason.NOT_READY), detail
    if unit.result in _RESULTS:
        return _RESULTS[unit.result], detail
    return (Reason.CRASHED if unit.was_up else Reason.START_FAILED), detail


def is_told_to_wait(status: dict[str, Any] | None) -> bool:
    """Whether the control plane told the daemon to come back later."""
    problems = (status or {}).get("problems") or []
    return any(problem.get("code") in _BUSY for problem in problems)


def _missing(seen: Seen, version: str) -> tuple[Reason, str] | None:
    """What does not hold, the first of it; None: all does."""
    status = seen.status
    if status is None:
        return Reason.DEADLINE, "it does not answer on its socket"
    if status.get("pid") != seen.unit.pid or status.get("version") != version:
        return Reason.DEADLINE, f"version {str(status.get('version'))[:60]} answers on its socket"
    adopted = sum(1 for task in status.get("tasks") or [] if task.get("state") in _STARTED)
    if adopted < seen.older_tasks:
        return Reason.TASKS_LOST, f"it knows {adopted} running tasks, {seen.older_tasks} run"
    if status.get("state") == "offline" or status.get("last_heartbeat_ms") is None:
        said = status.get("state_reason") or status.get("last_error") or ""
        return Reason.NO_HEARTBEAT, str(said)[:500]
    return None
