"""When a task's supervisor ends it and when it looks again: rules only, no I/O.

Standard library only: this is loaded into the nursery, whose memory every supervisor shares.
"""

from __future__ import annotations

from typing import NamedTuple

#: Values of ``contract.StopReason`` (a test holds them equal), which is not loaded here: msgspec would come along.
CANCELED = "canceled"
TIME_LIMIT = "time-limit"
MEMORY_LIMIT = "memory-limit"
PROCESS_LIMIT = "process-limit"
OUTPUT_LIMIT = "output-limit"
DISK_LIMIT = "disk-limit"
LEASE_EXPIRED = "lease-expired"
HOST_SHUTDOWN = "host-shutdown"
CHECKPOINT = "checkpoint"
FINISHED = "finished"
NONE = "none"
STOP_REASONS = frozenset({CANCELED, TIME_LIMIT, LEASE_EXPIRED, HOST_SHUTDOWN, CHECKPOINT, FINISHED})

#: Seconds between SIGTERM and the lease's deadline, at most.
LEASE_GRACE = 3.0
#: Seconds between looks at the size of the output.
OUTPUT_PERIOD = 0.1
#: Shortest and longest time between looks at the processes, in seconds.
SHORTEST_PERIOD = 0.02
LONGEST_PERIOD = 0.5
#: From this share of a limit on, the processes are looked at more often.
NEAR = 0.6
NEAR_PERIOD = 0.05
#: Seconds between walks through the workspace, when the file system's free space gives no reason for one earlier.
DISK_PERIOD = 10.0
#: A walk may take this share of one CPU at most.
DISK_SHARE = 0.02


class Limits(NamedTuple):
    """Bytes and counts a task may not cross; 0 means no limit."""

    memory_bytes: int
    pids: int
    disk_bytes: int
    output_bytes: int


class Sample(NamedTuple):
    """What the task takes now."""

    #: Resident set sizes added up: shared pages count several times, so this is never too low.
    memory_bytes: int = 0
    #: Processes and threads.
    tasks: int = 0


def output_crossed(limits: Limits, output_bytes: int) -> bool:
    """Whether more was written than is kept."""
    return output_bytes > limits.output_bytes


def disk_crossed(limits: Limits, used: int) -> bool:
    """Whether the workspace is larger than allowed."""
    return 0 < limits.disk_bytes < used


def crossed(limits: Limits, sample: Sample, *, shared_out: int | None) -> str:
    """Which of the memory and process limits is crossed, :data:`NONE` if none.

    Args:
        limits: The task's.
        sample: The present state.
        shared_out: Memory with shared pages counted once; None when that was not measured.

    """
    if 0 < limits.pids < sample.tasks:
        return PROCESS_LIMIT
    memory = sample.memory_bytes if shared_out is None else shared_out
    if 0 < limits.memory_bytes < memory:
        return MEMORY_LIMIT
    return NONE


def next_period(limits: Limits, sample: Sample, period: float) -> float:
    """Seconds until the processes are looked at again: ever longer, but short near a limit."""
    near = (0 < limits.pids * NEAR < sample.tasks) or (0 < limits.memory_bytes * NEAR < sample.memory_bytes)
    if near:
        return NEAR_PERIOD
    return min(LONGEST_PERIOD, max(SHORTEST_PERIOD, period * 2))


def next_output_period(limits: Limits, size: int, growth_per_second: float) -> float:
    """Seconds until the output's size is looked at again: before it would cross its limit at the present rate."""
    if growth_per_second <= 0:
        return OUTPUT_PERIOD
    left = max(0, limits.output_bytes - size)
    return min(OUTPUT_PERIOD, max(0.005, left / growth_per_second / 2))


def disk_walk_due(limits: Limits, *, now: float, due_at: float, used: int, consumed: int) -> bool:
    """Whether to walk the workspace now.

    ``consumed`` is by how much the file system's free space shrank since the last walk, which found ``used`` bytes.
    """
    if limits.disk_bytes <= 0:
        return False
    return now >= due_at or consumed > max(1 << 20, (limits.disk_bytes - used) // 2)


def stop_times(*, now: float, grace: float, lease_deadline: float) -> float:
    """When SIGKILL follows a SIGTERM sent now: after the grace, but never after the lease."""
    return min(now + max(0.0, grace), max(now, lease_deadline))


def lease_stop_at(lease_deadline: float, grace: float) -> float:
    """When SIGTERM is due so that the task is gone at its lease deadline."""
    return lease_deadline - min(max(0.0, grace), LEASE_GRACE)
