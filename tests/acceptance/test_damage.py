"""Torn and corrupted files, on the host and at the control plane: detected, set aside, reported; the rest goes on."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.protocol.states import State
from agentina.system import paths
from tests.acceptance import fleet as fleets


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path, heartbeat_seconds=1.0) as started:
        started.install("default", "--max-concurrent-tasks", "4")
        started.start_daemon()
        yield started


@pytest.fixture
def where(fleet: fleets.Fleet) -> paths.InstancePaths:
    return fleet.layout.instance("default")


Damage = Callable[[Path], None]


class Held:
    """A running job that waits for its gate, then prints a second half and leaves a file."""

    def __init__(self, fleet: fleets.Fleet, name: str) -> None:
        self._fleet = fleet
        self._gate = fleet.root / f"gate-{name}"
        marks = fleet.root / f"marks-{name}"
        script = (
            f"echo x >> {marks}; seq 20000; until [ -e {self._gate} ]; do sleep 0.02; done; seq 20000; seq 30000 > left"
        )
        self.job = fleet.submit_script(script, artifacts=["left"], resources={"memory": "16MiB"})
        self._marks = marks
        self.pid = fleet.wait_state(self.job, State.RUNNING).tasks[0].pid or 0
        half = seq(20000)
        fleets.wait_for(lambda: fleet.output(self.job) == half, "the first half has arrived")
        record = fleet.layout.instance("default").tasks / f"{self.job}.1" / "job.json"
        fleets.wait_for(record.exists, "the copy of its record is written")

    def check_ends_well(self) -> None:
        """It ran once, in one process, and everything of it arrives."""
        self._gate.touch()
        view = self._fleet.wait_final(self.job)
        assert view.job.state is State.SUCCEEDED, view.job
        assert [task.pid for task in view.tasks] == [self.pid]
        assert self._fleet.output(self.job) == seq(20000) * 2
        pieces: list[bytes] = []
        self._fleet.client.read_artifact(self.job, "left", pieces.append)
        assert b"".join(pieces) == seq(30000)
        assert self._marks.read_text() == "x\n"


def seq(last: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, last + 1))


def tear(path: Path) -> None:
    """Keep half, as a write that a power cut interrupted."""
    os.truncate(path, path.stat().st_size // 2)


def scramble(path: Path) -> None:
    """The same size, other bytes."""
    path.write_bytes(bytes(byte ^ 0x5A for byte in path.read_bytes()))


@pytest.mark.parametrize("damage", [tear, scramble, Path.unlink])
def test_record_of_a_running_task(fleet: fleets.Fleet, where: paths.InstancePaths, damage: Damage) -> None:
    held = Held(fleet, "a")
    fleet.kill("default")
    damage(where.tasks / f"{held.job}.1" / "job.json")
    fleet.start_daemon()
    held.check_ends_well()  # the outbox has the same record


@pytest.mark.parametrize("damage", [tear, scramble])
def test_outbox(fleet: fleets.Fleet, where: paths.InstancePaths, damage: Damage) -> None:
    held = Held(fleet, "a")
    fleet.stop("default")  # puts everything into the one file
    damage(where.outbox / "outbox.db")
    fleet.start_daemon()
    fleets.wait_for(lambda: "STATE_CORRUPT" in fleet.problems(), "status tells")
    assert [path for path in where.outbox.iterdir() if path.name.startswith("outbox.db.")]
    held.check_ends_well()
    assert fleet.wait_final(fleet.submit(["true"])).job.state is State.SUCCEEDED


@pytest.mark.parametrize("damage", [tear, scramble])
def test_journal_of_the_outbox(fleet: fleets.Fleet, where: paths.InstancePaths, damage: Damage) -> None:
    """SQLite takes what is left of a journal for all there was: as if the last commits had never been."""
    held = Held(fleet, "a")
    fleet.kill("default")
    damage(where.outbox / "outbox.db-wal")
    fleet.start_daemon()
    held.check_ends_well()


def test_record_and_outbox_together_lose_one_task_only(fleet: fleets.Fleet, where: paths.InstancePaths) -> None:
    lost, kept = Held(fleet, "lost"), Held(fleet, "kept")
    fleet.kill("default")
    for path in where.outbox.glob("outbox.db*"):
        path.unlink()
    scramble(where.tasks / f"{lost.job}.1" / "job.json")
    fleet.start_daemon()
    kept.check_ends_well()
    fleets.wait_for(lambda: not fleets.is_alive(lost.pid), "the process nobody can account for is ended")
    fleets.wait_for(lambda: fleet.job(lost.job).tasks[0].state is State.LOST, "it is reported lost")
    (fleet.root / "gate-lost").touch()
    view = fleet.wait_final(lost.job)
    assert view.job.state is State.SUCCEEDED, "lost attempts are repeated"
    assert len(view.tasks) == 2


@pytest.mark.parametrize("damage", [tear, scramble])
def test_license(fleet: fleets.Fleet, where: paths.InstancePaths, damage: Damage) -> None:
    held = Held(fleet, "a")
    content = where.license.read_bytes()
    fleet.kill("default")
    damage(where.license)
    fleet.start_daemon()
    assert "LICENSE_INVALID" in fleet.problems()
    assert fleet.run("status").returncode == 1
    waiting = fleet.submit(["true"])
    held.check_ends_well()  # no new work, but what runs goes on
    assert fleet.job(waiting).job.state is State.QUEUED
    where.license.write_bytes(content)
    fleet.stop("default")
    fleet.start_daemon()
    assert fleet.wait_final(waiting).job.state is State.SUCCEEDED


@pytest.mark.parametrize("name", ["config", "identity"])
@pytest.mark.parametrize("damage", [tear, scramble])
def test_what_the_daemon_cannot_start_without(
    fleet: fleets.Fleet, where: paths.InstancePaths, name: str, damage: Damage
) -> None:
    held = Held(fleet, "a")
    path: Path = getattr(where, name)
    content = path.read_bytes()
    fleet.kill("default")
    damage(path)
    refused = fleet.run("daemon")
    assert refused.returncode not in {0, int(errors.Exit.INTERNAL)}, refused.stderr
    assert str(path) in refused.stderr
    assert "remedy:" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert fleet.run("status").returncode not in {0, int(errors.Exit.INTERNAL)}
    assert fleets.is_alive(held.pid)
    path.write_bytes(content)
    fleet.start_daemon()
    held.check_ends_well()


def test_policy(fleet: fleets.Fleet) -> None:
    held = Held(fleet, "a")
    fleet.layout.policy_file.write_bytes(b"executables: [\xff\xfe")
    os.kill(fleet.pid("default"), signal.SIGHUP)
    fleets.wait_for(fleet.problems, "status tells")
    assert fleet.run("status").returncode == 1
    held.check_ends_well()
    fleet.layout.policy_file.unlink()
    os.kill(fleet.pid("default"), signal.SIGHUP)
    fleets.wait_for(lambda: not fleet.problems(), "the owner has put it right")
    assert fleet.wait_final(fleet.submit(["true"])).job.state is State.SUCCEEDED


def blobs_of(fleet: fleets.Fleet, kind: str, task: str) -> Path:
    fan = hashlib.blake2s(task.encode(), digest_size=1).hexdigest()
    return fleet.data / "blobs" / kind / fan / task


@pytest.mark.parametrize("change", [-1000, -(10**9), 1000])
def test_output_stored_in_part_or_too_far(fleet: fleets.Fleet, change: int) -> None:
    """A power cut at the control plane: the file is shorter than was told, or has a tail that nobody was told of."""
    held = Held(fleet, "a")
    fleet.kill("control-plane")
    path = blobs_of(fleet, "output", f"{held.job}.1")
    if change < 0:
        os.truncate(path, max(0, path.stat().st_size + change))
    else:
        with path.open("ab") as file:
            file.write(seq(20000)[:change])  # what it goes on with, so that the sender's offsets fit
    fleet.start_control_plane()
    held.check_ends_well()


def test_artifact_stored_wrongly_in_part(fleet: fleets.Fleet) -> None:
    held = Held(fleet, "a")
    directory = blobs_of(fleet, "artifacts", f"{held.job}.1")
    directory.mkdir(parents=True)
    (directory / (hashlib.sha256(b"left").hexdigest() + ".part")).write_bytes(b"garbage" * 1000)
    held.check_ends_well()


def test_database_of_the_control_plane(fleet: fleets.Fleet) -> None:
    """Nothing is set aside by itself here: who the agents are is in it. The start is refused with a remedy."""
    held = Held(fleet, "a")
    fleet.stop("control-plane")
    database = next(path for path in fleet.data.iterdir() if path.suffix in {".db", ".sqlite"})
    content = database.read_bytes()
    database.write_bytes(b"\0" * 4096 + content[4096:])
    arguments = ("--data", str(fleet.data), "--listen", f"127.0.0.1:{fleet.port}")
    refused = fleet.run("control-plane", "serve", *arguments)
    assert refused.returncode not in {0, int(errors.Exit.INTERNAL)}, refused.stderr
    assert "remedy:" in refused.stderr
    assert "Traceback" not in refused.stderr
    database.write_bytes(content)
    fleet.start_control_plane()
    held.check_ends_well()
