"""Time. Wall time is for people and records; everything that is measured or expires uses boot time.

``CLOCK_BOOTTIME`` goes on while a machine is suspended and is not touched by anybody setting the clock (time(7)), so a
lease cannot be stretched by either.
"""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

#: Digits of the latest time that is believed, in milliseconds.
_MOST_DIGITS: Final = 16


class Clock(Protocol):
    """What code that depends on time asks for; tests give a stepped one."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...

    def boot(self) -> float:
        """Seconds since boot, including suspension."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def boot(self) -> float:
        """Seconds since boot, including suspension."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's id of this boot (random(4)); differs after every restart of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def read_ms(text: str) -> int | None:
    """Milliseconds since the epoch as somebody else tells them; None: that is no such time."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def show_time(wall_ms: int) -> str:
    """``wall_ms`` as ISO 8601 in UTC with seconds, for people and records."""
    return _show_seconds(wall_ms // 1000)


@functools.lru_cache(maxsize=4)
def _show_seconds(wall_seconds: int) -> str:
    # Each line of a log asks, hundreds in a second.
    return datetime.fromtimestamp(wall_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
