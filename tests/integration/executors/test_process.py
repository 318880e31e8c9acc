"""Executor ``process`` with real processes: hostile tasks, and a kill -9 of every process of ours."""
# Setting the stage blocks the loop, on purpose and for milliseconds.
# ruff: noqa: ASYNC110, ASYNC220, ASYNC221, ASYNC240

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.executors import contract, nursery, pool, process, supervisor
from agentina.executors.contract import Condition, StopReason
from agentina.system import cgroups, clock, files, processes
from tests.fakes import deadlines, launches, procfs

ROOT = Path(__file__).parents[3]
boot = clock.SystemClock().boot


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[process.ProcessExecutor]:
    made = process.ProcessExecutor(tmp_path)
    await made.open()
    yield made
    await made.close()


def shell(parent: Path, script: str, **changes: Any) -> contract.Launch:
    return launches.make(parent, "/bin/sh", "-c", script, **changes)


#: What a task does until the test has seen what it wanted to see, and lets it :func:`go`.
UNTIL_GO = "until [ -e ../go ]; do sleep 0.02; done"


def go(*allowed: contract.Launch) -> None:
    for launch in allowed:
        (launch.directory / "go").touch()


async def ended(executor: process.ProcessExecutor, directory: Path, seconds: float = deadlines.HANG) -> contract.Result:
    async with asyncio.timeout(seconds):
        await executor.wait(directory)
    result = executor.read_result(directory)
    assert result is not None
    return result


async def run(executor: process.ProcessExecutor, launch: contract.Launch) -> contract.Result:
    await executor.start(launch)
    return await ended(executor, launch.directory)


def of_task(launch: contract.Launch) -> list[int]:
    return list(processes.with_variable(process.MARKER, launch.task_id))


async def until(condition: Callable[[], object], seconds: float = deadlines.HANG) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def nursery_of(executor: process.ProcessExecutor) -> int:
    current = executor._pool._nursery
    assert current is not None
    assert current.pid
    return current.pid


def output(launch: contract.Launch) -> bytes:
    return (launch.directory / "output.log").read_bytes()


# --- what a command sees ---------------------------------------------------------------------------------------------


