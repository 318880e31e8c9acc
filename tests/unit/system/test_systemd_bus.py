"""What is believed of messages on the bus; PID 1 itself is in tests/vm."""

from __future__ import annotations

import asyncio

import pytest

from agentina.system import systemd

_PID_1 = ":1.1"
_UNIT = "agentina-task@default-S1.service"


@pytest.fixture
def manager() -> systemd.Manager:
    """One that waits for the end of a job."""
    made = systemd.Manager()
    made._owner = _PID_1
    made._jobs[_UNIT] = asyncio.Queue()
    return made


@pytest.mark.parametrize(
    ("member", "body"),
    [
        ("JobRemoved", (7, "/job/7", _UNIT, "failed")),
        ("JobRemoved", ()),
        ("UnitRemoved", (_UNIT, "/unit")),
        ("NameOwnerChanged", ("org.freedesktop.systemd1", _PID_1, "")),
    ],
)
async def test_other_users_of_the_bus_are_not_believed(
    manager: systemd.Manager, member: str, body: tuple[object]
) -> None:
    changed = manager._changed
    manager._on_signal(":1.66", member, body)
    assert manager._jobs[_UNIT].empty()
    assert not changed.is_set()


async def test_pid_1_is_believed(manager: systemd.Manager) -> None:
    changed = manager._changed
    manager._on_signal(_PID_1, "JobRemoved", (7, "/job/7", _UNIT, "done"))
    assert manager._jobs[_UNIT].get_nowait() == ("/job/7", "done")
    assert changed.is_set()


async def test_connection_ends_with_pid_1_as_it_was(manager: systemd.Manager) -> None:
    manager._on_signal("org.freedesktop.DBus", "NameOwnerChanged", ("org.example", _PID_1, ""))
    with pytest.raises(EOFError):
        manager._on_signal("org.freedesktop.DBus", "NameOwnerChanged", ("org.freedesktop.systemd1", _PID_1, ""))
