"""Supervisors in advance: born by the nursery, taken by one task after the other."""
# Setting the stage blocks the loop, on purpose and for milliseconds.
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentina import errors
from agentina.executors import contract, pool, process, supervisor
from agentina.executors.contract import Condition, StopReason
from agentina.system import processes
from tests.fakes import deadlines, launches
from tests.integration.executors import drive

ROOT = Path(__file__).parents[3]


async def test_start_takes_the_spare_and_another_is_made(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    await drive.until(lambda: len(drive.free_of(executor)) == 1)
    (spare,) = drive.free_of(executor)
    launch = drive.shell(tmp_path, "exec sleep 1000")
    await executor.start(launch)
    assert process.read_fence(launch.directory).pid == spare
    await drive.until(lambda: len(drive.free_of(executor)) == 1)
    assert len(drive.supervisors_of(executor)) == 2
    executor.stop(launch.directory, StopReason.CANCELED)
    await drive.ended(executor, launch.directory)


async def test_there_is_one_in_advance_for_each_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_FREE_SECONDS", 0.1)
    executor = process.ProcessExecutor(tmp_path, slots=3)
    await executor.open()
    try:
        await drive.until(lambda: len(drive.free_of(executor)) == 3)
        spares = set(drive.free_of(executor))
        made = [drive.shell(tmp_path, drive.UNTIL_GO, name=f"task{number}") for number in range(3)]
        await asyncio.gather(*(executor.start(launch) for launch in made))
        assert {process.read_fence(launch.directory).pid for launch in made} == spares
        await drive.until(lambda: len(drive.supervisors_of(executor)) == 4)  # all slots are in use, and one is free
        drive.go(*made)
        for launch in made:
            await drive.ended(executor, launch.directory)
        # Those that had tasks are replaced, but for the one that goes first.
        await drive.until(lambda: len(spares & set(drive.supervisors_of(executor))) == 1)
        await drive.until(lambda: len(drive.free_of(executor)) == 3)
        assert len(drive.supervisors_of(executor)) == 3
        assert drive.free_of(executor)[-1] in spares
    finally:
        await executor.close()


async def test_supervisors_born_in_advance_have_rehearsed_and_left_nothing(tmp_path: Path) -> None:
    executor = process.ProcessExecutor(tmp_path, slots=2)
    await executor.open()
    try:
        await drive.until(lambda: len(drive.free_of(executor)) == 2)
        assert [entry.name for entry in tmp_path.iterdir()] == ["nursery.lock"]
        for pid in drive.free_of(executor):
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
    silent, next_one = (drive.shell(tmp_path, "exit 3", name=name, result_is_all=True) for name in ("job_1", "job_2"))
    loud = drive.shell(tmp_path, "echo something", name="job_3", result_is_all=True)
    wanted = drive.shell(tmp_path, "exit 3", name="job_4")
    stopped = drive.shell(
        tmp_path, "sleep 1000", name="job_5", result_is_all=True, timeout_seconds=0.1, grace_seconds=0.0
    )
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
        await drive.until(lambda: bool(orders) and not executor._pool._all)
        await asyncio.sleep(20 * pool._CALM_SECONDS)
        assert len(orders) == 1
    finally:
        await executor.close()


async def test_spare_that_does_not_answer_is_ended_and_another_asked(
    executor: process.ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_STANDSTILL_SECONDS", float("inf"))
    launch = drive.shell(tmp_path, "echo ran >> ../ran")
    _, starting = await drive.start_stopped(executor, launch)
    with monkeypatch.context() as impatient:
        impatient.setattr(pool, "_ANSWER_SECONDS", 0.0)
        executor._pool._look()
    async with asyncio.timeout(deadlines.HANG):
        await starting
    assert (await drive.ended(executor, launch.directory)).exit_code == 0
    assert (launch.directory / "ran").read_text() == "ran\n"


async def test_supervisor_that_was_stopped_before_it_answered_is_ended_though_the_task_has_begun(
    executor: process.ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = drive.shell(tmp_path, "echo ran >> ../ran")
    spare, starting = await drive.start_stopped(executor, launch)
    (launch.directory / "supervisor").touch()
    monkeypatch.setattr(pool, "_ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(processes, "_STANDSTILL_SECONDS", 0.0)
    for _ in range(2):
        executor._pool._look()
    await drive.until(lambda: not Path(f"/proc/{spare}").exists())
    async with asyncio.timeout(deadlines.HANG):
        # Nobody knows of it how far it came, so it is taken for one that was started.
        assert (await starting).pid == 0
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
    other = drive.shell(tmp_path, "read line < ../go", name="other")
    os.mkfifo(other.directory / "go")
    await executor.start(other)
    launch = drive.shell(tmp_path, "kill -STOP $PPID; setsid sleep 1000 & sleep 1000", timeout_seconds=1.0)
    await executor.start(launch)
    async with asyncio.timeout(deadlines.HANG):
        await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    assert executor.adopt(other.directory)[0] is Condition.RUNNING
    await asyncio.to_thread((other.directory / "go").write_text, "\n")
    assert (await drive.ended(executor, other.directory)).exit_code == 0
    await drive.until(lambda: drive.of_task(launch) == [])


@pytest.mark.usefixtures("impatient")
async def test_supervisor_stopped_before_it_told_the_start_is_ended(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    launch = drive.long_start(tmp_path)
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - awaited below
    await drive.until(lambda: process.read_fence(launch.directory).pid)
    os.kill(process.read_fence(launch.directory).pid, signal.SIGSTOP)
    async with asyncio.timeout(deadlines.HANG):
        await starting
        await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED


@pytest.mark.usefixtures("impatient")
async def test_stopped_supervisor_of_an_earlier_daemon_is_ended(tmp_path: Path) -> None:
    launch = drive.shell(tmp_path, "kill -STOP $PPID; sleep 1000", timeout_seconds=1.0)
    daemon = drive.daemon_runs(tmp_path, launch)
    await drive.until(lambda: processes.is_stopped(process.read_fence(launch.directory).pid))
    drive.kill(daemon)
    executor = process.ProcessExecutor(tmp_path)
    async with asyncio.timeout(deadlines.HANG):
        await executor.wait(launch.directory)
    assert executor.adopt(launch.directory)[0] is Condition.VANISHED
    await drive.until(lambda: drive.of_task(launch) == [])
    await executor.close()


async def test_free_supervisor_told_to_end_takes_no_task_along(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    await drive.until(lambda: len(drive.free_of(executor)) == 1)
    os.kill(drive.free_of(executor)[0], signal.SIGTERM)
    result = await drive.run(executor, drive.shell(tmp_path, "exit 3"))
    assert (result.exit_code, result.stopped) == (3, StopReason.NONE)


async def test_nursery_that_makes_no_supervisor_is_an_error(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    await drive.until(lambda: len(drive.free_of(executor)) == 1)
    busy = drive.shell(tmp_path, "exec sleep 1000", name="busy")
    hard = resource.prlimit(drive.nursery_of(executor), resource.RLIMIT_NOFILE)[1]
    resource.prlimit(drive.nursery_of(executor), resource.RLIMIT_NOFILE, (3, hard))
    await executor.start(busy)
    launch = drive.shell(tmp_path, "true", name="next")
    with pytest.raises(errors.AgentinaError) as caught:
        await executor.start(launch)
    assert caught.value.code == "TASK_START_FAILED"
    assert executor.adopt(launch.directory)[0] is Condition.UNSTARTED
    resource.prlimit(drive.nursery_of(executor), resource.RLIMIT_NOFILE, (hard, hard))
    assert (await drive.run(executor, launch)).exit_code == 0
    executor.stop(busy.directory, StopReason.CANCELED)
    await drive.ended(executor, busy.directory)


def descriptors_of(pid: int) -> list[str]:
    return sorted(str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())


async def test_supervisor_takes_the_next_task_as_if_it_were_its_first(
    executor: process.ProcessExecutor, tmp_path: Path
) -> None:
    first = launches.make(tmp_path, "/bin/true", name="first")
    await drive.run(executor, first)
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
        launch = drive.shell(tmp_path, script, name=name, output_bytes=1000)
        made.append(launch)
        if name == "absent":
            launch.workspace.rmdir()
        await executor.start(launch)
        if name == "stopped":
            executor.stop(launch.directory, StopReason.CANCELED)
        await drive.ended(executor, launch.directory)
    last = launches.make(tmp_path, "/bin/sh", "-c", "ulimit -n; umask; pwd; cat /proc/self/status", name="last")
    result = await drive.run(executor, last)
    assert {process.read_fence(launch.directory).pid for launch in [*made, last]} == {pid}
    assert (result.exit_code, result.stopped, result.detail) == (0, StopReason.NONE, "")
    # The shell, and its cat where somebody looked just then; the first ones had many more.
    assert result.usage.processes_peak in {1, 2}
    lines = drive.output(last).decode().splitlines()
    assert lines[1:3] == ["0022", str(last.workspace)]
    assert int(lines[0]) > 10
    assert {"SigBlk:\t0000000000000000", "SigPnd:\t0000000000000000"} <= set(lines)
    await drive.until(lambda: descriptors_of(pid) == before)
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert drive.children_of(pid) == []


async def test_wake_up_that_comes_late_stops_nobody(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    first = launches.make(tmp_path, "/bin/true", name="first")
    await drive.run(executor, first)
    pid = process.read_fence(first.directory).pid
    executor.stop(first.directory, StopReason.CANCELED)
    os.kill(pid, signal.SIGHUP)
    second = drive.shell(tmp_path, "sleep 0.2; exit 3", name="second")
    await executor.start(second)
    os.kill(pid, signal.SIGHUP)
    result = await drive.ended(executor, second.directory)
    assert process.read_fence(second.directory).pid == pid
    assert (result.exit_code, result.stopped) == (3, StopReason.NONE)


async def test_supervisor_has_one_task_at_a_time(executor: process.ProcessExecutor, tmp_path: Path) -> None:
    made = [drive.shell(tmp_path, "exec sleep 1000", name=f"task{number}") for number in range(100)]
    await asyncio.gather(*(executor.start(launch) for launch in made))
    assert all(executor.adopt(launch.directory)[0] is Condition.RUNNING for launch in made)
    assert len({process.read_fence(launch.directory).pid for launch in made}) == len(made)
    for launch in made:
        executor.stop(launch.directory, StopReason.CANCELED)
    for launch in made:
        assert (await drive.ended(executor, launch.directory)).stopped is StopReason.CANCELED


async def test_free_supervisors_and_old_ones_are_let_go(
    executor: process.ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_FREE_SECONDS", 0.1)
    made = [drive.shell(tmp_path, "sleep 0.1", name=f"task{number}") for number in range(5)]
    await asyncio.gather(*(executor.start(launch) for launch in made))
    for launch in made:
        await drive.ended(executor, launch.directory)
    await drive.until(lambda: len(drive.supervisors_of(executor)) == 1)
    monkeypatch.setattr(pool, "_MAX_TASKS", 1)
    launch = drive.shell(tmp_path, "true", name="last")
    await drive.run(executor, launch)
    pid = process.read_fence(launch.directory).pid
    await drive.until(lambda: pid not in drive.supervisors_of(executor))


def test_nursery_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; sys.argv = ['x']; sys.path.append(sys.orig_argv[-1]); import agentina.executors.nursery; "
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], check=True, capture_output=True)
    loaded = set(done.stdout.decode().split()) - {"__main__"}
    ours = {"cloning", "containment", "limits", "nursery", "spawning", "supervising", "supervisor", "watch"}
    assert loaded == {"agentina", "agentina.executors"} | {f"agentina.executors.{name}" for name in ours}
