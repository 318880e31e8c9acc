"""Watching, finding and running processes."""
# Setting the stage blocks the loop, on purpose and for milliseconds.
# ruff: noqa: ASYNC220

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

from agentina.system import processes
from tests.fakes import deadlines

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


async def test_watch_sees_the_end_once_and_tells() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    pidfd = processes.open_pidfd(child.pid)
    assert pidfd is not None
    watch = processes.Watch(pidfd)
    told: list[str] = []
    watch.on_end(lambda: told.append("ended"))
    watch.send(signal.SIGTERM)
    async with asyncio.timeout(deadlines.HANG):
        await watch.wait()
    assert told == ["ended"]
    assert child.wait() == -signal.SIGTERM
    watch.send(signal.SIGKILL)
    watch.close()


def test_no_pidfd_of_nobody() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert processes.open_pidfd(child.pid) is None
    assert processes.open_pidfd(0) is None
    assert processes.start_ticks(child.pid) == 0
    assert processes.start_ticks(os.getpid()) > 0


def test_standstill_lasts_while_no_look_finds_it_going(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = {100.0: True, 104.0: True, 106.0: False, 107.0: True, 112.0: True}
    times, states = iter(looks), iter(looks.values())
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(processes, "is_stopped", lambda _: next(states))
    standstill = processes.Standstill()
    assert [standstill.lasts(7) for _ in looks] == [False, False, False, False, True]


def test_stopped_is_what_a_signal_stopped() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        assert not processes.is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert processes.is_stopped(child.pid)
        child.send_signal(signal.SIGCONT)
        os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        assert not processes.is_stopped(child.pid)
    finally:
        child.kill()
        child.wait()
    assert not processes.is_stopped(child.pid)


def test_processes_are_found_by_their_whole_variable() -> None:
    value = secrets.token_hex(8)
    child = subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], env={**ENVIRONMENT, "MARK": value})
    other = subprocess.Popen(["sleep", "1000"], env={**ENVIRONMENT, "MARK": f"{value}0", "X": f"MARK={value}"})
    deadline = time.monotonic() + deadlines.HANG
    while len(list(processes.with_variable("MARK", value))) < 2:
        assert time.monotonic() < deadline
    assert processes.kill_with_variable("MARK", value) == 2
    assert list(processes.with_variable("MARK", value)) == []
    assert child.wait() == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


async def test_run_gives_code_output_and_the_end_of_stderr(tmp_path: Path) -> None:
    script = "pwd; echo problem >&2; exit 3"
    done = await processes.run(
        ["sh", "-c", script], environment=ENVIRONMENT, directory=tmp_path, timeout_seconds=deadlines.HANG
    )
    assert (done.code, done.output, done.problem) == (3, f"{tmp_path}\n".encode(), "problem")
    assert not done.truncated


async def test_run_ends_who_takes_too_long_with_all_its_children(tmp_path: Path) -> None:
    value = secrets.token_hex(8)
    with pytest.raises(TimeoutError):
        await processes.run(
            ["sh", "-c", "sleep 1000 & sleep 1000"],
            environment={**ENVIRONMENT, "MARK": value},
            directory=tmp_path,
            timeout_seconds=0.3,
        )
    async with asyncio.timeout(deadlines.HANG):
        while list(processes.with_variable("MARK", value)):  # noqa: ASYNC110 - another process's end
            await asyncio.sleep(0.01)


async def test_run_ends_who_writes_too_much(tmp_path: Path) -> None:
    done = await processes.run(
        ["yes"], environment=ENVIRONMENT, directory=tmp_path, timeout_seconds=deadlines.HANG, output_limit=1000
    )
    assert (done.output, done.truncated, done.code) == (b"y\n" * 500, True, -signal.SIGKILL)


async def test_run_into_a_file_keeps_nothing_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        done = await processes.run(
            ["head", "-c", "300000", "/dev/zero"],
            environment=ENVIRONMENT,
            directory=tmp_path,
            timeout_seconds=deadlines.HANG,
            output_limit=1 << 20,
            output_file=file.fileno(),
        )
    assert (done.output, done.code) == (b"", 0)
    assert (tmp_path / "out").read_bytes() == bytes(300_000)


async def test_run_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await processes.run(
            ["no-such-program"], environment=ENVIRONMENT, directory=tmp_path, timeout_seconds=deadlines.HANG
        )
