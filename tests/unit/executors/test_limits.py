"""When a task is ended and when it is looked at again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.executors import contract, limits
from agentina.executors.limits import Limits, Sample

LIMITS = Limits(memory_bytes=1000, pids=10, disk_bytes=1000, output_bytes=1000)
sizes = st.integers(min_value=0, max_value=1 << 50)


def test_reasons_are_those_of_the_contract() -> None:
    names = [name for name in dir(limits) if isinstance(getattr(limits, name), str) and name.isupper()]
    assert {getattr(limits, name) for name in names} == {reason.value for reason in contract.StopReason}
    assert {reason.value for reason in contract.StopReason} > limits.STOP_REASONS


@pytest.mark.parametrize(
    ("sample", "shared_out", "reason"),
    [
        (Sample(1000, 10), None, limits.NONE),
        (Sample(1001, 10), None, limits.MEMORY_LIMIT),
        (Sample(5000, 10), 900, limits.NONE),
        (Sample(5000, 10), 1001, limits.MEMORY_LIMIT),
        (Sample(0, 11), None, limits.PROCESS_LIMIT),
        (Sample(9999, 11), None, limits.PROCESS_LIMIT),
    ],
)
def test_limit_that_is_crossed(sample: Sample, shared_out: int | None, reason: str) -> None:
    assert limits.crossed(LIMITS, sample, shared_out=shared_out) == reason


def test_zero_is_no_limit() -> None:
    free = Limits(0, 0, 0, 0)
    assert limits.crossed(free, Sample(1 << 40, 1 << 20), shared_out=None) == limits.NONE
    assert not limits.disk_crossed(free, 1 << 40)
    assert not limits.disk_walk_due(free, now=100, due_at=0, used=0, consumed=1 << 40)


@given(memory=sizes, tasks=st.integers(0, 100_000), period=st.floats(0, 10))
def test_period_is_bounded_and_short_near_a_limit(memory: int, tasks: int, period: float) -> None:
    found = limits.next_period(LIMITS, Sample(memory, tasks), period)
    assert limits.SHORTEST_PERIOD <= found <= limits.LONGEST_PERIOD
    if memory > 600 or tasks > 6:
        assert found == limits.NEAR_PERIOD


def test_period_grows_while_nothing_happens() -> None:
    periods = [limits.SHORTEST_PERIOD]
    for _ in range(8):
        periods.append(limits.next_period(LIMITS, Sample(1, 1), periods[-1]))
    assert periods == sorted(periods)
    assert periods[-1] == limits.LONGEST_PERIOD


@given(size=sizes, growth=st.floats(-1e12, 1e12))
def test_output_is_looked_at_before_it_crosses_its_limit(size: int, growth: float) -> None:
    bounds = Limits(0, 0, 0, 64 << 20)
    period = limits.next_output_period(bounds, size, growth)
    assert 0.005 <= period <= limits.OUTPUT_PERIOD
    if growth > 0 and size < bounds.output_bytes and period > 0.005:
        assert size + growth * period <= bounds.output_bytes


@given(now=st.floats(0, 1e9), grace=st.floats(-10, 1e6), lease=st.floats(0, 1e9))
def test_kill_comes_neither_before_now_nor_after_the_lease(now: float, grace: float, lease: float) -> None:
    kill_at = limits.stop_times(now=now, grace=grace, lease_deadline=lease)
    assert now <= kill_at <= max(now, lease)
    assert lease - limits.LEASE_GRACE <= limits.lease_stop_at(lease, grace) <= lease


def test_walk_is_due_by_time_or_by_what_was_consumed() -> None:
    bounds = Limits(0, 0, 100 << 20, 0)
    assert limits.disk_walk_due(bounds, now=10, due_at=10, used=0, consumed=0)
    assert limits.disk_walk_due(bounds, now=1, due_at=10, used=80 << 20, consumed=11 << 20)
    assert not limits.disk_walk_due(bounds, now=1, due_at=10, used=80 << 20, consumed=9 << 20)
    assert not limits.disk_walk_due(bounds, now=1, due_at=10, used=100 << 20, consumed=1 << 10)
