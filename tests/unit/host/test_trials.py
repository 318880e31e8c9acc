from __future__ import annotations

from typing import Any

import pytest

from agentina.host.updating import trials
from agentina.host.updating.trials import Verdict
from agentina.system import unit_states
from agentina.updates.journal import Reason

TERMS = trials.Terms(soak=10, patience=30)
UP = unit_states.Unit(name="agentina-trial@default.service", state="active", pid=7, began=100.0, up=101.0)
LIMIT = 48 << 20
HELD = {
    "running": False, "limit_bytes": LIMIT, "error_code": "", "detail": "",
    "outcome": {"state": "out-of-memory", "usage": {"memory_peak_bytes": LIMIT}},
}  # fmt: skip
STATUS = {
    "pid": 7, "version": "2.0.0", "state": "online", "last_heartbeat_ms": 1, "tasks": [{"state": "running"}],
    "executor": "systemd", "probe": HELD,
}  # fmt: skip


def judge(
    unit: unit_states.Unit = UP, *, age: float = 10, tasks: int = 1, **status: Any
) -> tuple[Verdict, Reason | None]:  # fmt: skip
    seen = trials.Seen(unit=unit, status={**STATUS, **status}, older_tasks=tasks, now=101 + age)
    judgement = trials.judge(seen, version="2.0.0", terms=TERMS)
    return judgement.verdict, judgement.reason


def ended(result: str, *, up: float = 101.0, state: str = "failed") -> unit_states.Unit:
    return unit_states.Unit(name="t", state=state, result=result, began=100.0, up=up)


def test_good_when_all_holds_after_the_soak_time() -> None:
    assert judge(age=9.9) == (Verdict.WAIT, None)
    assert judge() == (Verdict.GOOD, None)
    assert judge(tasks=0) == (Verdict.GOOD, None)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"pid": 8}, Reason.DEADLINE),
        ({"version": "1.0.0"}, Reason.DEADLINE),
        ({"state": "offline"}, Reason.NO_HEARTBEAT),
        ({"last_heartbeat_ms": None}, Reason.NO_HEARTBEAT),
    ],
)
def test_what_is_missing_is_waited_for_and_then_the_reason(missing: dict[str, Any], reason: Reason) -> None:
    assert judge(age=29, **missing) == (Verdict.WAIT, None)
    assert judge(age=30, **missing) == (Verdict.BAD, reason)


@pytest.mark.parametrize(("now", "silent", "reason"), [(131, 5, Reason.DEADLINE), (131, 4.9, None), (130, 30, None)])
def test_silence_is_waited_for_too_unless_it_has_just_begun(now: float, silent: float, reason: Reason | None) -> None:
    seen = trials.Seen(unit=UP, status=None, older_tasks=0, now=now, silent=silent)
    assert trials.judge(seen, version="2.0.0", terms=TERMS).reason is reason


def test_tasks_that_are_not_found_are_never_found() -> None:
    assert judge(age=9, tasks=2) == (Verdict.WAIT, None)
    assert judge(age=10, tasks=2) == (Verdict.BAD, Reason.TASKS_LOST)


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        (ended("exit-code"), Reason.CRASHED),
        (ended("signal"), Reason.CRASHED),
        (ended("exit-code", up=0.0), Reason.START_FAILED),
        (ended("core-dump", up=50.0), Reason.START_FAILED),
        (ended("timeout", up=50.0), Reason.NOT_READY),
        (ended("timeout"), Reason.DEADLINE),
        (ended("watchdog"), Reason.WATCHDOG),
        (ended("oom-kill"), Reason.OUT_OF_MEMORY),
        (ended("protocol", up=50.0), Reason.EXITED),
        (ended("success", state="inactive"), Reason.EXITED),
    ],
)
def test_end_is_bad_for_what_pid_1_says(unit: unit_states.Unit, reason: Reason) -> None:
    assert judge(unit) == (Verdict.BAD, reason)


@pytest.mark.parametrize("state", ["activating", "deactivating", "reloading"])
def test_on_its_way_it_is_waited_for(state: str) -> None:
    assert judge(unit_states.Unit(name="t", state=state, began=100.0), age=500) == (Verdict.WAIT, None)


def test_queued_start_is_no_end() -> None:
    assert judge(unit_states.Unit(name="t", state="inactive", has_job=True)) == (Verdict.WAIT, None)


def test_control_plane_that_asks_to_be_left_alone() -> None:
    assert trials.is_told_to_wait({"problems": [{"code": "OVERLOADED"}]})
    assert not trials.is_told_to_wait({"problems": [{"code": "CONTROL_PLANE_UNREACHABLE"}]})
    assert not trials.is_told_to_wait(None)


# --- a task over its memory limit -------------------------------------------------------------------------------------


def probed(**changes: Any) -> dict[str, Any]:
    return {**HELD, **changes}


@pytest.mark.parametrize(
    "outcome",
    [
        {"state": "succeeded", "usage": {"memory_peak_bytes": 3 * LIMIT}, "detail": "It exited 0."},
        # What a slot has by itself ended it: the limit was never set.
        {"state": "out-of-memory", "usage": {"memory_peak_bytes": 64 << 20}},
        # The kernel ended it, and nobody reported it as that.
        {"state": "failed", "usage": {"memory_peak_bytes": LIMIT}},
    ],
)
def test_limit_that_does_not_hold_is_bad_at_once(outcome: dict[str, Any]) -> None:
    assert judge(age=1, probe=probed(outcome=outcome)) == (Verdict.BAD, Reason.LIMITS_NOT_HELD)


def test_kernel_that_does_not_tell_the_peak() -> None:
    assert judge(probe=probed(outcome={"state": "out-of-memory"})) == (Verdict.GOOD, None)


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (None, Reason.LIMITS_NOT_HELD),
        (probed(outcome=None, running=True), Reason.LIMITS_NOT_HELD),
        (probed(outcome=None, error_code="TASK_START_FAILED"), Reason.LIMITS_NOT_HELD),
        (probed(outcome=None, error_code="DISK_FULL"), Reason.DISK_FULL),
    ],
)
def test_limit_nobody_saw_hold_is_waited_for(probe: Any, reason: Reason) -> None:
    assert judge(age=29, probe=probe) == (Verdict.WAIT, None)
    assert judge(age=30, probe=probe) == (Verdict.BAD, reason)


@pytest.mark.parametrize(
    ("probe", "is_wanted"),
    [
        (None, True),
        (probed(outcome=None, running=True), False),
        (HELD, False),
        (probed(outcome=None, error_code="TASK_START_FAILED"), True),
    ],
)
def test_probe_is_asked_for_until_one_came_to_its_end(probe: Any, *, is_wanted: bool) -> None:
    seen = trials.Seen(unit=UP, status={**STATUS, "probe": probe}, older_tasks=0, now=101)
    assert trials.wants_probe(seen) is is_wanted


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in STATUS.items() if name not in names}


@pytest.mark.parametrize(
    ("status", "can_limit", "word"),
    [
        ({**STATUS, "probe": None}, False, "no memory controller"),
        (without("probe"), True, "older"),
        ({**STATUS, "probe": None, "executor": "process"}, True, "not contained by the kernel"),
    ],
)
def test_what_cannot_be_looked_at_here_is_no_fault(status: dict[str, Any], word: str, *, can_limit: bool) -> None:
    seen = trials.Seen(unit=UP, status=status, older_tasks=0, now=111, can_limit=can_limit)
    assert trials.judge(seen, version="2.0.0", terms=TERMS).verdict is Verdict.GOOD
    assert word in trials.unproved(seen)
    assert not trials.wants_probe(seen)
