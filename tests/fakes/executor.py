"""An executor without processes that keeps the contract: the same rules, results on disk, a kernel in memory.

A :class:`FakeKernel` is what outlives a daemon; several :class:`FakeExecutor` on one kernel are daemons after each
other. What a "program" does is read from ``argv``: the first word names a :class:`Program` given to the kernel.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.executors.contract import Condition, StopReason
from agentina.protocol import wire
from agentina.system import clock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What a command does."""

    output: bytes = b""
    exit_code: int = 0
    #: Seconds it runs; infinite ones run until they are stopped.
    seconds: float = 0.0
    #: Goes on after SIGTERM.
    stubborn: bool = False


@dataclasses.dataclass
class _Task:
    launch: contract.Launch
    running: contract.Running
    ended: asyncio.Event
    lease_deadline: float
    stopped: StopReason = StopReason.NONE
    timers: list[asyncio.TimerHandle] = dataclasses.field(default_factory=list)
    output: int = 0
    verifying: bool = False


class FakeKernel:
    """The tasks of a host, running and ended, and the clock they live by."""

    def __init__(self, programs: dict[str, Program]) -> None:
        self.programs = programs
        self.boot_id = "fake-boot"
        self.clock = clock.SystemClock()
        self.tasks: dict[Path, _Task] = {}
        self.pids = 1000
        #: Every launch that was really started, for asserting that nothing runs twice.
        self.started: list[str] = []

    def vanish(self, directory: Path) -> None:
        """Kill a task's supervisor: it ends and leaves no result."""
        task = self.tasks[directory]
        self._let_go(task)
        task.ended.set()

    def start(self, launch: contract.Launch) -> contract.Running:
        """Make a task run; refuses one that was started before."""
        fence = launch.directory / "supervisor"
        try:
            fence.touch(exist_ok=False)
        except FileExistsError:
            raise errors.STATE_CONFLICT(
                what=launch.task_id, state="started already", expected="never started"
            ) from None
        self.pids += 1
        self.started.append(launch.task_id)
        running = contract.Running(pid=self.pids, started_ms=self.clock.wall_ms())
        task = _Task(launch, running, asyncio.Event(), launch.lease_deadline)
        self.tasks[launch.directory] = task
        (launch.directory / "output.log").touch()
        order = launch.directory / "stop"
        if order.exists():
            task.stopped = StopReason(order.read_text())
            self._end(task, phase="start")
            return running
        self._later(task, launch.timeout_seconds, lambda: self.stop(task, StopReason.TIME_LIMIT, None))
        self._watch_lease(task)
        self._run(task, launch.argv)
        return running

    def stop(self, task: _Task, reason: StopReason, grace_seconds: float | None) -> None:
        """SIGTERM, the grace, SIGKILL."""
        if task.ended.is_set():
            return
        if reason is StopReason.FINISHED and task.verifying:
            return
        if task.stopped in {StopReason.NONE, StopReason.FINISHED}:
            task.stopped = reason
        verify = task.launch.verify
        program = self.programs[verify[0] if task.verifying and verify else task.launch.argv[0]]
        if not program.stubborn:
            self._killed(task, "SIGTERM")
            return
        grace = task.launch.grace_seconds if grace_seconds is None else grace_seconds
        self._later(task, grace, lambda: self._killed(task, "SIGKILL"))

    def _killed(self, task: _Task, signal: str) -> None:
        if task.stopped is StopReason.FINISHED and task.launch.verify is not None:
            task.stopped = StopReason.NONE
            task.verifying = True
            self._run(task, task.launch.verify)
            return
        self._end(task, signal=signal, phase="verify" if task.verifying else "command")

    def _run(self, task: _Task, argv: list[str]) -> None:
        program = self.programs.get(argv[0])
        if program is None:
            self._end(task, phase="start", start_error=f"{argv[0]!r} cannot be executed")
            return
        limit = task.launch.output_bytes
        with (task.launch.directory / "output.log").open("ab") as file:
            file.write(program.output[: limit - task.output])
        task.output += len(program.output)
        if task.output > limit:
            task.stopped = StopReason.OUTPUT_LIMIT
            self._end(task, signal="SIGKILL", output_truncated=True)
        elif program.seconds < float("inf"):
            self._later(task, program.seconds, lambda: self._exit(task, program.exit_code))

    def _exit(self, task: _Task, code: int) -> None:
        verify = task.launch.verify
        if code == 0 and verify is not None and not task.verifying and task.stopped is StopReason.NONE:
            task.verifying = True
            self._run(task, verify)
            return
        self._end(task, exit_code=code, phase="verify" if task.verifying else "command")

    def _watch_lease(self, task: _Task) -> None:
        left = task.lease_deadline - self.clock.boot()
        if left <= 0:
            self.stop(task, StopReason.LEASE_EXPIRED, 0.0)
        else:
            self._later(task, left, lambda: self._watch_lease(task))

    def _later(self, task: _Task, seconds: float, act: Callable[[], None]) -> None:
        task.timers.append(asyncio.get_running_loop().call_later(min(seconds, 1e6), act))

    def _let_go(self, task: _Task) -> None:
        for timer in task.timers:
            timer.cancel()

    def _end(self, task: _Task, **how: object) -> None:
        if task.ended.is_set():
            return
        self._let_go(task)
        now = self.clock.wall_ms()
        result = contract.Result(
            task_id=task.launch.task_id,
            stopped=task.stopped,
            started_ms=task.running.started_ms,
            ended_ms=now,
            boot_id=self.boot_id,
            usage=wire.Usage(wall_seconds=(now - task.running.started_ms) / 1000),
            **how,  # type: ignore[arg-type]
        )
        (task.launch.directory / "result.json").write_bytes(msgspec.json.encode(result))
        task.ended.set()


