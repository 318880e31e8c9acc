"""Whether the event loop itself may wait for the disk: a fast commit costs less than the way to a thread and back."""

from __future__ import annotations

from typing import Final

#: Commits below this many seconds are waited for on the event loop. The way to a thread and back takes less of an idle
#: processor; but where all are busy, most of the time is waiting for one, which a thread does twice, and what is asked
#: while the loop waits shares the next commit. Nothing it serves minds a few milliseconds.
FAST_COMMIT: Final = 0.003


class Pace:
    """Decides from the commits so far whether the next may run on the event loop.

    One slow commit is enough to leave the loop; many fast ones in the thread are needed to come back.
    """

    __slots__ = ("_expected",)

    #: Weight of the newest commit while they get faster.
    _WEIGHT: Final = 1 / 16

    def __init__(self) -> None:
        self._expected = 2 * FAST_COMMIT

    @property
    def is_fast(self) -> bool:
        """Whether the loop may wait for the next commit."""
        return self._expected < FAST_COMMIT

    def note(self, seconds: float) -> None:
        """A commit took this long."""
        if seconds > 4 * FAST_COMMIT:
            self._expected = max(self._expected, seconds)
        else:
            self._expected += (seconds - self._expected) * self._WEIGHT
