"""Refused acts in the audit: who tried what, and why it was not done.

The audit is never shortened, so nobody may fill it: it takes so many refusals an hour, of operators and of strangers
apart, so that strangers cannot hide what an operator tried. The next record says how many were left out.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from agentina import errors
from agentina.control import plane
from agentina.control.services import changes
from agentina.control.store import audit
from agentina.system import buckets

#: Records an hour, and most at once.
PER_HOUR: Final = 100
#: Longest subject kept, in characters: it is what somebody wrote.
_MAX_SUBJECT: Final = 128
#: How our secrets begin: one given in place of a name must not be kept.
_SECRETS: Final = ("act_", "aop_")
#: A credential that is none, whatever it was to be used for.
_CREDENTIAL: Final = frozenset({errors.AUTH_INVALID.code, errors.TOKEN_UNKNOWN.code})
#: Not allowed, not there, not in this state. What is not understood asks for nothing; the rest is the server's trouble.
_STATUSES: Final = frozenset({403, 404, 409})


class Refusals:
    """Writes them down, within the allowance."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        self._operators = _Allowance(control.clock.boot())
        self._strangers = _Allowance(control.clock.boot())

    async def record(
        self, error: errors.AgentinaError, *, act: str, operator: plane.Operator | None, subject: str, source: str
    ) -> None:
        """Keep ``error`` when it refuses a credential, or the ``act`` (empty: it was only asked for something)."""
        if error.code not in _CREDENTIAL and not (act and error.entry.status in _STATUSES):
            return
        allowance = self._strangers if operator is None else self._operators
        if not allowance.records.take(self._control.clock.boot()):
            allowance.left_out += 1
            return
        detail: dict[str, Any] = {"refused": error.code, "from": source}
        if allowance.left_out:
            detail["left_out"] = allowance.left_out
        actor = "stranger" if operator is None else f"operator:{operator.name}"

        def operation(work: changes.Work) -> None:
            audit.append(
                work.tx, actor=actor, action=act or "access", subject=_named(subject), detail=detail,
                now_ms=work.now_ms,
            )  # fmt: skip

        allowance.left_out = 0
        # The caller is to hear of its own error.
        with contextlib.suppress(errors.AgentinaError):
            await self._control.write(operation)


def _named(subject: str) -> str:
    return f"{subject[:4]}..." if subject.startswith(_SECRETS) else subject[:_MAX_SUBJECT]


class _Allowance:
    """How many records may be written now, and how many were left out since the last one."""

    def __init__(self, now: float) -> None:
        self.records = buckets.Bucket(burst=PER_HOUR, refill_seconds=3600 / PER_HOUR, now=now)
        self.left_out = 0
