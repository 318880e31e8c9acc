"""Wall clocks that step by a day, on either side, while work goes on: no lease is lost, nobody is locked out.

libfaketime steps the wall clock of one process while it runs; the clocks since boot stay true, as they do when a person
or NTP sets the time.
"""

from __future__ import annotations

import glob
import time
from pathlib import Path

import pytest

from agentina.protocol import wire
from agentina.protocol.states import State
from tests.acceptance import fleet as fleets

LIBRARY = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), "")  # noqa: PTH207 - an absolute pattern
#: With the margin of 5 s and the grace below, a task must hear of a renewal within 6 s.
LEASE = wire.MIN_LEASE_SECONDS

pytestmark = pytest.mark.skipif(not LIBRARY, reason="needs libfaketime (apt install faketime)")


def stepping(file: Path) -> dict[str, str]:
    file.write_text("+0\n")
    return {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("side", ["default", "control-plane"])
@pytest.mark.parametrize("step", ["+1d", "-1d"])
def test_step_of_a_day_loses_nothing(tmp_path: Path, side: str, step: str) -> None:
    clock = tmp_path / "clock"
    stepped = {name: stepping(clock) if name == side else {} for name in ("default", "control-plane")}
    fleet = fleets.Fleet(tmp_path, lease_seconds=LEASE, heartbeat_seconds=1.0)
    try:
        fleet.start_control_plane(variables=stepped["control-plane"])
        fleet.install("default", "--max-concurrent-tasks", "2")
        fleet.start_daemon(variables=stepped["default"])
        gate = tmp_path / "gate"
        long_job = fleet.submit_script(f"until [ -e {gate} ]; do sleep 0.1; done; echo done", limits={"grace": 1})
        pid = fleet.wait_state(long_job, State.RUNNING).tasks[0].pid
        before = grace_left(fleet)
        clock.write_text(f"{step}\n")
        time.sleep(LEASE * 1.5)  # the lease must have been renewed in the new time to last over this
        assert [task.pid for task in fleet.job(long_job).tasks] == [pid]
        assert fleet.job(long_job).job.state is State.RUNNING
        assert before - 120 < grace_left(fleet) <= before + 1, "the step moved the offline grace"
        short = fleet.submit(["echo", "in the new time"])
        assert fleet.wait_final(short).job.state is State.SUCCEEDED
        # Both start again within the new time: what they wrote before must not mislead them.
        fleet.kill("default")
        fleet.kill("control-plane")
        fleet.start_control_plane(variables=keeping(stepped["control-plane"], clock, step))
        fleet.start_daemon(variables=keeping(stepped["default"], clock, step))
        gate.touch()
        view = fleet.wait_final(long_job)
        assert view.job.state is State.SUCCEEDED
        assert [task.pid for task in view.tasks] == [pid]
        assert fleet.output(long_job) == b"done\n"
        assert (fleet.status() or {})["healthy"]
    finally:
        fleet.close()


def keeping(variables: dict[str, str], clock: Path, step: str) -> dict[str, str]:
    """The same variables, with the step in force from the start."""
    if variables:
        clock.write_text(f"{step}\n")
    return variables


def grace_left(fleet: fleets.Fleet) -> float:
    status = fleet.status()
    assert status is not None
    return float(status["license"]["grace_left_seconds"])
