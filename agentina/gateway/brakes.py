"""When a provider's key is left alone: after it said "too many requests", or failed again and again. Pure.

Twenty agents that each retry a limited provider by their own clock are a storm; here one refusal stops them all for as
long as the provider asked, and they are answered from here. Nothing is ever retried by the gateway itself.
"""

from __future__ import annotations

import dataclasses
from typing import Final

#: Seconds after a first refusal that named none; doubles with each further one.
_FIRST: Final = 1.0
_LONGEST: Final = 60.0
#: Seconds a provider may ask for at most.
_MOST_ASKED: Final = 3600.0
#: Failures of the server in a row before it is left alone.
_TOLERATED: Final = 5
#: Too many requests; overloaded (Anthropic's 529).
_LIMITED: Final = frozenset({429, 529})
_UNAVAILABLE: Final = 503
_SERVER_FAULT: Final = 500
_BAD_KEY: Final = frozenset({401, 403})
#: Seconds for which a key that was refused is not tried again.
_KEY_SECONDS: Final = 30.0


@dataclasses.dataclass(slots=True)
class Brake:
    """One key of one provider. Times are CLOCK_BOOTTIME seconds."""

    #: Until when it is left alone, and the status that is answered meanwhile.
    until: float = 0.0
    status: int = 0
    _limited: int = 0
    _failed: int = 0

    def seconds(self, now: float) -> float:
        """Seconds it is still to be left alone; 0: it may be used."""
        return max(0.0, self.until - now)

    @property
    def story(self) -> str:
        """Why it is left alone, as the end of a sentence about the provider."""
        if self.status in _LIMITED or self.status == _UNAVAILABLE:
            return f"has too much to do (it answered {self.status})"
        if self.status == 0:
            return f"failed {self._failed} times in a row (without an answer at last)"
        return f"failed {self._failed} times in a row (it answered {self.status})"

    def note(self, status: int, now: float, *, retry_after: float | None = None) -> None:
        """Learn from an answer; 0 is no answer at all."""
        if status in _LIMITED or (status == _UNAVAILABLE and retry_after is not None):
            self._limited += 1
            pause = min(_LONGEST, _FIRST * 2 ** min(self._limited - 1, 10))
            self._hold(now, status, pause if retry_after is None else min(retry_after, _MOST_ASKED))
        elif status in _BAD_KEY:
            self._hold(now, status, _KEY_SECONDS)
        elif status >= _SERVER_FAULT or status == 0:
            self._failed += 1
            if self._failed >= _TOLERATED:
                self._hold(now, status, min(_LONGEST, _FIRST * 2 ** min(self._failed - _TOLERATED, 10)))
        else:
            self._limited = self._failed = 0

    def _hold(self, now: float, status: int, seconds: float) -> None:
        # Answers of calls that were under way together must not shorten what one of them said.
        if now + seconds >= self.until:
            self.until, self.status = now + seconds, status
