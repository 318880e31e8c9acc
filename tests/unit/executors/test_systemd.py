"""The daemon's side of slots, where PID 1 is not itself; the rest is tested on real hosts (tests/vm/test_slots.py)."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, cast

import pytest

from agentina import errors
from agentina.executors import contract, fields
from agentina.executors import systemd as executors
from agentina.system import clock, files, systemd
from tests.fakes import launches


class Manager:
    """PID 1 that is away for some calls, and then takes the ticket as task-prepare does."""

    def __init__(self, tickets: Path, task: Path, *, away: int) -> None:
        self._tickets = tickets
        self._task = task
        self.away = away
        self.waits = 0

    async def set_properties(self, unit: str, values: dict[str, Any]) -> None:
        """Takes them."""

    async def start(self, _: str) -> str:
        """One call."""
        if self.away:
            self.away -= 1
            raise errors.SYSTEMD_UNREACHABLE(problem="no reply")
        (ticket,) = [path for path in self._tickets.iterdir() if path.name.isdecimal()]
        nonce = fields.decode(ticket.read_bytes())["nonce"][0]
        ticket.unlink()
        (self._task / "started").write_bytes(fields.encode([("nonce", nonce), ("slot", "default-S1")]))
        return "done"

    async def wait_for_change(self, _: float) -> None:
        """Something changes at once."""
        self.waits += 1


async def test_start_waits_for_pid_1_to_come_back(tmp_path: Path) -> None:
    launch = launches.make(tmp_path / "tasks", "true")
    manager = Manager(tmp_path / "slots", launch.directory, away=3)
    manager._tickets.mkdir()
    executor = executors.SystemdExecutor(tmp_path, manager=cast(systemd.Manager, manager))
    await executor.start(launch)
    assert manager.waits == 3
    assert list(manager._tickets.iterdir()) == [], "no ticket is left that a late start could take"


async def test_start_gives_up_when_the_lease_is_over(tmp_path: Path) -> None:
    launch = launches.make(tmp_path / "tasks", "true", lease_deadline=clock.SystemClock().boot())
    manager = Manager(tmp_path / "slots", launch.directory, away=1000)
    manager._tickets.mkdir()
    executor = executors.SystemdExecutor(tmp_path, manager=cast(systemd.Manager, manager))
    with pytest.raises(errors.AgentinaError) as caught:
        await executor.start(launch)
    assert caught.value.code == "SYSTEMD_UNREACHABLE"
    assert list(manager._tickets.iterdir()) == []


@pytest.mark.parametrize(
    ("order", "stopped", "read"),
    [
        ("finished", "canceled", contract.StopReason.FINISHED),
        ("finished", "finished", contract.StopReason.FINISHED),
        ("finished", "none", contract.StopReason.NONE),
        ("finished", "time-limit", contract.StopReason.TIME_LIMIT),
        ("canceled", "canceled", contract.StopReason.CANCELED),
        ("", "canceled", contract.StopReason.CANCELED),
    ],
)
def test_an_order_that_an_older_base_does_not_know_is_understood(
    tmp_path: Path, order: str, stopped: str, read: contract.StopReason
) -> None:
    executor = executors.SystemdExecutor(tmp_path, manager=cast(systemd.Manager, None))
    (tmp_path / "result.json").write_text(f'{{"task_id": "t", "stopped": "{stopped}"}}')
    if order:
        (tmp_path / "stop").write_bytes(fields.encode([("reason", order)]))
    result = executor.read_result(tmp_path)
    assert result is not None
    assert result.stopped is read


async def test_order_for_a_task_that_has_just_ended_stops_no_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its place for orders is gone, and its unit not at rest yet; the next task in the slot is another."""
    state, directory = tmp_path / "default", tmp_path / "tasks"
    directory.mkdir()
    (directory / "started").write_bytes(fields.encode([("nonce", "n"), ("slot", "default-S1")]))
    executor = executors.SystemdExecutor(state, manager=cast(systemd.Manager, None))
    monkeypatch.setattr(executor, "_occupies", lambda _: True)
    stopped: list[Path] = []
    monkeypatch.setattr(executor, "_stop_unit", stopped.append)
    executor.stop(directory, contract.StopReason.CANCELED)
    executor.accompany(directory, contract.Companion(argv=["true"], seconds=1.0))
    assert (stopped, caplog.messages) == ([], [])


def test_result_that_cannot_be_looked_at_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended well would be lost, and done again."""

    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    launch = launches.make(tmp_path / "tasks", "true")
    executor = executors.SystemdExecutor(tmp_path)
    assert executor.read_result(launch.directory) is None
    monkeypatch.setattr(files, "read_bounded", refuse)
    with pytest.raises(errors.AgentinaError, match="too many open files"):
        executor.read_result(launch.directory)
