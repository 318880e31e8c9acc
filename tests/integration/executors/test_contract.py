"""The executor contract, held against every executor there is: the real ones and the fake."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.executors import contract, process
from agentina.executors.contract import Condition, StopReason
from agentina.system import clock
from tests.fakes import deadlines, hosts, launches
from tests.fakes import executor as fake_executor

FOREVER = float("inf")
#: The same programs for all: what the fake does, and a shell script that does it.
PROGRAMS = {
    "succeed": (fake_executor.Program(output=b"done\n"), "echo done"),
    "fail": (fake_executor.Program(exit_code=3), "exit 3"),
    "linger": (fake_executor.Program(seconds=0.3, output=b"hi\n"), "echo hi; sleep 0.3"),
    "run": (fake_executor.Program(seconds=FOREVER), "exec sleep 1000"),
    "tell": (fake_executor.Program(seconds=FOREVER, output=b"told\n"), "echo told; exec sleep 1000"),
    "resist": (
        fake_executor.Program(seconds=FOREVER, stubborn=True, output=b"deaf\n"),
        "trap '' TERM; echo deaf; while :; do sleep 1; done",
    ),
    "flood": (fake_executor.Program(output=b"x" * 70_000), "head -c 70000 /dev/zero | tr '\\0' x; sleep 1000"),
}


@dataclasses.dataclass
class Stage:
    """Makes executors of one kind, as daemons after each other or beside each other would."""

    path: Path
    kind: str
    make: Callable[[], contract.Executor]
    command: Callable[[str], list[str]]
    vanish: Callable[[Path], None]

    def launch(self, program: str, *, verify: str | None = None, **changes: Any) -> contract.Launch:
        verification = None if verify is None else self.command(verify)
        return launches.make(self.path, *self.command(program), verify=verification, **changes)

    async def open(self) -> contract.Executor:
        made = self.make()
        await made.open()
        return made


def systemd_stage() -> Stage:
    """Slots of the unit template."""
    from agentina.executors import systemd  # noqa: PLC0415

    state = hosts.fresh_instance()

    def vanish(directory: Path) -> None:
        # What the daemon's user can do to keep root's helper from leaving a result.
        (directory / ".result.json.room").unlink()
        (directory / ".result.json.room").mkdir()
        hosts.kill_supervisor(directory)

    def command(name: str) -> list[str]:
        return ["/bin/sh", "-c", PROGRAMS[name][1]] if name in PROGRAMS else [name]

    return Stage(state / "tasks", "systemd", lambda: systemd.SystemdExecutor(state), command, vanish)


#: Slots exist on hosts with agentina's units only: tests/vm runs this suite there, as the daemon's user.
KINDS = ["fake", "process", "systemd"] if hosts.is_prepared() else ["fake", "process"]


@pytest.fixture(params=KINDS)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    if request.param == "systemd":
        return systemd_stage()
    if request.param == "fake":
        kernel = fake_executor.FakeKernel({name: program for name, (program, _) in PROGRAMS.items()})
        return Stage(tmp_path, "fake", lambda: fake_executor.FakeExecutor(kernel), lambda name: [name], kernel.vanish)
    count = 0

    def make() -> contract.Executor:
        nonlocal count
        count += 1
        state = tmp_path / f"state{count}"
        state.mkdir()
        return process.ProcessExecutor(state)

    def command(name: str) -> list[str]:
        return ["/bin/sh", "-c", PROGRAMS[name][1]] if name in PROGRAMS else [name]

    def vanish(directory: Path) -> None:
        import os  # noqa: PLC0415
        import signal  # noqa: PLC0415

        os.kill(process.read_fence(directory).pid, signal.SIGKILL)

    return Stage(tmp_path, "process", make, command, vanish)


@pytest.fixture
async def executor(stage: Stage) -> AsyncIterator[contract.Executor]:
    made = await stage.open()
    yield made
    await made.close()


async def run(executor: contract.Executor, launch: contract.Launch) -> contract.Result:
    await executor.start(launch)
    return await ended(executor, launch.directory)


async def ended(executor: contract.Executor, directory: Path) -> contract.Result:
    async with asyncio.timeout(deadlines.HANG):
        await executor.wait(directory)
    result = executor.read_result(directory)
    assert result is not None
    assert executor.adopt(directory) == (Condition.ENDED, None)
    return result


async def printed(launch: contract.Launch, text: bytes) -> None:
    """Wait until the task has printed it."""
    output = launch.directory / "output.log"
    async with asyncio.timeout(deadlines.HANG):
        while not output.exists() or text not in output.read_bytes():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


async def test_command_that_succeeds(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("succeed")
    assert executor.adopt(launch.directory) == (Condition.UNSTARTED, None)
    result = await run(executor, launch)
    assert (result.exit_code, result.signal, result.phase) == (0, None, "command")
    assert (result.stopped, result.oom, result.output_truncated) == (StopReason.NONE, "none", False)
    assert result.task_id == launch.task_id
    assert result.ended_ms >= result.started_ms > 0
    assert result.boot_id
    assert (launch.directory / "output.log").read_bytes() == b"done\n"


async def test_command_that_fails(stage: Stage, executor: contract.Executor) -> None:
    result = await run(executor, stage.launch("fail"))
    assert (result.exit_code, result.phase, result.stopped) == (3, "command", StopReason.NONE)


async def test_missing_program_is_a_result(stage: Stage, executor: contract.Executor) -> None:
    result = await run(executor, stage.launch("no-such-program"))
    assert (result.exit_code, result.phase) == (None, "start")
    assert "no-such-program" in result.start_error


async def test_second_start_is_refused_while_it_runs_and_afterwards(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("linger")
    await executor.start(launch)
    for _ in range(2):
        with pytest.raises(errors.AgentinaError) as caught:
            await executor.start(launch)
        assert caught.value.code == "STATE_CONFLICT"
        await ended(executor, launch.directory)
    assert (launch.directory / "output.log").read_bytes() == b"hi\n"


async def test_of_many_starts_from_two_daemons_one_wins(stage: Stage, executor: contract.Executor) -> None:
    other = await stage.open()
    launch = stage.launch("linger")
    starts = [each.start(launch) for each in (executor, other) * 5]
    outcomes = await asyncio.gather(*starts, return_exceptions=True)
    won = [outcome for outcome in outcomes if isinstance(outcome, contract.Running)]
    lost = [outcome.code for outcome in outcomes if isinstance(outcome, errors.AgentinaError)]
    assert (len(won), lost) == (1, ["STATE_CONFLICT"] * 9)
    await ended(other, launch.directory)
    assert (launch.directory / "output.log").read_bytes() == b"hi\n"
    await other.close()


async def test_stop_ends_it_with_the_reason(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("run")
    await executor.start(launch)
    executor.stop(launch.directory, StopReason.CANCELED)
    executor.stop(launch.directory, StopReason.HOST_SHUTDOWN)
    result = await ended(executor, launch.directory)
    assert (result.stopped, result.signal, result.exit_code) == (StopReason.CANCELED, "SIGTERM", None)
    executor.stop(launch.directory, StopReason.CANCELED)
    assert executor.read_result(launch.directory) == result


async def test_who_ignores_sigterm_is_killed_after_the_grace(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("resist", grace_seconds=60.0)
    await executor.start(launch)
    await printed(launch, b"deaf")
    executor.stop(launch.directory, StopReason.CANCELED, grace_seconds=0.3)
    assert executor.adopt(launch.directory)[0] is Condition.RUNNING
    result = await ended(executor, launch.directory)
    assert (result.stopped, result.signal) == (StopReason.CANCELED, "SIGKILL")


async def test_a_command_that_had_finished_is_ended_alone(stage: Stage, executor: contract.Executor) -> None:
    async def finish(launch: contract.Launch) -> contract.Result:
        await executor.start(launch)
        executor.stop(launch.directory, StopReason.FINISHED, grace_seconds=5)
        return await ended(executor, launch.directory)

    alone = await finish(stage.launch("run", name="alone"))
    assert (alone.stopped, alone.signal, alone.phase) == (StopReason.FINISHED, "SIGTERM", "command")
    good = await finish(stage.launch("run", verify="succeed", name="good"))
    assert (good.stopped, good.exit_code, good.phase) == (StopReason.NONE, 0, "verify")
    bad = await finish(stage.launch("run", verify="fail", name="bad"))
    assert (bad.stopped, bad.exit_code, bad.phase) == (StopReason.NONE, 3, "verify")


async def test_an_end_of_the_task_goes_before_that_of_its_command(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("run", verify="tell", timeout_seconds=600.0)
    await executor.start(launch)
    executor.stop(launch.directory, StopReason.FINISHED)
    await printed(launch, b"told")
    executor.stop(launch.directory, StopReason.FINISHED)
    assert executor.adopt(launch.directory)[0] is Condition.RUNNING
    executor.stop(launch.directory, StopReason.CANCELED)
    result = await ended(executor, launch.directory)
    assert (result.stopped, result.signal, result.phase) == (StopReason.CANCELED, "SIGTERM", "verify")


async def test_stop_asked_before_the_start_holds(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("succeed")
    executor.stop(launch.directory, StopReason.CANCELED)
    result = await run(executor, launch)
    assert (result.stopped, result.phase, result.exit_code) == (StopReason.CANCELED, "start", None)
    assert (launch.directory / "output.log").read_bytes() == b""


async def test_time_limit(stage: Stage, executor: contract.Executor) -> None:
    result = await run(executor, stage.launch("run", timeout_seconds=0.3))
    assert (result.stopped, result.signal) == (StopReason.TIME_LIMIT, "SIGTERM")
    assert result.usage.wall_seconds is not None
    assert result.usage.wall_seconds > 0.25


async def test_time_limit_of_a_stubborn_task(stage: Stage, executor: contract.Executor) -> None:
    # A real shell has set its trap by then.
    result = await run(executor, stage.launch("resist", timeout_seconds=2.0, grace_seconds=0.2))
    assert (result.stopped, result.signal) == (StopReason.TIME_LIMIT, "SIGKILL")


async def test_lease_deadline_ends_it_in_time(stage: Stage, executor: contract.Executor) -> None:
    clocks = clock.SystemClock()
    deadline, deadline_ms = clocks.boot() + 2.5, clocks.wall_ms() + 2500
    result = await run(executor, stage.launch("resist", lease_deadline=deadline, grace_seconds=0.3))
    assert result.ended_ms < deadline_ms + 5000, "the control plane gives it away after its margin"
    assert (result.stopped, result.signal) == (StopReason.LEASE_EXPIRED, "SIGKILL")


async def test_renewed_lease_keeps_it_alive(stage: Stage, executor: contract.Executor) -> None:
    boot = clock.SystemClock().boot
    deadline = boot() + 3
    launch = stage.launch("run", lease_deadline=deadline, grace_seconds=0.2)
    await executor.start(launch)
    executor.renew(launch.directory, deadline + 1.5)
    await asyncio.sleep(deadline + 0.3 - boot())
    assert executor.adopt(launch.directory)[0] is Condition.RUNNING
    assert (await ended(executor, launch.directory)).stopped is StopReason.LEASE_EXPIRED


async def test_output_limit(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("flood", output_bytes=1000)
    result = await run(executor, launch)
    assert (result.stopped, result.output_truncated) == (StopReason.OUTPUT_LIMIT, True)
    assert (launch.directory / "output.log").read_bytes() == b"x" * 1000


async def test_verify_decides_after_success(stage: Stage, executor: contract.Executor) -> None:
    first = stage.launch("succeed", verify="succeed", name="good")
    good = await run(executor, first)
    bad = await run(executor, stage.launch("succeed", verify="fail", name="bad"))
    unasked = await run(executor, stage.launch("fail", verify="succeed", name="unasked"))
    assert (good.exit_code, good.phase) == (0, "verify")
    assert (bad.exit_code, bad.phase) == (3, "verify")
    assert (unasked.exit_code, unasked.phase) == (3, "command")
    assert (first.directory / "output.log").read_bytes() == b"done\ndone\n"


async def test_next_daemon_adopts(stage: Stage) -> None:
    first = await stage.open()
    launch = stage.launch("run")
    running = await first.start(launch)
    await first.close()
    second = await stage.open()
    assert second.adopt(launch.directory) == (Condition.RUNNING, running)
    assert running.pid > 0
    waiting = asyncio.gather(second.wait(launch.directory), second.wait(launch.directory))
    second.stop(launch.directory, StopReason.CANCELED)
    await waiting
    assert (await ended(second, launch.directory)).stopped is StopReason.CANCELED
    await second.close()


async def test_supervisor_killed_means_vanished(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("run")
    await executor.start(launch)
    stage.vanish(launch.directory)
    async with asyncio.timeout(deadlines.HANG):
        await executor.wait(launch.directory)
    assert executor.adopt(launch.directory) == (Condition.VANISHED, None)
    assert executor.read_result(launch.directory) is None
    with pytest.raises(errors.AgentinaError) as caught:
        await executor.start(launch)
    assert caught.value.code == "STATE_CONFLICT"


async def test_damaged_result_is_unknown_not_success(stage: Stage, executor: contract.Executor) -> None:
    launch = stage.launch("succeed")
    await run(executor, launch)
    (launch.directory / "result.json").write_bytes(b'{"task_id": ')
    assert executor.read_result(launch.directory) is None
    assert executor.adopt(launch.directory) == (Condition.VANISHED, None)


async def test_result_of_another_task_is_none_where_directories_are_used_again(
    stage: Stage, executor: contract.Executor
) -> None:
    launch = stage.launch("succeed")
    await run(executor, launch)
    (launch.directory / "result.json").write_bytes(b'{"task_id": "job_fedcba9876543210.1", "exit_code": 0}')
    assert (executor.read_result(launch.directory) is None) == executor.owns_directories


async def test_guarantees_cover_every_aspect(executor: contract.Executor) -> None:
    aspects = {"memory", "cpu", "processes", "files", "network", "user", "containment"}
    assert set(executor.guarantees()) == aspects
    assert all(executor.guarantees().values())
