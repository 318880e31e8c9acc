"""Maintenance windows: when a host may be given another release. Pure.

Written ``[DAYS] HH:MM-HH:MM`` in UTC, for example ``22:00-05:00`` or ``mon-fri,sun 01:30-04:00``. A window that passes
midnight belongs to the day on which it begins. The empty text is open always.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from agentina import errors

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM: Final = re.compile(r"(?:([a-z,-]{3,40})\s+)?([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
_MINUTES: Final = 24 * 60
#: 1 January 1970 was a Thursday.
_EPOCH_DAY: Final = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A time of the day, on some days of the week."""

    #: Days on which it begins; 0 is Monday.
    days: frozenset[int] = frozenset(range(7))
    #: Minutes after midnight; equal: the whole day.
    begin: int = 0
    end: int = 0

    def is_open(self, wall_ms: int) -> bool:
        """Whether ``wall_ms`` lies in it."""
        day, minute = divmod(wall_ms // 60_000, _MINUTES)
        today, yesterday = (day + _EPOCH_DAY) % 7, (day + _EPOCH_DAY - 1) % 7
        if self.begin < self.end:
            return today in self.days and self.begin <= minute < self.end
        return (today in self.days and minute >= self.begin) or (yesterday in self.days and minute < self.end)


def parse(text: str) -> Window:
    """The window that ``text`` describes.

    Raises:
        AgentinaError: ``INPUT_INVALID``.

    """
    if not text.strip():
        return Window()
    match = _FORM.fullmatch(text.strip().lower())
    days = _parse_days(match[1] or "mon-sun") if match is not None else None
    if match is None or days is None:
        problem = f"expected [DAYS] HH:MM-HH:MM in UTC, such as 'mon-fri 22:00-05:00', got {text[:60]!r}"
        raise errors.INPUT_INVALID(where="window", problem=problem)
    begin, end = (60 * int(match[hour]) + int(match[hour + 1]) for hour in (2, 4))
    return Window(days, begin, end)


def _parse_days(text: str) -> frozenset[int] | None:
    """Days and ranges of days between commas; None: they are not understood."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            return None
        begin = _DAYS.index(first)
        length = (_DAYS.index(last) - begin) % 7 if dash else 0
        found.update((begin + step) % 7 for step in range(length + 1))
    return frozenset(found)