class FakeExecutor:
    """One daemon's view of a :class:`FakeKernel`."""

    name = "process"
    owns_directories = True

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.opened = False

    def guarantees(self) -> dict[str, str]:
        aspects = ("memory", "cpu", "processes", "files", "network", "user", "containment")
        return dict.fromkeys(aspects, "not enforced: a fake")

    def place(self, directory: Path) -> Path:
        return directory

    def door(self, directory: Path) -> contract.Door:
        return contract.Door(directory, directory, is_shared=False)

    async def open(self) -> None:
        self.opened = True

    async def close(self) -> None:
        self.opened = False

    async def start(self, launch: contract.Launch) -> contract.Running:
        assert self.opened
        await asyncio.sleep(0)
        return self.kernel.start(launch)

    def adopt(self, directory: Path) -> tuple[Condition, contract.Running | None]:
        task = self.kernel.tasks.get(directory)
        if task is not None and not task.ended.is_set():
            return Condition.RUNNING, task.running
        if self.read_result(directory) is not None:
            return Condition.ENDED, None
        return (Condition.VANISHED if (directory / "supervisor").exists() else Condition.UNSTARTED), None

    def cpu_seconds(self, directory: Path) -> float | None:  # noqa: ARG002 - it has no processes
        return None

    async def wait(self, directory: Path) -> None:
        task = self.kernel.tasks.get(directory)
        if task is not None:
            await task.ended.wait()

    def read_result(self, directory: Path) -> contract.Result | None:
        try:
            result = msgspec.json.decode((directory / "result.json").read_bytes(), type=contract.Result)
        except (OSError, msgspec.MsgspecError):
            return None
        return result if result.task_id == directory.name else None

    def stop(self, directory: Path, reason: StopReason, *, grace_seconds: float | None = None) -> None:
        condition, _ = self.adopt(directory)
        if condition is Condition.RUNNING:
            self.kernel.stop(self.kernel.tasks[directory], reason, grace_seconds)
        elif condition is Condition.UNSTARTED:
            (directory / "stop").write_text(reason.value)

    def accompany(self, directory: Path, companion: contract.Companion | None) -> None:
        """The daemon sees all that its tasks see."""

    def renew(self, directory: Path, lease_deadline: float) -> None:
        task = self.kernel.tasks.get(directory)
        if task is not None:
            task.lease_deadline = max(task.lease_deadline, lease_deadline)

    def end_leftovers(self, directory: Path) -> int:
        assert self.adopt(directory)[0] is not Condition.RUNNING
        return 0
