"""The token bucket: so many at once, then one in so many seconds. Pure."""

from __future__ import annotations


class Bucket:
    """Times are of any clock that only goes forward, in seconds."""

    def __init__(self, *, burst: int, refill_seconds: float, now: float = 0.0) -> None:
        self._burst = float(burst)
        self._refill = refill_seconds
        self._room = self._burst
        self._since = now

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        self._fill(now)
        if self._room < 1:
            return False
        self._room -= 1
        return True

    def wait(self, now: float) -> float:
        """Seconds until one more would be let in."""
        self._fill(now)
        return max(0.0, 1 - self._room) * self._refill

    def _fill(self, now: float) -> None:
        self._room = min(self._burst, self._room + max(0.0, now - self._since) / self._refill)
        self._since = max(self._since, now)
