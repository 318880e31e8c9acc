"""No room left, at the host and at the control plane: said clearly, nothing damaged, and work goes on once there is.

The state is on a small tmpfs that is filled to the last page; that takes the right to mount.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.protocol.states import State
from tests.acceptance import fleet as fleets


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, path: Path, *, size: str) -> None:
        path.mkdir(parents=True)
        self.path = path
        self._size = size
        command = ["mount", "-t", "tmpfs", "-o", "size=3g,mode=0700", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")

    def shrink(self) -> None:
        """Make it small; an installation asks for more than a test wants to fill."""
        subprocess.run(["mount", "-o", f"remount,size={self._size}", str(self.path)], check=True)

    def fill(self) -> None:
        """Take every page that is left."""
        descriptor = os.open(self.path / "filling", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with contextlib.suppress(OSError):
            while os.write(descriptor, bytes(4096)):
                pass
        os.close(descriptor)

    def free(self) -> None:
        """Give them back."""
        (self.path / "filling").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    mounted = SmallDisk(tmp_path / request.param, size="16m")
    yield mounted
    mounted.close()


@pytest.fixture
def fleet(disk: SmallDisk, tmp_path: Path) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path, heartbeat_seconds=1.0) as started:
        started.install("default", "--max-concurrent-tasks", "4")
        config = started.layout.instance("default").config
        # A disk this small is below every reserve: without this it would take no work, and never get full.
        config.write_text(config.read_text() + "disk_reserve: 0\n")
        disk.shrink()
        started.start_daemon()
        yield started


def start_held(fleet: fleets.Fleet, number: int) -> str:
    """A job that prints, then waits for the common gate without writing anything more."""
    script = f"echo {number} >> {fleet.root}/marks; seq 5000; until [ -e {fleet.root}/gate ]; do sleep 0.02; done"
    job = fleet.submit_script(script, resources={"memory": "16MiB"}, retry={"max_attempts": 1})
    fleet.wait_state(job, State.RUNNING)
    fleets.wait_for(lambda: fleet.output(job).endswith(b"\n5000\n"), "its output is there")
    return job


def check_ended_once(fleet: fleets.Fleet, jobs: list[str]) -> None:
    for job in jobs:
        view = fleet.wait_final(job)
        assert view.job.state is State.SUCCEEDED, view.job
        assert fleet.output(job) == b"".join(b"%d\n" % number for number in range(1, 5001))
        assert len([event for event in view.events if event.state is State.SUCCEEDED]) == 1
    assert sorted((fleet.root / "marks").read_text().split()) == sorted(str(number) for number in range(len(jobs)))


@pytest.mark.parametrize("disk", ["var/lib/agentina"], indirect=True)
def test_host_without_room(fleet: fleets.Fleet, disk: SmallDisk) -> None:
    jobs = [start_held(fleet, number) for number in range(3)]
    disk.fill()
    (fleet.root / "gate").touch()
    # They end while there is no room for a result, and one more is wanted meanwhile.
    fleets.wait_for(
        lambda: not any(fleets.is_alive(task.pid or 0) for job in jobs for task in fleet.job(job).tasks), "they end"
    )
    late = fleet.submit_script("seq 5000; echo late >> $MARKS", environment={"MARKS": str(fleet.root / "late")})
    fleets.wait_for(lambda: "DISK_FULL" in fleet.problems(), "status tells")
    assert fleet.run("status").returncode == 1
    assert fleet.is_running("default")
    disk.free()
    check_ended_once(fleet, jobs)
    assert fleet.wait_final(late).job.state is State.SUCCEEDED
    assert (fleet.root / "late").read_text() == "late\n"
    fleets.wait_for(lambda: fleet.run("status").returncode == 0, "the host is healthy again")


@pytest.mark.parametrize("disk", ["var/lib/agentina"], indirect=True)
def test_daemon_killed_and_started_without_room(fleet: fleets.Fleet, disk: SmallDisk) -> None:
    jobs = [start_held(fleet, number) for number in range(2)]
    disk.fill()
    fleet.kill("default")
    (fleet.root / "gate").touch()
    fleet.start_daemon(wait=False)
    fleets.wait_for(
        lambda: not fleet.is_running("default") or fleet.status() is not None, "it starts, or says why it does not"
    )
    started = fleet.is_running("default")
    if not started:
        assert "DISK_FULL" in fleet.log("default")
    disk.free()
    if not started:
        with contextlib.suppress(AssertionError):
            fleet.wait_end("default")
        fleet.start_daemon()
    check_ended_once(fleet, jobs)


def submit_many(fleet: fleets.Fleet) -> None:
    """What is left of the pages in use takes a few."""
    for _ in range(50):
        fleet.client.submit_job({"name": "x" * 100, "role": "nobody", "payload": {"argv": ["true"]}})


@pytest.mark.parametrize("disk", ["var/lib/agentina-control-plane"], indirect=True)
def test_control_plane_without_room(fleet: fleets.Fleet, disk: SmallDisk) -> None:
    jobs = [start_held(fleet, number) for number in range(3)]
    disk.fill()
    with pytest.raises(errors.AgentinaError) as refused:
        submit_many(fleet)
    assert refused.value.code == "STORAGE_FULL"
    assert fleet.readiness()[0] == 507 or "STORAGE_FULL" in fleet.readiness()[1]
    (fleet.root / "gate").touch()
    fleets.wait_for(lambda: (fleet.status() or {}).get("reports_waiting"), "reports wait at the host")
    assert fleet.is_running("control-plane")
    disk.free()
    fleets.wait_for(fleet.is_ready, "the control plane is ready again")
    check_ended_once(fleet, jobs)
    assert fleet.document("audit", "verify")["whole"] is True
