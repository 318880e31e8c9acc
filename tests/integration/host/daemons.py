"""A daemon as a real process, and its end after a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from agentina.protocol import local
from agentina.system import paths
from tests.fakes import control, deadlines

_RUN = (
    "import sys; from agentina import errors; from agentina.host import daemon; from agentina.system import paths\n"
    "try: sys.exit(daemon.run(paths.Layout(__import__('pathlib').Path(sys.argv[1])).instance('default')))\n"
    "except errors.AgentinaError as error: sys.exit(f'{error}')\n"
)


class DaemonProcess:
    """One daemon process of the instance below ``root``; may be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instance = paths.Layout(root).instance("default")
        self.process: asyncio.subprocess.Process | None = None
        self.log = root / "daemon.log"

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _RUN, str(self.root), stderr=log, stdout=log, stdin=asyncio.subprocess.DEVNULL
            )

    async def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.process.wait()

    async def ask(self, verb: str = "status") -> local.InstanceStatus:
        reader, writer = await asyncio.open_unix_connection(os.fspath(self.instance.socket))
        writer.write(msgspec.json.encode({"verb": verb}) + b"\n")
        answer = msgspec.json.decode(await reader.readline(), type=local.LocalAnswer)
        writer.close()
        assert answer.status is not None, answer.error
        return answer.status

    async def until(self, condition: Callable[[local.InstanceStatus], bool]) -> None:
        """Wait until its status says so."""
        async with asyncio.timeout(deadlines.HANG):
            while not condition(await self.ask()):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.05)


async def end(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    """End it with its tasks, and check that it met only what it was made for, whatever a test did to it."""
    if daemon.process is not None and daemon.process.returncode is None:
        kept = [task for task in plane.tasks.values() if "returned" not in task.kinds]
        for task in kept:
            if task.outcome is None:
                plane.cancel(task)
        with contextlib.suppress(TimeoutError):
            await plane.until(lambda: all(task.outcome is not None for task in kept))
        await daemon.kill(signal.SIGTERM)
    log = daemon.log.read_text()
    assert "agentina/host/" not in log, log
    assert "never retrieved" not in log, log
