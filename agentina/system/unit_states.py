"""What PID 1 says of a unit (``systemctl show``), for root's programs.

Daemons speak with PID 1 over D-Bus (:mod:`agentina.system.systemd`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from agentina import errors
from agentina.system import services

_QUOTED: Final = 300
_PROPERTIES: Final = (
    "Id", "ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus", "MainPID", "Job",
    "ActiveEnterTimestampMonotonic", "InactiveExitTimestampMonotonic",
)  # fmt: skip
#: CLD_EXITED of waitid(2), as ExecMainCode has it.
_EXITED: Final = "1"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A unit as it is now."""

    name: str
    #: ``active``, ``activating``, ``deactivating``, ``reloading``, ``inactive`` or ``failed``.
    state: str
    #: How its last run ended, in systemd's words (systemd.exec(5), SERVICE_RESULT); ``success`` also before any.
    result: str = "success"
    #: Exit code or number of the signal, in words.
    ended: str = ""
    pid: int = 0
    #: A start or stop is queued for it.
    has_job: bool = False
    #: CLOCK_MONOTONIC seconds at which it last began to start, and at which it was up; 0: never.
    began: float = 0.0
    up: float = 0.0

    @property
    def runs(self) -> bool:
        """Whether it is up, or on its way up or down."""
        return self.state not in {"inactive", "failed"} or self.has_job

    @property
    def was_up(self) -> bool:
        """Whether its last run came so far that it was ready."""
        return 0 < self.began <= self.up


def show(name: str) -> Unit:
    """One unit, loaded or not.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    return parse(_shown(name))[0]


def show_all(pattern: str) -> list[Unit]:
    """The loaded units whose names fit ``pattern``. Raises like :func:`show`."""
    return parse(_shown(pattern))


def parse(text: str) -> list[Unit]:
    """The units in what ``systemctl show`` printed: blocks of ``KEY=VALUE``, with an empty line between."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]
    return [_unit(block) for block in blocks if block.get("Id")]


def _unit(said: Mapping[str, str]) -> Unit:
    code, status = said.get("ExecMainCode", "0"), said.get("ExecMainStatus", "0")
    ended = "" if code == "0" else f"exit code {status}" if code == _EXITED else f"signal {status}"
    return Unit(
        name=said["Id"],
        state=said.get("ActiveState", "inactive"),
        result=said.get("Result", "success"),
        ended=ended,
        pid=_number(said.get("MainPID", "")),
        has_job=_number(said.get("Job", "")) > 0,
        began=_number(said.get("InactiveExitTimestampMonotonic", "")) / 1e6,
        up=_number(said.get("ActiveEnterTimestampMonotonic", "")) / 1e6,
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _shown(name: str) -> str:
    done = services.call("show", f"--property={','.join(_PROPERTIES)}", name)
    if done.returncode:
        raise errors.SERVICE_FAILED(what=f"show {name}", unit=name, problem=" ".join(done.stderr.split())[:_QUOTED])
    return done.stdout
