"""Raises anomalies: any part of the daemon says what is wrong, and the outbox carries it to the control plane.

::

    anomalies.report("egress", "EGRESS_REFUSED", "This task may not reach example.com:443", task_id=task)

Each is durable within milliseconds and applied once. What repeats is counted, not repeated: the same anomaly (kind,
code, task, release, and the summary without ids and numbers) is reported at once and then at most every
:data:`AGAIN_SECONDS`, with how often it happened since. Different ones are limited by a bucket of :data:`BURST` which
fills by one every :data:`REFILL_SECONDS`. The rules are :class:`Limiter`:

=====================  ======================  =================================================
the same was reported  the bucket has one      what happens
=====================  ======================  =================================================
not lately             yes                     reported at once
not lately             no                      kept, reported when the bucket has one
within the time        -                       counted, reported when the time is over
kept already           -                       counted
more than can be kept  -                       counted in one anomaly ``ANOMALIES_LEFT_OUT``
=====================  ======================  =================================================

A daemon that is killed forgets the counts it kept, so a count is what there was at least. With a ``name`` an anomaly is
reported once, also by daemons started later: for what is found again at each start.
"""

from __future__ import annotations

import asyncio
import collections
import secrets
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from agentina import errors
from agentina.host.instance import outbox
from agentina.host.work import output
from agentina.protocol import anomalies as rules
from agentina.protocol import wire
from agentina.system import buckets, clock

#: Seconds in which the same anomaly is reported once.
AGAIN_SECONDS: Final = 60.0
#: Anomalies that may be reported at once, and seconds for one more.
BURST: Final = 50
REFILL_SECONDS: Final = 6.0
#: Different anomalies that are remembered.
MAX_KNOWN: Final = 256

#: What makes anomalies the same on a host: the task and the fingerprint.
_Key = tuple[str, str]
_LEFT_OUT: Final[_Key] = ("", "left-out")


class _Known(msgspec.Struct):
    """An anomaly reported lately, and what has happened since."""

    #: Boot seconds before which it is not reported again.
    not_before: float = 0.0
    #: What is kept to be reported, the first of it; None: nothing.
    kept: wire.Anomaly | None = None
    count: int = 0


class Limiter:
    """Decides what is reported when. Knows no clock but what it is told, in seconds."""

    def __init__(self) -> None:
        self._known: collections.OrderedDict[_Key, _Known] = collections.OrderedDict()
        self._bucket = buckets.Bucket(burst=BURST, refill_seconds=REFILL_SECONDS)

    def take(self, key: _Key, found: wire.Anomaly, now: float) -> None:
        """Note that ``found`` happened."""
        if key not in self._known and not self._make_room(now):
            key = _LEFT_OUT
            found = msgspec.structs.replace(
                found, kind="host", code=errors.ANOMALIES_LEFT_OUT.code, evidence={},
                summary=errors.ANOMALIES_LEFT_OUT(most=MAX_KNOWN).message,
            )  # fmt: skip
        known = self._known.setdefault(key, _Known())
        known.kept = known.kept or found
        known.count += found.count

    def due(self, now: float) -> list[tuple[str, wire.Anomaly]]:
        """What is to be reported now, each with its task."""
        chosen = []
        for key, known in self._known.items():
            if known.kept is None or known.not_before > now:
                continue
            if not self._bucket.take(now):
                break
            chosen.append((key[0], _counted(known)))
            known.kept, known.count, known.not_before = None, 0, now + AGAIN_SECONDS
        return chosen

    def rest(self) -> list[tuple[str, wire.Anomaly]]:
        """Everything that is kept."""
        return [(key[0], _counted(known)) for key, known in self._known.items() if known.kept is not None]

    def wait(self, now: float) -> float | None:
        """Seconds until something may be due; None: nothing is kept."""
        times = [known.not_before for known in self._known.values() if known.kept is not None]
        if not times:
            return None
        return max(min(times) - now, self._bucket.wait(now), 0.0)

    def _make_room(self, now: float) -> bool:
        """Forget what was reported longest ago and has nothing kept; False: there is none."""
        if len(self._known) < MAX_KNOWN:
            return True
        for key, known in self._known.items():
            if known.kept is None and known.not_before <= now:
                del self._known[key]
                return True
        return False


def _counted(known: _Known) -> wire.Anomaly:
    assert known.kept is not None
    return msgspec.structs.replace(known.kept, count=known.count)


class Anomalies:
    """The daemon's way to raise anomalies. Used from its event loop."""

    def __init__(
        self, reports: outbox.Outbox, *, secrets_of: Callable[[str], list[bytes]], clocks: clock.Clock
    ) -> None:
        """``secrets_of`` tells the values to mask in whatever is said about a task."""
        self._outbox = reports
        self._secrets_of = secrets_of
        self._clock = clocks
        self._limiter = Limiter()
        self._timer: asyncio.TimerHandle | None = None

    def report(
        self,
        kind: str,
        code: str,
        summary: str,
        *,
        task_id: str = "",
        evidence: Mapping[str, str] | None = None,
        release: str = "",
        name: str = "",
    ) -> None:
        """Raise an anomaly. It never fails: what cannot be reported now is kept, and at worst counted.

        Args:
            kind: One of :data:`agentina.protocol.anomalies.KINDS`.
            code: UPPER_SNAKE; one of the error catalogue has a remedy that is shown.
            summary: What is wrong, in one line; it decides what is the same.
            task_id: The task it is about; empty: the host.
            evidence: Texts that show it, by name; cut short and without secrets.
            release: The version it is about.
            name: Names this very event, for example ``update:<id>``: reported once, ever.

        """
        if name and not self._outbox.name(name):
            return
        texts = {"": summary, **(evidence or {})}
        if task_id:
            values = self._secrets_of(task_id)
            texts = {key: _masked(text, values) for key, text in texts.items()}
        found = rules.checked(
            wire.Anomaly(
                id=name or secrets.token_hex(12),
                kind=kind,
                code=code,
                summary=texts.pop(""),
                evidence=texts,
                first_at_ms=self._clock.wall_ms(),
                release=release,
            )
        )
        if name:
            self._send(task_id, found)
            return
        self._limiter.take((task_id, rules.fingerprint(found)), found, self._clock.boot())
        self._send_due()

    async def close(self) -> None:
        """Hand what is kept to the outbox."""
        if self._timer is not None:
            self._timer.cancel()
        for task_id, found in self._limiter.rest():
            self._send(task_id, found)

    def _send_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock.boot()
        if self._outbox.waiting < outbox.MANY_WAITING:
            for task_id, found in self._limiter.due(now):
                self._send(task_id, found)
        wait = self._limiter.wait(now)
        if wait is not None:
            self._timer = asyncio.get_running_loop().call_later(max(wait, 1.0), self._send_due)

    def _send(self, task_id: str, found: wire.Anomaly) -> None:
        self._outbox.report(task_id, "anomaly", anomaly=found)


def _masked(text: str, values: list[bytes]) -> str:
    return output.mask(text.encode(errors="replace"), values).decode(errors="replace")
