from __future__ import annotations

import jeepney
import pytest

from agentina import errors
from agentina.system import systemd

UNIT = "agentina-task@default-S1.service"


class Refusing:
    """A connection on which every call is answered with an error."""

    closed = False

    def __init__(self, name: str) -> None:
        self._name = name

    async def call(self, message: jeepney.Message) -> None:
        raise jeepney.DBusErrorResponse(jeepney.new_error(message, self._name, "s", ("words",)))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", "SYSTEMD_REFUSED"),
        ("org.freedesktop.systemd1.NoSuchUnit", "SYSTEMD_REFUSED"),
        # PID 1 went away from the bus while it had the request.
        ("org.freedesktop.DBus.Error.NoReply", "SYSTEMD_UNREACHABLE"),
        ("org.freedesktop.DBus.Error.ServiceUnknown", "SYSTEMD_UNREACHABLE"),
    ],
)
async def test_refusal_is_told_from_nobody_there(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = systemd.Manager()
    monkeypatch.setattr(manager, "_connection", Refusing(name))
    with pytest.raises(errors.AgentinaError, match="words") as caught:
        await manager.stop(UNIT)
    assert caught.value.code == code
