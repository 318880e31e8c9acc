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
a task of its own (:mod:`agentina.host.updating.probe`)      ``limits-not-held``, at once; where it cannot be
that takes more memory than it may is ended for that, at     run, at the end of the patience; ``disk-full``
its limit
==========================================================  ================================================

All of it has to hold at one look, after the release was up for the whole soak time: longer than the watchdog's
interval, so that a release that stops feeding it is seen. Tasks are found before a daemon says that it is ready, so
little patience is needed with a release that does not know them, and none with their leases, which end meanwhile.

Where the kernel cannot hold a memory limit (:attr:`Seen.can_limit`), or the release is older than the probe, nothing
is held against it: :func:`unproved` says what nobody could look at, and the journal keeps that.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final

from agentina import errors
from agentina.protocol.states import State
from agentina.system import unit_states
from agentina.updates.journal import Reason

_STARTED: Final = frozenset({"running", "finishing"})
#: Answers of a control plane that is there and wants to be left alone.
_BUSY: Final = frozenset({errors.OVERLOADED.code, errors.STORAGE_FULL.code, errors.SHUTTING_DOWN.code})
#: Seconds after which a release knows the tasks that run, or never will.
_ADOPTION_SECONDS: Final = 10.0
#: Seconds without an answer that say something: a daemon that has just died is up in the eyes of PID 1 for a moment,
#: and why it died is to be told.
_SILENT_SECONDS: Final = 5.0
#: The executor whose tasks are units, which the kernel holds to their limits.
_BY_KERNEL: Final = "systemd"
#: The kernel counts in batches.
_SLACK: Final = 1.05
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
    #: Seconds since it answered last, or, where it has not yet, since somebody asks.
    silent: float = 0.0
    #: Whether the kernel can hold a service to a memory limit here.
    can_limit: bool = True


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
    patience = terms.patience
    if missing[0] is Reason.TASKS_LOST:
        patience = min(patience, _ADOPTION_SECONDS)
    elif missing[0] is Reason.LIMITS_NOT_HELD and ((seen.status or {}).get("probe") or {}).get("outcome"):
        patience = 0.0  # nothing is missing: it was seen
    is_long = age >= patience and (seen.status is not None or seen.silent >= _SILENT_SECONDS)
    return Judgement(Verdict.BAD, *missing) if is_long else Judgement(Verdict.WAIT)


def wants_probe(seen: Seen) -> bool:
    """Whether the daemon is to be asked for a task over its memory limit."""
    if seen.status is None or unproved(seen):
        return False
    probe = seen.status["probe"]
    return probe is None or not (probe["running"] or probe["outcome"])


def unproved(seen: Seen) -> str:
    """What cannot be looked at on this host, or with this release; empty: everything can."""
    if not seen.can_limit:
        return "memory limits: the host's control groups have no memory controller"
    if seen.status is not None and "probe" not in seen.status:
        return "memory limits: the release is older than the task that would show them"
    if seen.status is not None and seen.status.get("executor") != _BY_KERNEL:
        return "memory limits: this host's tasks are not contained by the kernel"
    return ""


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
    return None if unproved(seen) else _overstepped(status["probe"])


def _overstepped(probe: dict[str, Any] | None) -> tuple[Reason, str] | None:
    """What is wrong with the end of a task over its memory limit; None: it was held to it."""
    if probe is None or probe["running"]:
        return Reason.LIMITS_NOT_HELD, "its task over a memory limit did not come to an end"
    outcome, limit = probe["outcome"], probe["limit_bytes"]
    if outcome is None:
        reason = Reason.DISK_FULL if probe["error_code"] == errors.DISK_FULL.code else Reason.LIMITS_NOT_HELD
        return reason, f"its task over a memory limit could not be run: {probe['detail']}"[:500]
    # Kernels before 5.19 do not tell the peak (memory.peak); that they ended it has to do.
    peak = (outcome.get("usage") or {}).get("memory_peak_bytes") or 0
    if outcome["state"] == State.OUT_OF_MEMORY.value and peak <= limit * _SLACK:
        return None
    said = f"a task limited to {limit >> 20} MiB took {peak >> 20} MiB and ended as {outcome['state']}"
    return Reason.LIMITS_NOT_HELD, f"{said}: {outcome.get('detail', '')}"[:500]
