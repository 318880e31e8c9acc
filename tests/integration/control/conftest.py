from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import uvloop

from agentina.cli import main
from agentina.control import app, config, plane
from agentina.control.services import duties
from tests.fakes import deadlines
from tests.integration.control import simulated

T = TypeVar("T")
CommandLine = Callable[..., tuple[int, str, str]]


class SteppedClock:
    """Real time plus steps; the wall clock can be set without the boot clock noticing."""

    def __init__(self) -> None:
        self.wall_offset_ms = 0
        self.boot_offset = 0.0

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.wall_offset_ms

    def boot(self) -> float:
        return time.monotonic() + self.boot_offset


class ControlPlane:
    """A control plane that serves a real socket from a thread of this process."""

    def __init__(self, data: Path, **changes: Any) -> None:
        self.clock = SteppedClock()
        self.settings = config.Settings(**{"data": data, "listen": "127.0.0.1:0", **changes})
        self.token = self.url = ""
        self.plane: plane.Plane
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(deadlines.HANG)
        self.operator = simulated.Operator(self.url, self.token)
        return self

    def __exit__(self, *_: object) -> None:
        self.operator.close()
        unseen = self.run(self._find_unseen)
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(deadlines.HANG)
        assert not self._thread.is_alive()
        assert not unseen, "jobs of these classes are ready, and no poll would look at them"

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(deadlines.HANG)

    def step_boot(self, seconds: float) -> None:
        """Let time pass; leases that ran out are given up when this returns."""
        self.clock.boot_offset += seconds
        background = duties.Duties(self.plane)
        self.run(background.sweep_leases)
        self.run(background.end_backoffs)

    def agent(self, **changes: Any) -> simulated.Agent:
        return simulated.new_agent(self.url, self.operator, **changes)

    async def _find_unseen(self) -> set[int]:
        """Whatever a test did: each job that became ready was announced."""
        ready = self.plane.store.read(lambda tx: tx.all("SELECT DISTINCT class_id FROM jobs WHERE ready = 1"))
        return {row["class_id"] for row in ready} - self.plane.fleet.maybe_ready

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        announce = app.Announcements(
            address=lambda url: setattr(self, "url", url), operator_token=lambda token: setattr(self, "token", token)
        )
        async with app.running(self.settings, announce, clock=self.clock) as self.plane:
            self._started.set()
            await self._stop.wait()


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    yield
    while simulated.opened:
        simulated.opened.pop().close()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path / "data") as serving:
        yield serving


@pytest.fixture
def command(control: ControlPlane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Runs a command line against the control plane: exit code, stdout, stderr."""
    monkeypatch.setenv("AGENTINA_CONTROL_PLANE", control.url)
    monkeypatch.setenv("AGENTINA_API_TOKEN", control.token)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main.run(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def operator(control: ControlPlane) -> simulated.Operator:
    return control.operator
