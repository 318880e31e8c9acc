"""A daemon that is killed while its tasks go on elsewhere: nothing is lost, and nothing done twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agentina.client import local
from agentina.host.trees import archives
from agentina.protocol import wire
from agentina.protocol.states import State
from tests.fakes import control
from tests.integration.host.daemons import DaemonProcess

SCRIPT = "echo begun >> log; head -c 3000000 /dev/urandom > data; echo ready; sleep 1000"


async def run_and_drain(daemon: DaemonProcess, plane: control.FakeControl) -> control.Task:
    task = plane.submit(SCRIPT, checkpoint={"every": 0}, limits={"grace": 1})
    await plane.until(lambda: b"ready" in task.output)
    await asyncio.to_thread(local.ask, daemon.instance, "drain", move=True)
    return task


def check(plane: control.FakeControl, task: control.Task, tmp_path: Path, state: State = State.CHECKPOINTED) -> None:
    assert task.outcome is not None
    assert task.outcome.state is state, task.outcome
    assert task.kinds.count("finished") == 1
    (info,) = task.outcome.artifacts
    stored, content = task.artifacts[info.name]
    assert stored == info
    (tmp_path / "stored.tar").write_bytes(content)
    (tmp_path / "unpacked").mkdir()
    archives.unpack(tmp_path / "stored.tar", {"workspace": tmp_path / "unpacked"}, limit=1 << 23)
    assert (tmp_path / "unpacked/log").read_text() == "begun\n"
    assert (tmp_path / "unpacked/data").stat().st_size == 3_000_000
    assert set(plane.tasks) == {task.id}


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.2])
async def test_daemon_is_killed_on_the_way(
    daemon: DaemonProcess, plane: control.FakeControl, tmp_path: Path, pause: float
) -> None:
    """Before its task has ended, while it packs, while it sends: whatever the pause hits on this machine."""
    task = await run_and_drain(daemon, plane)
    await asyncio.sleep(pause)
    await daemon.kill()
    await daemon.start()
    await plane.until_ended(task)
    check(plane, task, tmp_path)


async def test_daemon_is_killed_in_the_middle_of_sending(
    daemon: DaemonProcess, plane: control.FakeControl, tmp_path: Path
) -> None:
    plane.faults.append(control.Fault(503, "/artifacts/", times=1_000_000))
    task = await run_and_drain(daemon, plane)
    await plane.until(lambda: bool(task.artifacts) and plane.faults[0].times < 1_000_000)
    await daemon.kill()
    plane.faults.clear()
    await daemon.start()
    await plane.until_ended(task)
    check(plane, task, tmp_path)


async def test_task_that_goes_on_is_furnished_again_after_a_kill(
    daemon: DaemonProcess, plane: control.FakeControl, tmp_path: Path
) -> None:
    """Killed while it brings the checkpoint: the next daemon brings it again, and the files are there."""
    first = await run_and_drain(daemon, plane)
    await plane.until_ended(first)
    check(plane, first, tmp_path)
    plane.faults.append(control.Fault(503, "/checkpoint?", times=1_000_000))
    await asyncio.to_thread(local.ask, daemon.instance, "resume")
    second = plane.go_on(first)
    await plane.until(lambda: plane.faults[0].times < 1_000_000)
    await daemon.kill()
    plane.faults.clear()
    await daemon.start()
    await plane.until(lambda: b"ready" in second.output)
    assert (daemon.instance.tasks / second.id / "workspace/log").read_text() == "begun\nbegun\n"
    assert any("goes on from checkpoint-000001.tar" in note for note in second.notes)


async def test_task_whose_lease_ran_out_leaves_a_checkpoint(
    daemon: DaemonProcess, plane: control.FakeControl, tmp_path: Path
) -> None:
    """The control plane is away for longer, and takes it afterwards."""
    plane.directives = msgspec.structs.replace(plane.directives, lease_seconds=10.0)
    await daemon.kill()
    await daemon.start()  # a session keeps the length it began with
    task = plane.submit(SCRIPT, checkpoint={"every": 0})
    await plane.until(lambda: b"ready" in task.output)
    await plane.go_away()
    await plane.until((daemon.instance.tasks / task.id / "result.json").exists)
    await plane.listen()
    await plane.until_ended(task)
    check(plane, task, tmp_path, State.LOST)


async def test_what_is_no_checkpoint_is_no_end(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    first = await run_and_drain(daemon, plane)
    await plane.until_ended(first)
    (info,) = first.outcome.artifacts if first.outcome is not None else []
    first.artifacts[info.name][1][:] = b"x" * info.size
    await asyncio.to_thread(local.ask, daemon.instance, "resume")
    second = plane.go_on(first)
    await plane.until(lambda: b"ready" in second.output)
    assert (daemon.instance.tasks / second.id / "workspace/log").read_text() == "begun\n"
    await plane.until(lambda: any("begins anew" in note for note in second.notes))
    assert isinstance(second.origin, wire.Origin)
