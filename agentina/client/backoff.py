"""How long to wait before trying again: full jitter, doubling, so that a peer that comes back is not stampeded.

The rule is the protocol's (docs/reference/protocol.md, retries by the host); `Full jitter` is the name it has in
AWS's "Exponential Backoff And Jitter", whose simulation shows the fewest collisions for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

#: Seconds the first delay is at most, and any delay is at most.
FIRST: Final = 0.5
MOST: Final = 60.0
#: Longest ``Retry-After`` obeyed, in seconds: a peer's mistake must not silence a host for days.
MOST_ASKED: Final = 600.0


class Backoff:
    """The delays of one thing that is retried. Not shared between things that fail separately."""

    def __init__(
        self,
        *,
        first: float = FIRST,
        most: float = MOST,
        chance: Callable[[], float] = random.random,  # noqa: S311 - spreads load, guards nothing
    ) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return self._failures

    def delay(self, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure; at least ``retry_after``, when the peer named a time."""
        # The exponent is bounded so that years of failures do not overflow a float.
        ceiling = min(self._most, self._first * 2.0 ** min(self._failures, 30))
        self._failures += 1
        jitter = self._chance() * ceiling
        if retry_after is None:
            return jitter
        return min(max(retry_after, 0.0), MOST_ASKED) + jitter

    def reset(self) -> None:
        """It worked: the next failure waits shortly again."""
        self._failures = 0
