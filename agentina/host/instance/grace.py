"""How long the host may go on without the control plane. Setting the clock neither stretches nor shrinks it.

Within one boot the time without contact is measured on the boot clock. Across boots the boot clock starts anew, so the
wall clock bridges the gap from what was last written, and counts as zero when it went back. What was used before is
kept, so that restarts do not renew the grace.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.system import clock, files

#: Seconds between writes of the mark.
WRITE_SECONDS: Final = 60.0
_MAX_MARK: Final = 4096

_log = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Where the measuring stands: ``used_seconds`` of grace at one moment, named on both clocks."""

    boot_id: str
    boot_seconds: float
    wall_ms: int
    used_seconds: float


def used(mark: Mark, *, boot_id: str, boot_seconds: float, wall_ms: int) -> float:
    """Seconds without contact at the moment the arguments name. Pure."""
    same_boot = mark.boot_id == boot_id
    since = boot_seconds - mark.boot_seconds if same_boot else (wall_ms - mark.wall_ms) / 1000
    return max(0.0, mark.used_seconds) + max(0.0, since)


class Grace:
    """The offline grace of one instance, kept in a file."""

    def __init__(self, path: Path, *, boot_id: str, clocks: clock.Clock) -> None:
        self._path = path
        self._boot_id = boot_id
        self._clock = clocks
        self._mark = self._read() or self._now(0.0)
        self._written = -WRITE_SECONDS

    @property
    def used_seconds(self) -> float:
        """Seconds since the last contact."""
        return used(self._mark, boot_id=self._boot_id, boot_seconds=self._clock.boot(), wall_ms=self._clock.wall_ms())

    def contact(self) -> None:
        """The control plane answered: the grace is whole again."""
        self._mark = self._now(0.0)

    def write(self) -> None:
        """Keep the present state over a restart, at most each :data:`WRITE_SECONDS`."""
        now = self._clock.boot()
        if now - self._written < WRITE_SECONDS:
            return
        self._written = now
        self._mark = self._now(self.used_seconds)
        try:
            files.write_atomic(self._path, msgspec.json.encode(self._mark), durable=False)
        except errors.AgentinaError as error:
            _log.warning("the offline grace cannot be kept: %s", error, extra={"code": error.code})

    def _now(self, used_seconds: float) -> Mark:
        return Mark(
            boot_id=self._boot_id,
            boot_seconds=self._clock.boot(),
            wall_ms=self._clock.wall_ms(),
            used_seconds=used_seconds,
        )

    def _read(self) -> Mark | None:
        try:
            return msgspec.json.decode(files.read_bounded(self._path, limit=_MAX_MARK), type=Mark)
        except (OSError, errors.AgentinaError, msgspec.MsgspecError):
            return None
