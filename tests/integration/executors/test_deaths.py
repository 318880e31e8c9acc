"""A kill -9 of every process of ours: daemon, nursery, supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentina import errors
from agentina.executors import nursery, process
from agentina.executors.contract import Condition, StopReason
from agentina.system import files, processes
from tests.fakes import deadlines
from tests.integration.executors import drive


async def test_killed_supervisor_takes_its_command_along_and_the_rest_is_found(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.shell(tmp_path, "setsid sleep 1000 & sleep 1000")
    running = await executor.start(launch)
    await drive.until(lambda: len(drive.of_task(launch)) >= 3)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    await drive.until(lambda: not Path(f"/proc/{running.pid}").exists())
    await asyncio.to_thread(executor.end_leftovers, launch.directory)
    assert drive.of_task(launch) == []


async def test_command_outlives_nobody_when_supervisor_and_nursery_are_killed(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.shell(tmp_path, "trap '' HUP TERM; sleep 1000 & exec sleep 1000")
    running = await executor.start(launch)
    await drive.until(lambda: len(drive.of_task(launch)) >= 2)
    # Stopped, it cannot do what it would for its supervisor; so it is the kernel that ends the group.
    nursery_id = drive.nursery_of(executor)
    os.kill(nursery_id, signal.SIGSTOP)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    try:
        await drive.until(lambda: drive.of_task(launch) == [])
    finally:
        os.kill(nursery_id, signal.SIGKILL)
    await executor.wait(launch.directory)
    await drive.until(lambda: not Path(f"/proc/{running.pid}").exists())
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED


async def test_killed_nursery_is_replaced_and_running_tasks_go_on(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    before = drive.shell(tmp_path, f"{drive.UNTIL_GO}; echo alive", name="before")
    await executor.start(before)
    os.kill(drive.nursery_of(executor), signal.SIGKILL)
    after = drive.shell(tmp_path, "echo new", name="after")
    assert (await drive.run(executor, after)).exit_code == 0
    drive.go(before)
    assert (await drive.ended(executor, before.directory)).exit_code == 0
    assert drive.output(before) == b"alive\n"


async def test_nursery_killed_among_many_starts_runs_each_once(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    made = [drive.shell(tmp_path, f"echo {number} >> {count}", name=f"task{number}") for number in range(60)]
    starting = [asyncio.ensure_future(executor.start(launch)) for launch in made]  # noqa: TID251 - gathered below
    for _ in range(3):
        await asyncio.sleep(0.02)
        current = executor._pool._nursery
        if current is not None and current.pid and not current.gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(current.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*starting, return_exceptions=True)
    for launch in made:
        await executor.wait(launch.directory)
    lines = count.read_text().split()
    assert len(lines) == len(set(lines))
    for number, (launch, outcome) in enumerate(zip(made, outcomes, strict=True)):
        condition, _ = executor.adopt(launch.directory)
        ran = str(number) in lines
        assert condition in ({Condition.ENDED} if ran else {Condition.UNSTARTED, Condition.VANISHED})
        if condition is Condition.UNSTARTED:
            assert isinstance(outcome, errors.AgentinaError)


async def test_spare_killed_while_it_waits_costs_no_start(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    await drive.until(lambda: len(drive.free_of(executor)) == 1)
    os.kill(drive.free_of(executor)[0], signal.SIGKILL)
    assert (await drive.run(executor, drive.shell(tmp_path, "exit 3"))).exit_code == 3


async def test_spare_killed_with_the_task_on_its_way_costs_no_start(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.shell(tmp_path, "echo ran >> ../ran")
    spare, starting = await drive.start_stopped(executor, launch)
    assert executor.adopt(launch.directory)[0] is Condition.UNSTARTED
    os.kill(spare, signal.SIGKILL)
    await starting
    assert (await drive.ended(executor, launch.directory)).exit_code == 0
    assert (launch.directory / "ran").read_text() == "ran\n"


async def test_supervisor_killed_between_fence_and_start_is_no_second_start(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.long_start(tmp_path)
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await drive.until(lambda: process.read_fence(launch.directory).pid)
    assert executor.adopt(launch.directory)[0] is Condition.RUNNING
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    await starting
    await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    with pytest.raises(errors.AgentinaError) as raised:
        await executor.start(launch)
    assert raised.value.code == errors.STATE_CONFLICT.code
    assert not (launch.directory / "ran").exists()


async def test_spare_ends_with_a_killed_nursery(executor: process.ProcessExecutor) -> None:
    await drive.until(lambda: len(drive.free_of(executor)) == 1)
    spare = processes.open_pidfd(drive.free_of(executor)[0])
    assert spare is not None
    watch = processes.Watch(spare)
    os.kill(drive.nursery_of(executor), signal.SIGKILL)
    async with asyncio.timeout(deadlines.HANG):
        await watch.wait()


async def test_nursery_killed_with_the_task_on_its_way_starts_it_once(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.shell(tmp_path, "echo ran >> ../ran")
    spare, starting = await drive.start_stopped(executor, launch)
    os.kill(drive.nursery_of(executor), signal.SIGKILL)
    await asyncio.sleep(0.05)
    os.kill(spare, signal.SIGCONT)
    await starting
    assert (await drive.ended(executor, launch.directory)).exit_code == 0
    assert (launch.directory / "ran").read_text() == "ran\n"


async def test_what_a_killed_supervisor_leaves_is_ended_without_a_daemon(tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "setsid sleep 1000 & (setsid sleep 1000 &); sleep 1000")
    other = drive.shell(tmp_path, "sleep 0.7; exit 4", name="other")
    for each in (launch, other):
        state = each.directory / "state"
        state.mkdir()
        daemon = drive.daemon_runs(state, each)
        assert daemon.stdout is not None
        daemon.stdout.readline()
        drive.kill(daemon)
    await drive.until(lambda: len(drive.of_task(launch)) >= 4)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    await drive.until(lambda: not drive.of_task(launch))
    executor = process.ProcessExecutor(tmp_path)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    assert (await drive.ended(executor, other.directory)).exit_code == 4
    await executor.close()


async def test_supervisor_of_a_gone_daemon_ends_with_its_task(tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "sleep 0.5")
    daemon = drive.daemon_runs(tmp_path, launch)
    assert daemon.stdout is not None
    daemon.stdout.readline()
    pid = process.read_fence(launch.directory).pid
    drive.kill(daemon)
    await drive.until((launch.directory / "result.json").exists)
    await drive.until(lambda: not Path(f"/proc/{pid}").exists())


async def test_nursery_whose_daemon_is_gone_ends_quietly(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    argv = [sys.executable, "-I", "-S", nursery.__file__, str(theirs.fileno()), str(tmp_path / "lock")]
    done = await asyncio.to_thread(
        subprocess.run, argv, pass_fds=[theirs.fileno()], capture_output=True, timeout=deadlines.HANG, check=False
    )
    theirs.close()
    assert (done.returncode, done.stderr) == (0, b"")


async def test_killed_daemon_leaves_the_task_to_the_next_one(tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, f"{drive.UNTIL_GO}; echo finished; exit 7")
    daemon = drive.daemon_runs(tmp_path, launch)
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    drive.kill(daemon)
    executor = process.ProcessExecutor(tmp_path)
    await executor.open()
    condition, running = executor.adopt(launch.directory)
    assert (condition, running and running.pid) == (Condition.RUNNING, pid)
    drive.go(launch)
    assert (await drive.ended(executor, launch.directory)).exit_code == 7
    assert drive.output(launch) == b"finished\n"
    await executor.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timeout_seconds": 0.5}, StopReason.TIME_LIMIT),
        ({"lease": 1.0}, StopReason.LEASE_EXPIRED),
        ({"output_bytes": 10}, StopReason.OUTPUT_LIMIT),
    ],
)
async def test_limits_hold_without_a_daemon(tmp_path: Path, changes: dict[str, float], reason: StopReason) -> None:
    if "lease" in changes:
        changes = {"lease_deadline": drive.boot() + changes["lease"]}
    launch = drive.shell(tmp_path, "sleep 0.3; echo more than ten bytes; sleep 1000", grace_seconds=0.2, **changes)
    daemon = drive.daemon_runs(tmp_path, launch)
    assert daemon.stdout is not None
    daemon.stdout.readline()
    drive.kill(daemon)
    await drive.until((launch.directory / "result.json").exists)
    result = process.ProcessExecutor(tmp_path).read_result(launch.directory)
    assert result is not None
    assert result.stopped is reason
    assert drive.of_task(launch) == []


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
async def test_daemon_killed_at_any_point_of_a_start_runs_it_at_most_once(tmp_path: Path, delay: float) -> None:
    count = tmp_path / "count"
    launch = drive.shell(tmp_path, f"echo x >> {count}")
    daemon = drive.daemon_runs(tmp_path, launch)
    time.sleep(delay)  # noqa: ASYNC251 - the moment of the kill is the point
    drive.kill(daemon)
    executor = process.ProcessExecutor(tmp_path)
    await executor.open()
    condition, _ = executor.adopt(launch.directory)
    if condition is Condition.UNSTARTED:
        await executor.start(launch)
    assert (await drive.ended(executor, launch.directory)).exit_code == 0
    assert count.read_text() == "x\n"
    await executor.close()


async def test_open_waits_for_the_nursery_of_an_earlier_daemon(tmp_path: Path) -> None:
    executor = process.ProcessExecutor(tmp_path)
    with files.exclusive_lock(tmp_path / "nursery.lock"):
        opening = asyncio.ensure_future(executor.open())  # noqa: TID251 - awaited below
        await asyncio.sleep(0.3)
        assert not opening.done()
    await opening
    await executor.close()
