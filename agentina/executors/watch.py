"""What a supervisor saw of its task last, and when it looks again (the rules are in :mod:`agentina.executors.limits`).

Standard library only: this is loaded into the nursery, whose memory every supervisor shares.
"""

from __future__ import annotations

import os
import time

from agentina.executors import containment, limits


class Watch:
    """When to look at what, and what was seen last."""

    def __init__(self, now: float, workspace: str, home: str) -> None:
        self.output_due = now + limits.SHORTEST_PERIOD
        self.processes_due = now + limits.SHORTEST_PERIOD
        self.disk_due = now + limits.SHORTEST_PERIOD
        self.disk_used = 0
        self.fence_synced = False
        self._workspace = workspace
        self._home = home
        self._period = limits.SHORTEST_PERIOD
        self._output = (now, 0)
        self._walk: containment.DiskWalk | None = None
        self._walk_due = now + limits.DISK_PERIOD
        self._walk_cost = 0.0
        self._free = _free_bytes(workspace)

    def seconds_left(self, deadline: float) -> float:
        """How long to sleep until something is due."""
        due = min(deadline, self.output_due, self.processes_due, self.disk_due)
        return max(0.0, due - time.clock_gettime(time.CLOCK_BOOTTIME))

    def saw_output(self, bounds: limits.Limits, size: int, now: float) -> None:
        """Plan the next look at the output by how fast it grows."""
        before, last = self._output
        growth = (size - last) / max(now - before, 0.001)
        self._output = (now, size)
        self.output_due = now + limits.next_output_period(bounds, size, growth)

    def saw_processes(self, bounds: limits.Limits, sample: limits.Sample, now: float) -> None:
        """Plan the next look at the processes."""
        self._period = limits.next_period(bounds, sample, self._period)
        self.processes_due = now + self._period

    def walk_disk(self, bounds: limits.Limits, now: float) -> bool:
        """Go on with the walk through the workspace, or begin one that is due; returns whether it crossed the limit."""
        self.disk_due = now + self._period
        if self._walk is None:
            consumed = self._free - _free_bytes(self._workspace)
            if not limits.disk_walk_due(bounds, now=now, due_at=self._walk_due, used=self.disk_used, consumed=consumed):
                return False
            self._walk = containment.DiskWalk(self._workspace, self._home)
            self._walk_cost = 0.0
        began = time.thread_time()
        complete = self._walk.step()
        self._walk_cost += time.thread_time() - began
        self.disk_used = max(self.disk_used, self._walk.used)
        if limits.disk_crossed(bounds, self._walk.used):
            return True
        if complete:
            self.disk_used = self._walk.used
            self._walk = None
            self._free = _free_bytes(self._workspace)
            self._walk_due = now + max(limits.DISK_PERIOD, self._walk_cost / limits.DISK_SHARE)
        else:
            self.disk_due = now + 0.02
        return False


def _free_bytes(path: str) -> int:
    try:
        status = os.statvfs(path)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
