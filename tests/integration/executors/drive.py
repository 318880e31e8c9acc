"""What tests of the executor ``process`` do with it."""
# ruff: noqa: ASYNC110

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentina.executors import contract, process
from agentina.system import clock, processes
from tests.fakes import deadlines, launches

ROOT = Path(__file__).parents[3]
boot = clock.SystemClock().boot


def shell(parent: Path, script: str, **changes: Any) -> contract.Launch:
    return launches.make(parent, "/bin/sh", "-c", script, **changes)


def long_start(parent: Path) -> contract.Launch:
    """A task whose supervisor has its fence, and looks for the program for seconds, in each part of a long PATH."""
    environment = {"PATH": "x:" * 3_000_000}
    return launches.make(parent, "sh", "-c", "echo ran > ../ran", environment=environment)


#: What a task does until the test has seen what it wanted to see, and lets it :func:`go`.
UNTIL_GO = "until [ -e ../go ]; do sleep 0.02; done"


async def start_stopped(
    executor: process.ProcessExecutor, launch: contract.Launch
) -> tuple[int, asyncio.Future[contract.Running]]:
    """Have a task started by the supervisor in advance, which is stopped and so does not read of it: which one."""
    await until(lambda: len(free_of(executor)) == 1)
    (spare,) = free_of(executor)
    os.kill(spare, signal.SIGSTOP)
    starting = asyncio.ensure_future(executor.start(launch))  # noqa: TID251 - whoever asked awaits it
    await until(lambda: spare not in free_of(executor))
    return spare, starting


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


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def supervisors_of(executor: process.ProcessExecutor) -> list[int]:
    return children_of(nursery_of(executor))


def free_of(executor: process.ProcessExecutor) -> list[int]:
    return [supervisor.pid for supervisor in executor._pool._free if supervisor.pid]


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