async def test_command_gets_exactly_its_environment_and_descriptors(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    script = (
        "env; pwd; ls /proc/self/fd | tr '\\n' ' '; cat; umask; grep -E 'SigIgn|SigBlk|NoNewPrivs' /proc/self/status"
    )
    launch = shell(tmp_path, script, environment={"PATH": "/usr/bin:/bin", "SECRET": "s3cret"})
    assert (await run(executor, launch)).exit_code == 0
    lines = output(launch).decode().splitlines()
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
    launch = shell(tmp_path, "sleep 1000", environment={"PATH": "/bin", "SECRET": "hunter2-in-environment"})
    await executor.start(launch)
    assert not any(b"hunter2-in-environment" in line for line in procfs.command_lines().values())
    assert not any(b"hunter2" in path.read_bytes() for path in launch.directory.iterdir() if path.is_file())
    executor.stop(launch.directory, StopReason.CANCELED)
    await ended(executor, launch.directory)


async def test_output_is_kept_byte_for_byte(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = launches.make(tmp_path, sys.executable, "-c", "import os; os.write(1, bytes(range(256)) * 40)")
    assert (await run(executor, launch)).exit_code == 0
    assert output(launch) == bytes(range(256)) * 40


async def test_processor_time_of_a_running_task_is_known(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    busy = shell(tmp_path, "(while :; do :; done) & sleep 600")
    await executor.start(busy)
    # That of its children too, and it only grows.
    await until(lambda: (executor.cpu_seconds(busy.directory) or 0) > 0.2)
    executor.stop(busy.directory, StopReason.CANCELED)
    await ended(executor, busy.directory)
    assert executor.cpu_seconds(busy.directory) is None


async def test_large_command_line_and_environment(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    arguments = ["x" * 1000] * 900
    launch = launches.make(
        tmp_path, "/bin/sh", "-c", 'echo $# ${#BIG} "$NAME"', "sh", *arguments,
        environment={"BIG": "y" * 100_000, "NAME": "é\udcff"},
    )  # fmt: skip
    assert (await run(executor, launch)).exit_code == 0
    assert output(launch) == b"900 100000 \xc3\xa9\xff\n"


async def test_too_large_a_command_line_is_a_result(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    result = await run(executor, launches.make(tmp_path, "/bin/echo", *["x" * 100_000] * 60))
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
    result = await run(executor, launch)
    assert (result.phase, result.exit_code) == ("start", None)
    assert says in result.start_error


async def test_missing_workspace_is_a_result(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "true")
    launch.workspace.rmdir()
    assert "workspace cannot be entered" in (await run(executor, launch)).start_error


async def test_task_directory_that_is_not_there_is_an_error(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "true")
    shutil.rmtree(launch.directory)
    with pytest.raises(errors.AgentinaError) as caught:
        await executor.start(launch)
    assert caught.value.code == "TASK_START_FAILED"


async def test_usage_is_measured(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    burn = "import time, os; x = b'x' * (60 << 20); t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    result = await run(executor, launches.make(tmp_path, sys.executable, "-c", burn))
    assert result.usage.cpu_seconds is not None
    assert 0.25 < result.usage.cpu_seconds < 3
    assert result.usage.memory_peak_bytes is not None
    assert 60 << 20 < result.usage.memory_peak_bytes < 200 << 20


# --- hostile tasks ---------------------------------------------------------------------------------------------------


async def test_grandchildren_in_their_own_sessions_are_ended(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(
        tmp_path, "setsid sh -c 'sleep 1000 & setsid sleep 1000' & (setsid sleep 1000 &) ; sleep 0.2; exit 0"
    )
    result = await run(executor, launch)
    assert (result.exit_code, of_task(launch)) == (0, [])


async def test_stopped_task_is_ended(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "kill -STOP $$", grace_seconds=600.0)
    running = await executor.start(launch)
    await until(lambda: b"T (stopped)" in Path(f"/proc/{running.pid}/status").read_bytes())
    executor.stop(launch.directory, StopReason.CANCELED)
    assert (await ended(executor, launch.directory)).signal == "SIGTERM"


@pytest.mark.parametrize("without_cgroup", [False, True])
@pytest.mark.parametrize("bomb", ["f() { f & f & sleep 1000; }; f", "f() { f | f & }; f"])
async def test_fork_bomb_is_bounded_and_gone(
    executor: process.ProcessExecutor, tmp_path: Path, *, bomb: str, without_cgroup: bool
) -> None:
    executor._delegation = None if without_cgroup else cgroups.find()
    launch = shell(tmp_path, f"sleep 0.3; {bomb}; sleep 1000", pids=100, timeout_seconds=5.0, grace_seconds=0.1)
    await executor.start(launch)
    # How long it takes is the bomb's and the machine's matter: hundreds of processes want the supervisor's share.
    result = await ended(executor, launch.directory)
    # One whose processes live too short to be many at once ends with its time.
    assert result.stopped in {StopReason.PROCESS_LIMIT, StopReason.TIME_LIMIT}
    assert of_task(launch) == []


async def test_endless_writer_is_bounded(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "sleep 0.3; exec yes", output_bytes=100_000)
    result = await run(executor, launch)
    assert (result.stopped, result.output_truncated) == (StopReason.OUTPUT_LIMIT, True)
    assert output(launch) == b"y\n" * 50_000


async def test_memory_hog_is_ended_and_the_peak_told(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    hog = "import time\nx = []\nwhile True: x.append(b'x' * (4 << 20)); time.sleep(0.02)"
    launch = launches.make(tmp_path, sys.executable, "-c", hog, memory_bytes=80 << 20)
    result = await run(executor, launch)
    assert (result.stopped, result.oom) == (StopReason.MEMORY_LIMIT, "full")
    assert result.usage.memory_peak_bytes is not None
    assert 80 << 20 < result.usage.memory_peak_bytes < 400 << 20


async def test_shared_memory_is_counted_once(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    fork = "import os, time\nx = b'x' * (60 << 20)\n"
    fork += "for i in range(4):\n os.fork() or (time.sleep(1), os._exit(0))\ntime.sleep(1.2)"
    launch = launches.make(tmp_path, sys.executable, "-c", fork, memory_bytes=150 << 20)
    result = await run(executor, launch)
    assert (result.exit_code, result.stopped) == (0, StopReason.NONE)


async def test_disk_limit(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "mkdir a; dd if=/dev/zero of=a/big bs=1M count=64 2>&1; sleep 1000", disk_bytes=10 << 20)
    result = await run(executor, launch)
    assert result.stopped is StopReason.DISK_LIMIT


@pytest.mark.parametrize(
    "remove", ["rm ../output.log", "rm ../output.log; echo forged > ../output.log", "mv ../output.log x"]
)
async def test_removed_output_is_restored(executor: process.ProcessExecutor, tmp_path: Path, remove: str) -> None:
    launch = shell(tmp_path, f"echo before; {remove}; echo after")
    result = await run(executor, launch)
    assert output(launch) == b"before\nafter\n"
    assert "restored" in result.detail


async def test_result_forged_by_the_task_does_not_count(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, f'echo \'{{"task_id":"x","exit_code":0}}\' > ../result.json; {UNTIL_GO}; exit 9')
    await executor.start(launch)
    await until((launch.directory / "result.json").exists)
    assert executor.adopt(launch.directory)[0] is Condition.RUNNING
    go(launch)
    assert (await ended(executor, launch.directory)).exit_code == 9


@pytest.mark.parametrize(
    "spoil", ["mkdir ../result.json ../result.json/x", "chmod 0 ..", "ln -s /dev/full ../result.json"]
)
async def test_result_is_written_whatever_the_task_put_in_its_place(
    executor: process.ProcessExecutor, tmp_path: Path, spoil: str
) -> None:
    launch = shell(tmp_path, f"{spoil} && exit 3")
    assert (await run(executor, launch)).exit_code == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_full_disk_delays_the_result_and_loses_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)], check=True)
    try:
        executor = process.ProcessExecutor(tmp_path)
        await executor.open()
        launch = shell(small, "echo kept; cat /dev/zero > filler; exit 5")
        await executor.start(launch)
        await until(lambda: (launch.workspace / "filler").exists() and of_task(launch) == [])
        await asyncio.sleep(0.3)
        assert executor.adopt(launch.directory)[0] is Condition.RUNNING
        assert executor.read_result(launch.directory) is None
        (launch.workspace / "filler").unlink()
        assert (await ended(executor, launch.directory)).exit_code == 5
        assert output(launch).startswith(b"kept\n")
        await executor.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


async def test_killed_command_is_reported(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "exec sleep 1000")
    running = await executor.start(launch)
    os.kill(running.pid, signal.SIGKILL)
    result = await ended(executor, launch.directory)
    assert (result.signal, result.exit_code, result.stopped) == ("SIGKILL", None, StopReason.NONE)


async def test_killed_supervisor_takes_its_command_along_and_the_rest_is_found(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = shell(tmp_path, "setsid sleep 1000 & sleep 1000")
    running = await executor.start(launch)
    await until(lambda: len(of_task(launch)) >= 3)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    await until(lambda: not Path(f"/proc/{running.pid}").exists())
    await asyncio.to_thread(executor.end_leftovers, launch.directory)
    assert of_task(launch) == []


async def test_command_outlives_nobody_when_supervisor_and_nursery_are_killed(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = shell(tmp_path, "trap '' HUP TERM; sleep 1000 & exec sleep 1000")
    running = await executor.start(launch)
    await until(lambda: len(of_task(launch)) >= 2)
    # Stopped, it cannot do what it would for its supervisor; so it is the kernel that ends the group.
    nursery_id = nursery_of(executor)
    os.kill(nursery_id, signal.SIGSTOP)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    try:
        await until(lambda: of_task(launch) == [])
    finally:
        os.kill(nursery_id, signal.SIGKILL)
    await executor.wait(launch.directory)
    await until(lambda: not Path(f"/proc/{running.pid}").exists())
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED


async def test_killed_nursery_is_replaced_and_running_tasks_go_on(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    before = shell(tmp_path, f"{UNTIL_GO}; echo alive", name="before")
    await executor.start(before)
    os.kill(nursery_of(executor), signal.SIGKILL)
    after = shell(tmp_path, "echo new", name="after")
    assert (await run(executor, after)).exit_code == 0
    go(before)
    assert (await ended(executor, before.directory)).exit_code == 0
    assert output(before) == b"alive\n"


async def test_nursery_killed_among_many_starts_runs_each_once(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    made = [shell(tmp_path, f"echo {number} >> {count}", name=f"task{number}") for number in range(60)]
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


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def supervisors_of(executor: process.ProcessExecutor) -> list[int]:
    return children_of(nursery_of(executor))


def free_of(executor: process.ProcessExecutor) -> list[int]:
    return [supervisor.pid for supervisor in executor._pool._free if supervisor.pid]


async def test_start_takes_the_spare_and_another_is_made(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    (spare,) = free_of(executor)
    launch = shell(tmp_path, "exec sleep 1000")
    await executor.start(launch)
    assert process.read_fence(launch.directory).pid == spare
    await until(lambda: len(free_of(executor)) == 1)
    assert len(supervisors_of(executor)) == 2
    executor.stop(launch.directory, StopReason.CANCELED)
    await ended(executor, launch.directory)


async def test_there_is_one_in_advance_for_each_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_FREE_SECONDS", 0.1)
    executor = process.ProcessExecutor(tmp_path, slots=3)
    await executor.open()
    try:
        await until(lambda: len(free_of(executor)) == 3)
        spares = set(free_of(executor))
        made = [shell(tmp_path, UNTIL_GO, name=f"task{number}") for number in range(3)]
        await asyncio.gather(*(executor.start(launch) for launch in made))
        assert {process.read_fence(launch.directory).pid for launch in made} == spares
        await until(lambda: len(supervisors_of(executor)) == 4)  # all slots are in use, and one is free
        go(*made)
        for launch in made:
            await ended(executor, launch.directory)
        # Those that had tasks are replaced, but for the one that goes first.
        await until(lambda: len(spares & set(supervisors_of(executor))) == 1)
        await until(lambda: len(free_of(executor)) == 3)
        assert len(supervisors_of(executor)) == 3
        assert free_of(executor)[-1] in spares
    finally:
        await executor.close()


async def test_supervisors_born_in_advance_have_rehearsed_and_left_nothing(tmp_path: Path) -> None:
    executor = process.ProcessExecutor(tmp_path, slots=2)
    await executor.open()
    try:
        await until(lambda: len(free_of(executor)) == 2)
        assert [entry.name for entry in tmp_path.iterdir()] == ["nursery.lock"]
        for pid in free_of(executor):
            # Standard input, output and errors, the socket, the lock.
            assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == 5
            assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
            assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    finally:
        await executor.close()


def rehearsed(place: Path, *, signals: str = "", before: str = "") -> str:
    """What a rehearsal in ``place`` answers, with ``signals`` sent to it before."""
    script = f"""import os, signal, sys
from agentina.executors import supervising
{before}
signal.pthread_sigmask(signal.SIG_BLOCK, supervising._BLOCKED)
for name in {signals.split()}:
    os.kill(os.getpid(), signal.Signals[name])
print(supervising._rehearse(sys.argv[1]))"""
    command = [sys.executable, "-c", script, str(place)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=deadlines.HANG).stdout.strip()


def test_a_rehearsal_hears_who_ends_its_process(tmp_path: Path) -> None:
    assert rehearsed(tmp_path / "place") == "True"
    assert rehearsed(tmp_path / "place", signals="SIGHUP") == "True"
    assert rehearsed(tmp_path / "place", signals="SIGTERM") == "False"
    assert list(tmp_path.iterdir()) == []


def test_where_no_rehearsal_is_possible_there_is_none(tmp_path: Path) -> None:
    assert rehearsed(tmp_path / "absent" / "place") == "True"
    # A file system on which a directory that was deleted goes on as before.
    assert rehearsed(tmp_path / "kept", before="os.rmdir = lambda path: None") == "True"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["probe"]


def synced(tmp_path: Path, *requested: contract.Launch) -> list[list[str]]:
    """What a supervisor syncs for each of some tasks until it has told their end, and when its daemon is gone then."""
    script = """import os, socket, sys
from agentina.executors import supervising
def sync(descriptor, real=os.fsync):
    os.write(1, os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).encode() + b" ")
    real(descriptor)
os.fsync = sync
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
supervising.serve(socket.socket(fileno=int(sys.argv[1])), lock, sys.argv[3])"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(deadlines.HANG)
    requests = [json.dumps(process.ProcessExecutor(tmp_path)._request(launch, None)).encode() for launch in requested]
    ours.send(requests[0])  # waits for it, so that nothing is rehearsed
    argv = [sys.executable, "-c", script, str(theirs.fileno()), str(tmp_path / "lock"), str(tmp_path)]
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, cwd=ROOT) as running:
        assert running.stdout is not None
        theirs.close()
        found = []
        for request in [*requests[1:], b""]:
            while not json.loads(ours.recv(1 << 16)).get("ended"):
                pass
            os.set_blocking(running.stdout.fileno(), False)
            found.append((running.stdout.read() or b"").decode().split())
            if request:
                ours.send(request)
        ours.close()
        os.set_blocking(running.stdout.fileno(), True)
        return [*found, running.stdout.read().decode().split()]


def test_result_is_durable_before_its_end_is_told_or_when_the_daemon_is_gone(tmp_path: Path) -> None:
    silent, next_one = (shell(tmp_path, "exit 3", name=name, result_is_all=True) for name in ("job_1", "job_2"))
    loud = shell(tmp_path, "echo something", name="job_3", result_is_all=True)
    wanted = shell(tmp_path, "exit 3", name="job_4")
    stopped = shell(tmp_path, "sleep 1000", name="job_5", result_is_all=True, timeout_seconds=0.1, grace_seconds=0.0)
    # Only of the last task the result may still be without a daemon that makes it durable.
    assert synced(tmp_path, silent, next_one) == [[], [], ["result.json", next_one.task_id]]
    assert synced(tmp_path, loud) == [["output.log", "result.json", loud.task_id], []]
    assert synced(tmp_path, wanted) == [["result.json", wanted.task_id], []]
    assert synced(tmp_path, stopped) == [["result.json", stopped.task_id], []]


def test_result_that_its_daemon_took_away_is_nobody_s_to_sync(tmp_path: Path) -> None:
    supervisor.sync_result(str(tmp_path / "gone"))


async def test_no_spares_are_tried_over_and_over_where_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = process.ProcessExecutor(tmp_path, slots=3)
    orders = []

    def order(_: object) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        ours.settimeout(0)
        orders.append(ours)
        return ours

    monkeypatch.setattr(pool._Nursery, "order", order)
    await executor.open()
    try:
        await until(lambda: bool(orders) and not executor._pool._all)
        await asyncio.sleep(20 * pool._CALM_SECONDS)
        assert len(orders) == 1
    finally:
        await executor.close()


async def test_spare_killed_while_it_waits_costs_no_start(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    os.kill(free_of(executor)[0], signal.SIGKILL)
    assert (await run(executor, shell(tmp_path, "exit 3"))).exit_code == 3


async def test_spare_killed_with_the_task_on_its_way_costs_no_start(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    (spare,) = free_of(executor)
    os.kill(spare, signal.SIGSTOP)
    launch = shell(tmp_path, "echo ran >> ../ran")
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await asyncio.sleep(0.05)
    assert executor.adopt(launch.directory)[0] is Condition.UNSTARTED
    os.kill(spare, signal.SIGKILL)
    await starting
    assert (await ended(executor, launch.directory)).exit_code == 0
    assert (launch.directory / "ran").read_text() == "ran\n"


async def test_spare_that_does_not_answer_is_ended_and_another_asked(
    executor: process.ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_STANDSTILL_SECONDS", float("inf"))
    await until(lambda: len(free_of(executor)) == 1)
    (spare,) = free_of(executor)
    os.kill(spare, signal.SIGSTOP)
    launch = shell(tmp_path, "echo ran >> ../ran")
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await until(lambda: spare not in free_of(executor))
    with monkeypatch.context() as impatient:
        impatient.setattr(pool, "_ANSWER_SECONDS", 0.0)
        executor._pool._look()
    async with asyncio.timeout(deadlines.HANG):
        await starting
    assert (await ended(executor, launch.directory)).exit_code == 0
    assert (launch.directory / "ran").read_text() == "ran\n"


async def test_supervisor_that_was_stopped_before_it_answered_is_ended_though_the_task_has_begun(
    executor: process.ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    (spare,) = free_of(executor)
    os.kill(spare, signal.SIGSTOP)
    launch = shell(tmp_path, "echo ran >> ../ran")
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await until(lambda: spare not in free_of(executor))
    (launch.directory / "supervisor").touch()
    monkeypatch.setattr(pool, "_ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(processes, "_STANDSTILL_SECONDS", 0.0)
    for _ in range(2):
        executor._pool._look()
    await until(lambda: not Path(f"/proc/{spare}").exists())
    async with asyncio.timeout(deadlines.HANG):
        # Nobody knows of it how far it came, so it is taken for one that was started.
        assert (await starting).pid == 0
    assert not (launch.directory / "ran").exists()


async def test_supervisor_killed_between_fence_and_start_is_no_second_start(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = shell(tmp_path, "echo ran > ../ran")
    os.mkfifo(launch.directory / "stop")  # looked at before the command is started: opening it blocks
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await until(lambda: process.read_fence(launch.directory).pid)
    assert executor.adopt(launch.directory)[0] is Condition.RUNNING
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    await starting
    await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    with pytest.raises(errors.AgentinaError) as raised:
        await executor.start(launch)
    assert raised.value.code == errors.STATE_CONFLICT.code
    assert not (launch.directory / "ran").exists()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is found stopped at two looks is not left so."""
    monkeypatch.setattr(processes, "_STANDSTILL_SECONDS", 0.01)
    monkeypatch.setattr(pool, "_LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_supervisor_that_its_task_stops_is_ended_and_others_go_on(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    other = shell(tmp_path, "read line < ../go", name="other")
    os.mkfifo(other.directory / "go")
    await executor.start(other)
    launch = shell(tmp_path, "kill -STOP $PPID; setsid sleep 1000 & sleep 1000", timeout_seconds=1.0)
    await executor.start(launch)
    async with asyncio.timeout(deadlines.HANG):
        await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    assert executor.adopt(other.directory)[0] is Condition.RUNNING
    await asyncio.to_thread((other.directory / "go").write_text, "\n")
    assert (await ended(executor, other.directory)).exit_code == 0
    await until(lambda: of_task(launch) == [])


@pytest.mark.usefixtures("impatient")
async def test_supervisor_stopped_before_it_told_the_start_is_ended(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = shell(tmp_path, "true")
    os.mkfifo(launch.directory / "stop")  # looked at before the command is started: opening it blocks
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await until(lambda: process.read_fence(launch.directory).pid)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGSTOP)
    async with asyncio.timeout(deadlines.HANG):
        await starting
        await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED


@pytest.mark.usefixtures("impatient")
async def test_stopped_supervisor_of_an_earlier_daemon_is_ended(tmp_path: Path) -> None:
    launch = shell(tmp_path, "kill -STOP $PPID; sleep 1000", timeout_seconds=1.0)
    daemon = daemon_runs(tmp_path, launch)
    await until(lambda: processes.is_stopped(process.read_fence(launch.directory).pid))
    kill(daemon)
    executor = process.ProcessExecutor(tmp_path)
    async with asyncio.timeout(deadlines.HANG):
        await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    await until(lambda: of_task(launch) == [])
    await executor.close()


async def test_free_supervisor_told_to_end_takes_no_task_along(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    os.kill(free_of(executor)[0], signal.SIGTERM)
    result = await run(executor, shell(tmp_path, "exit 3"))
    assert (result.exit_code, result.stopped) == (3, StopReason.NONE)


async def test_nursery_that_makes_no_supervisor_is_an_error(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    busy = shell(tmp_path, "exec sleep 1000", name="busy")
    hard = resource.prlimit(nursery_of(executor), resource.RLIMIT_NOFILE)[1]
    resource.prlimit(nursery_of(executor), resource.RLIMIT_NOFILE, (3, hard))
    await executor.start(busy)
    launch = shell(tmp_path, "true", name="next")
    with pytest.raises(errors.AgentinaError) as caught:
        await executor.start(launch)
    assert caught.value.code == "TASK_START_FAILED"
    assert executor.adopt(launch.directory)[0] is Condition.UNSTARTED
    resource.prlimit(nursery_of(executor), resource.RLIMIT_NOFILE, (hard, hard))
    assert (await run(executor, launch)).exit_code == 0
    executor.stop(busy.directory, StopReason.CANCELED)
    await ended(executor, busy.directory)


async def test_spare_ends_with_a_killed_nursery(executor: process.ProcessExecutor) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    spare = processes.open_pidfd(free_of(executor)[0])
    assert spare is not None
    watch = processes.Watch(spare)
    os.kill(nursery_of(executor), signal.SIGKILL)
    async with asyncio.timeout(deadlines.HANG):
        await watch.wait()


async def test_nursery_killed_with_the_task_on_its_way_starts_it_once(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    await until(lambda: len(free_of(executor)) == 1)
    (spare,) = free_of(executor)
    os.kill(spare, signal.SIGSTOP)
    launch = shell(tmp_path, "echo ran >> ../ran")
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await asyncio.sleep(0.05)
    os.kill(nursery_of(executor), signal.SIGKILL)
    await asyncio.sleep(0.05)
    os.kill(spare, signal.SIGCONT)
    await starting
    assert (await ended(executor, launch.directory)).exit_code == 0
    assert (launch.directory / "ran").read_text() == "ran\n"


async def test_what_a_killed_supervisor_leaves_is_ended_without_a_daemon(tmp_path: Path) -> None:
    launch = shell(tmp_path, "setsid sleep 1000 & (setsid sleep 1000 &); sleep 1000")
    other = shell(tmp_path, "sleep 0.7; exit 4", name="other")
    for each in (launch, other):
        state = each.directory / "state"
        state.mkdir()
        daemon = daemon_runs(state, each)
        assert daemon.stdout is not None
        daemon.stdout.readline()
        kill(daemon)
    await until(lambda: len(of_task(launch)) >= 4)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGKILL)
    await until(lambda: not of_task(launch))
    executor = process.ProcessExecutor(tmp_path)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    assert (await ended(executor, other.directory)).exit_code == 4
    await executor.close()


# --- one supervisor, one task after the other ------------------------------------------------------------------------


def descriptors_of(pid: int) -> list[str]:
    return sorted(str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())


async def test_supervisor_takes_the_next_task_as_if_it_were_its_first(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    first = launches.make(tmp_path, "/bin/true", name="first")
    await run(executor, first)
    pid = process.read_fence(first.directory).pid
    before = descriptors_of(pid)
    scripts = {
        "leaves": "(setsid sleep 1000 &); cd /tmp; ulimit -n 10; umask 077; kill -HUP $PPID; exit 3",
        "stopped": "exec sleep 1000",
        "loud": "head -c 70000 /dev/zero; sleep 1000",
        "absent": "",
    }
    made = []
    for name, script in scripts.items():
        launch = shell(tmp_path, script, name=name, output_bytes=1000)
        made.append(launch)
        if name == "absent":
            launch.workspace.rmdir()
        await executor.start(launch)
        if name == "stopped":
            executor.stop(launch.directory, StopReason.CANCELED)
        await ended(executor, launch.directory)
    last = launches.make(tmp_path, "/bin/sh", "-c", "ulimit -n; umask; pwd; cat /proc/self/status", name="last")
    result = await run(executor, last)
    assert {process.read_fence(launch.directory).pid for launch in [*made, last]} == {pid}
    assert (result.exit_code, result.stopped, result.detail) == (0, StopReason.NONE, "")
    # The shell, and its cat where somebody looked just then; the first ones had many more.
    assert result.usage.processes_peak in {1, 2}
    lines = output(last).decode().splitlines()
    assert lines[1:3] == ["0022", str(last.workspace)]
    assert int(lines[0]) > 10
    assert {"SigBlk:\t0000000000000000", "SigPnd:\t0000000000000000"} <= set(lines)
    await until(lambda: descriptors_of(pid) == before)
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert children_of(pid) == []


async def test_wake_up_that_comes_late_stops_nobody(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    first = launches.make(tmp_path, "/bin/true", name="first")
    await run(executor, first)
    pid = process.read_fence(first.directory).pid
    executor.stop(first.directory, StopReason.CANCELED)
    os.kill(pid, signal.SIGHUP)
    second = shell(tmp_path, "sleep 0.2; exit 3", name="second")
    await executor.start(second)
    os.kill(pid, signal.SIGHUP)
    result = await ended(executor, second.directory)
    assert process.read_fence(second.directory).pid == pid
    assert (result.exit_code, result.stopped) == (3, StopReason.NONE)


async def test_supervisor_has_one_task_at_a_time(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    made = [shell(tmp_path, "exec sleep 1000", name=f"task{number}") for number in range(100)]
    await asyncio.gather(*(executor.start(launch) for launch in made))
    assert all(executor.adopt(launch.directory)[0] is Condition.RUNNING for launch in made)
    assert len({process.read_fence(launch.directory).pid for launch in made}) == len(made)
    for launch in made:
        executor.stop(launch.directory, StopReason.CANCELED)
    for launch in made:
        assert (await ended(executor, launch.directory)).stopped is StopReason.CANCELED


async def test_free_supervisors_and_old_ones_are_let_go(
    executor: process.ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_FREE_SECONDS", 0.1)
    made = [shell(tmp_path, "sleep 0.1", name=f"task{number}") for number in range(5)]
    await asyncio.gather(*(executor.start(launch) for launch in made))
    for launch in made:
        await ended(executor, launch.directory)
    await until(lambda: len(supervisors_of(executor)) == 1)
    monkeypatch.setattr(pool, "_MAX_TASKS", 1)
    launch = shell(tmp_path, "true", name="last")
    await run(executor, launch)
    pid = process.read_fence(launch.directory).pid
    await until(lambda: pid not in supervisors_of(executor))


async def test_supervisor_of_a_gone_daemon_ends_with_its_task(tmp_path: Path) -> None:
    launch = shell(tmp_path, "sleep 0.5")
    daemon = daemon_runs(tmp_path, launch)
    assert daemon.stdout is not None
    daemon.stdout.readline()
    pid = process.read_fence(launch.directory).pid
    kill(daemon)
    await until((launch.directory / "result.json").exists)
    await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_nursery_whose_daemon_is_gone_ends_quietly(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    argv = [sys.executable, "-I", "-S", nursery.__file__, str(theirs.fileno()), str(tmp_path / "lock")]
    done = await asyncio.to_thread(
        subprocess.run, argv, pass_fds=[theirs.fileno()], capture_output=True, timeout=deadlines.HANG, check=False
    )
    theirs.close()
    assert (done.returncode, done.stderr) == (0, b"")


DAEMON = """
import asyncio, json, sys
from pathlib import Path
import msgspec
from agentina.executors import contract, process
async def main():
    executor = process.ProcessExecutor(Path(sys.argv[1]))
    await executor.open()
    text = sys.stdin.buffer.read()
    launch = msgspec.json.decode(text, type=contract.Launch, dec_hook=lambda kind, value: kind(value))
    running = await executor.start(launch)
    print(running.pid, flush=True)
    await executor.wait(launch.directory)
    print("ended", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def daemon_runs(state: Path, launch: contract.Launch) -> subprocess.Popen[bytes]:
    """A daemon in a process of its own that starts one task."""
    import msgspec  # noqa: PLC0415

    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert daemon.stdin is not None
    daemon.stdin.write(msgspec.json.encode(launch, enc_hook=str))
    daemon.stdin.close()
    return daemon


def kill(daemon: subprocess.Popen[bytes]) -> None:
    daemon.kill()
    daemon.wait()
    assert daemon.stdout is not None
    daemon.stdout.close()


async def test_killed_daemon_leaves_the_task_to_the_next_one(tmp_path: Path) -> None:
    launch = shell(tmp_path, f"{UNTIL_GO}; echo finished; exit 7")
    daemon = daemon_runs(tmp_path, launch)
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    kill(daemon)
    executor = process.ProcessExecutor(tmp_path)
    await executor.open()
    condition, running = executor.adopt(launch.directory)
    assert (condition, running and running.pid) == (Condition.RUNNING, pid)
    go(launch)
    assert (await ended(executor, launch.directory)).exit_code == 7
    assert output(launch) == b"finished\n"
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
        changes = {"lease_deadline": boot() + changes["lease"]}
    launch = shell(tmp_path, "sleep 0.3; echo more than ten bytes; sleep 1000", grace_seconds=0.2, **changes)
    daemon = daemon_runs(tmp_path, launch)
    assert daemon.stdout is not None
    daemon.stdout.readline()
    kill(daemon)
    await until((launch.directory / "result.json").exists)
    result = process.ProcessExecutor(tmp_path).read_result(launch.directory)
    assert result is not None
    assert result.stopped is reason
    assert of_task(launch) == []


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
async def test_daemon_killed_at_any_point_of_a_start_runs_it_at_most_once(tmp_path: Path, delay: float) -> None:
    count = tmp_path / "count"
    launch = shell(tmp_path, f"echo x >> {count}")
    daemon = daemon_runs(tmp_path, launch)
    time.sleep(delay)  # noqa: ASYNC251 - the moment of the kill is the point
    kill(daemon)
    executor = process.ProcessExecutor(tmp_path)
    await executor.open()
    condition, _ = executor.adopt(launch.directory)
    if condition is Condition.UNSTARTED:
        await executor.start(launch)
    assert (await ended(executor, launch.directory)).exit_code == 0
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


async def test_terminal_interrupt_does_not_reach_tasks(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "sleep 0.5; exit 4")
    await executor.start(launch)
    nursery_before = nursery_of(executor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(nursery_before, number)
    assert os.getsid(nursery_before) != os.getsid(0)
    assert (await ended(executor, launch.directory)).exit_code == 4
    assert nursery_of(executor) == nursery_before
    assert Path(f"/proc/{nursery_before}").exists()


async def test_sigterm_without_an_order_is_a_host_shutdown(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    launch = shell(tmp_path, "exec sleep 1000")
    await executor.start(launch)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGTERM)
    assert (await ended(executor, launch.directory)).stopped is StopReason.HOST_SHUTDOWN


async def test_reused_process_id_is_not_taken_for_the_supervisor(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = shell(tmp_path, "true")
    await run(executor, launch)
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
    launch = shell(tmp_path, "exec sleep 1000")
    await executor.start(launch)
    pid = process.read_fence(launch.directory).pid
    await asyncio.sleep(0.5)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert private < 3 << 10, f"{private} KiB"
    executor.stop(launch.directory, StopReason.CANCELED)
    await ended(executor, launch.directory)


def test_nursery_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; sys.argv = ['x']; sys.path.append(sys.orig_argv[-1]); import agentina.executors.nursery; "
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], check=True, capture_output=True)
    loaded = set(done.stdout.decode().split()) - {"__main__"}
    ours = {"cloning", "containment", "limits", "nursery", "spawning", "supervising", "supervisor", "watch"}
    assert loaded == {"agentina", "agentina.executors"} | {f"agentina.executors.{name}" for name in ours}
