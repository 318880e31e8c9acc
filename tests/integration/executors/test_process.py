"""Executor ``process`` with real processes: what a command sees, and hostile tasks."""
# Setting the stage blocks the loop, on purpose and for milliseconds.
# ruff: noqa: ASYNC220, ASYNC240

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentina import errors
from agentina.executors import process
from agentina.executors.contract import Condition, StopReason
from agentina.system import cgroups, files
from tests.fakes import deadlines, launches, mounts, procfs
from tests.integration.executors import drive


async def test_command_gets_exactly_its_environment_and_descriptors(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    script = (
        "env; pwd; ls /proc/self/fd | tr '\\n' ' '; cat; umask; grep -E 'SigIgn|SigBlk|NoNewPrivs' /proc/self/status"
    )
    launch = drive.shell(tmp_path, script, environment={"PATH": "/usr/bin:/bin", "SECRET": "s3cret"})
    assert (await drive.run(executor, launch)).exit_code == 0
    lines = drive.output(launch).decode().splitlines()
    variables = {line for line in lines if "=" in line}
    assert {"SECRET=s3cret", f"{process.MARKER}={launch.task_id}", "PATH=/usr/bin:/bin"} <= variables
    name = pwd.getpwuid(os.getuid()).pw_name
    assert {f"USER={name}", f"LOGNAME={name}", "SHELL=/bin/sh"} <= variables
    assert {line.split("=")[0] for line in variables} <= {
        "SECRET",
        process.MARKER,
        "PATH",
        "USER",
        "LOGNAME",
        "SHELL",
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
    }
    assert str(launch.workspace) in lines
    assert "0 1 2 3 63 0022" in lines  # 3 is the directory that ls reads, 63 the tether
    assert "NoNewPrivs:\t1" in lines
    assert "SigBlk:\t0000000000000000" in lines
    ignored = next(line for line in lines if line.startswith("SigIgn:"))
    # 32 and 33 are glibc's own: its posix_spawn, which make uses, has them ignored, and no program can change that.
    assert int(ignored.split()[1], 16) & ~(1 << 31 | 1 << 32) == 0


async def test_secrets_are_in_no_command_line_of_ours(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "sleep 1000", environment={"PATH": "/bin", "SECRET": "hunter2-in-environment"})
    await executor.start(launch)
    assert not any(b"hunter2-in-environment" in line for line in procfs.command_lines().values())
    assert not any(b"hunter2" in path.read_bytes() for path in launch.directory.iterdir() if path.is_file())
    executor.stop(launch.directory, StopReason.CANCELED)
    await drive.ended(executor, launch.directory)


async def test_output_is_kept_byte_for_byte(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = launches.make(tmp_path, sys.executable, "-c", "import os; os.write(1, bytes(range(256)) * 40)")
    assert (await drive.run(executor, launch)).exit_code == 0
    assert drive.output(launch) == bytes(range(256)) * 40


async def test_processor_time_of_a_running_task_is_known(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    busy = drive.shell(tmp_path, "(while :; do :; done) & sleep 600")
    await executor.start(busy)
    # That of its children too, and it only grows.
    await drive.until(lambda: (executor.cpu_seconds(busy.directory) or 0) > 0.2)
    executor.stop(busy.directory, StopReason.CANCELED)
    await drive.ended(executor, busy.directory)
    assert executor.cpu_seconds(busy.directory) is None


async def test_large_command_line_and_environment(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    arguments = ["x" * 1000] * 900
    launch = launches.make(
        tmp_path, "/bin/sh", "-c", 'echo $# ${#BIG} "$NAME"', "sh", *arguments,
        environment={"BIG": "y" * 100_000, "NAME": "é\udcff"},
    )  # fmt: skip
    assert (await drive.run(executor, launch)).exit_code == 0
    assert drive.output(launch) == b"900 100000 \xc3\xa9\xff\n"


async def test_too_large_a_command_line_is_a_result(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    result = await drive.run(executor, launches.make(tmp_path, "/bin/echo", *["x" * 100_000] * 60))
    assert result.phase == "start"
    assert "longer than the kernel takes" in result.start_error


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["/nonexistent/program"], "No such file"), (["./plain"], "Permission denied"), (["/tmp"], "Permission denied")],
)
async def test_what_cannot_be_executed_is_said(
    executor: process.ProcessExecutor, tmp_path: Path, argv: list[str], says: str
) -> None:
    launch = launches.make(tmp_path, *argv)
    (launch.workspace / "plain").write_text("text")
    result = await drive.run(executor, launch)
    assert (result.phase, result.exit_code) == ("start", None)
    assert says in result.start_error


async def test_missing_workspace_is_a_result(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "true")
    launch.workspace.rmdir()
    assert "workspace cannot be entered" in (await drive.run(executor, launch)).start_error


async def test_task_directory_that_is_not_there_is_an_error(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "true")
    shutil.rmtree(launch.directory)
    with pytest.raises(errors.AgentinaError) as caught:
        await executor.start(launch)
    assert caught.value.code == "TASK_START_FAILED"


async def test_usage_is_measured(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    burn = "import time, os; x = b'x' * (60 << 20); t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    result = await drive.run(executor, launches.make(tmp_path, sys.executable, "-c", burn))
    assert result.usage.cpu_seconds is not None
    assert 0.25 < result.usage.cpu_seconds < 3
    assert result.usage.memory_peak_bytes is not None
    assert 60 << 20 < result.usage.memory_peak_bytes < 200 << 20


async def test_grandchildren_in_their_own_sessions_are_ended(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(
        tmp_path, "setsid sh -c 'sleep 1000 & setsid sleep 1000' & (setsid sleep 1000 &) ; sleep 0.2; exit 0"
    )
    result = await drive.run(executor, launch)
    assert (result.exit_code, drive.of_task(launch)) == (0, [])


async def test_stopped_task_is_ended(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "kill -STOP $$", grace_seconds=600.0)
    running = await executor.start(launch)
    await drive.until(lambda: b"T (stopped)" in Path(f"/proc/{running.pid}/status").read_bytes())
    executor.stop(launch.directory, StopReason.CANCELED)
    assert (await drive.ended(executor, launch.directory)).signal == "SIGTERM"


@pytest.mark.parametrize("without_cgroup", [False, True])
@pytest.mark.parametrize("bomb", ["f() { f & f & sleep 1000; }; f", "f() { f | f & }; f"])
async def test_fork_bomb_is_bounded_and_gone(
    executor: process.ProcessExecutor, tmp_path: Path, *, bomb: str, without_cgroup: bool
) -> None:
    executor._delegation = None if without_cgroup else cgroups.find()
    launch = drive.shell(tmp_path, f"sleep 0.3; {bomb}; sleep 1000", pids=100, timeout_seconds=5.0, grace_seconds=0.1)
    await executor.start(launch)
    # How long it takes is the bomb's and the machine's matter: hundreds of processes want the supervisor's share.
    result = await drive.ended(executor, launch.directory)
    # One whose processes live too short to be many at once ends with its time.
    assert result.stopped in {StopReason.PROCESS_LIMIT, StopReason.TIME_LIMIT}
    assert drive.of_task(launch) == []


async def test_endless_writer_is_bounded(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "sleep 0.3; exec yes", output_bytes=100_000)
    result = await drive.run(executor, launch)
    assert (result.stopped, result.output_truncated) == (StopReason.OUTPUT_LIMIT, True)
    assert drive.output(launch) == b"y\n" * 50_000


async def test_memory_hog_is_ended_and_the_peak_told(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    hog = "import time\nx = []\nwhile True: x.append(b'x' * (4 << 20)); time.sleep(0.02)"
    launch = launches.make(tmp_path, sys.executable, "-c", hog, memory_bytes=80 << 20)
    result = await drive.run(executor, launch)
    assert (result.stopped, result.oom) == (StopReason.MEMORY_LIMIT, "full")
    assert result.usage.memory_peak_bytes is not None
    assert 80 << 20 < result.usage.memory_peak_bytes < 400 << 20


async def test_shared_memory_is_counted_once(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    fork = "import os, time\nx = b'x' * (60 << 20)\n"
    fork += "for i in range(4):\n os.fork() or (time.sleep(1), os._exit(0))\ntime.sleep(1.2)"
    launch = launches.make(tmp_path, sys.executable, "-c", fork, memory_bytes=150 << 20)
    result = await drive.run(executor, launch)
    assert (result.exit_code, result.stopped) == (0, StopReason.NONE)


async def test_disk_limit(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(
        tmp_path, "mkdir a; dd if=/dev/zero of=a/big bs=1M count=64 2>&1; sleep 1000", disk_bytes=10 << 20
    )
    result = await drive.run(executor, launch)
    assert result.stopped is StopReason.DISK_LIMIT


@pytest.mark.parametrize(
    "remove", ["rm ../output.log", "rm ../output.log; echo forged > ../output.log", "mv ../output.log x"]
)
async def test_removed_output_is_restored(executor: process.ProcessExecutor, tmp_path: Path, remove: str) -> None:
    launch = drive.shell(tmp_path, f"echo before; {remove}; echo after")
    result = await drive.run(executor, launch)
    assert drive.output(launch) == b"before\nafter\n"
    assert "restored" in result.detail


async def test_result_forged_by_the_task_does_not_count(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(
        tmp_path, f'echo \'{{"task_id":"x","exit_code":0}}\' > ../result.json; {drive.UNTIL_GO}; exit 9'
    )
    await executor.start(launch)
    await drive.until((launch.directory / "result.json").exists)
    assert executor.adopt(launch.directory)[0] is Condition.RUNNING
    drive.go(launch)
    assert (await drive.ended(executor, launch.directory)).exit_code == 9


@pytest.mark.parametrize(
    "spoil", ["mkdir ../result.json ../result.json/x", "chmod 0 ..", "ln -s /dev/full ../result.json"]
)
async def test_result_is_written_whatever_the_task_put_in_its_place(
    executor: process.ProcessExecutor, tmp_path: Path, spoil: str
) -> None:
    launch = drive.shell(tmp_path, f"{spoil} && exit 3")
    assert (await drive.run(executor, launch)).exit_code == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_full_disk_delays_the_result_and_loses_nothing(tmp_path: Path) -> None:
    with mounts.small(tmp_path / "small", "size=256k") as small:
        executor = process.ProcessExecutor(tmp_path)
        await executor.open()
        launch = drive.shell(small, "echo kept; cat /dev/zero > filler; exit 5")
        await executor.start(launch)
        await drive.until(lambda: (launch.workspace / "filler").exists() and drive.of_task(launch) == [])
        await asyncio.sleep(0.3)
        assert executor.adopt(launch.directory)[0] is Condition.RUNNING
        assert executor.read_result(launch.directory) is None
        (launch.workspace / "filler").unlink()
        assert (await drive.ended(executor, launch.directory)).exit_code == 5
        assert drive.output(launch).startswith(b"kept\n")
        await executor.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_no_room_for_the_fence_is_no_fault_of_the_task(tmp_path: Path) -> None:
    with mounts.small(tmp_path / "small", "nr_inodes=16") as small:
        executor = process.ProcessExecutor(tmp_path)
        await executor.open()
        launch = drive.shell(small, "exit 5")
        fillers = [small / f"filler-{number}" for number in range(16)]
        with contextlib.suppress(OSError):
            for filler in fillers:
                filler.touch()
        with pytest.raises(errors.AgentinaError) as caught:
            await executor.start(launch)
        assert caught.value.code == "DISK_FULL"
        assert executor.adopt(launch.directory)[0] is Condition.UNSTARTED
        for filler in fillers:
            filler.unlink(missing_ok=True)
        assert (await drive.run(executor, launch)).exit_code == 5
        await executor.close()


async def test_a_result_that_cannot_be_looked_at_is_not_taken_for_none(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.shell(tmp_path, "exit 3")
    await drive.run(executor, launch)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(errors.AgentinaError, match="STATE_UNWRITABLE"):
            executor.read_result(launch.directory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    result = executor.read_result(launch.directory)
    assert result is not None
    assert result.exit_code == 3


async def test_killed_command_is_reported(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "exec sleep 1000")
    running = await executor.start(launch)
    os.kill(running.pid, signal.SIGKILL)
    result = await drive.ended(executor, launch.directory)
    assert (result.signal, result.exit_code, result.stopped) == ("SIGKILL", None, StopReason.NONE)


async def test_terminal_interrupt_does_not_reach_tasks(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "sleep 0.5; exit 4")
    await executor.start(launch)
    nursery_before = drive.nursery_of(executor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(nursery_before, number)
    assert os.getsid(nursery_before) != os.getsid(0)
    assert (await drive.ended(executor, launch.directory)).exit_code == 4
    assert drive.nursery_of(executor) == nursery_before
    assert Path(f"/proc/{nursery_before}").exists()


async def test_sigterm_without_an_order_is_a_host_shutdown(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "exec sleep 1000")
    await executor.start(launch)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGTERM)
    assert (await drive.ended(executor, launch.directory)).stopped is StopReason.HOST_SHUTDOWN


async def test_reused_process_id_is_not_taken_for_the_supervisor(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.shell(tmp_path, "true")
    await drive.run(executor, launch)
    bystander = subprocess.Popen(["sleep", "1000"])
    fence = json.dumps({"task_id": launch.task_id, "pid": bystander.pid, "main_pid": bystander.pid})
    (launch.directory / "supervisor").write_text(fence)
    (launch.directory / "result.json").unlink()
    executor.stop(launch.directory, StopReason.CANCELED)
    await asyncio.wait_for(executor.wait(launch.directory), deadlines.HANG)
    assert executor.adopt(launch.directory) == (Condition.VANISHED, None)
    assert executor.end_leftovers(launch.directory) == 0
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


async def test_supervision_is_small(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "exec sleep 1000")
    await executor.start(launch)
    pid = process.read_fence(launch.directory).pid
    await asyncio.sleep(0.5)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert private < 3 << 10, f"{private} KiB"
    executor.stop(launch.directory, StopReason.CANCELED)
    await drive.ended(executor, launch.directory)


async def test_fifos_in_the_place_of_what_was_written_down_hold_nobody_up(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    for name in ("supervisor", "result.json", "stop"):
        os.mkfifo(tmp_path / name)
    assert executor.adopt(tmp_path) == (Condition.VANISHED, None)
    assert process.read_fence(tmp_path).pid == 0
    executor.stop(tmp_path, StopReason.CANCELED)


async def test_task_that_cannot_be_looked_at_is_not_taken_for_ended(
    executor: process.ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()
    faults = [OSError(errno.EMFILE, "too many open files"), OSError(errno.ENOMEM, "no memory")]

    def look(_: Path) -> bool:
        if faults:
            raise faults.pop()
        looked.set()
        return False

    monkeypatch.setattr(files, "is_locked", look)
    async with asyncio.timeout(deadlines.HANG):
        await executor.wait(tmp_path)
    assert looked.is_set()
