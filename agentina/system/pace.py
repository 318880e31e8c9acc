"""Whether the event loop itself may wait for the disk: a fast commit costs less than the way to a thread and back."""

from __future__ import annotations

from typing import Final

#: Commits below this many seconds are cheaper on the event loop than the way to a thread and back.
FAST_COMMIT: Final = 0.001


class Pace:
    """Decides from the commits so far whether the next may run on the event loop.

    One slow commit is enough to leave the loop; many fast ones in the thread are needed to come back.
    """

    __slots__ = ("_expected", "_fast")

    #: Weight of the newest commit while they get faster.
    _WEIGHT: Final = 1 / 16

    def __init__(self, *, fast_seconds: float = FAST_COMMIT) -> None:
        """``fast_seconds``: the loop waits for commits below this; more where nobody else needs it meanwhile."""
        self._fast = fast_seconds
        self._expected = 2 * fast_seconds

    @property
    def is_fast(self) -> bool:
        """Whether the loop may wait for the next commit."""
        return self._expected < self._fast

    def note(self, seconds: float) -> None:
        """A commit took this long."""
        if seconds > 4 * self._fast:
            self._expected = max(self._expected, seconds)
        else:
            self._expected += (seconds - self._expected) * self._WEIGHT
