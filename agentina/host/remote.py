"""Settings from the control plane: verified, kept over restarts, tried, and taken back when they do not hold.

``configuration.json`` in the state directory is the journal; it is written durably before the settings are used. The
rules (:func:`begin`, :func:`started`, :func:`confirmed`) are pure. The state of the latest order:

============  ==============================================================  =========================================
state         means                                                            next
============  ==============================================================  =========================================
refused       it was not begun: not understood, or no work could be taken      -
on-trial      the settings hold; no heartbeat has been answered with them yet  answered: promoted; the daemon started
                                                                               :data:`MOST_STARTS` times, or none
                                                                               within :data:`PATIENCE`: rolled-back
promoted      they hold                                                        told to leave them, or the daemon started
                                                                               :data:`MOST_STARTS_AGAIN` times and did
                                                                               not stay: rolled-back
rolled-back   those before them hold                                           -
============  ==============================================================  =========================================

What may go wrong: the order is not signed by a pinned key, or is another agent's (ignored, raised); it has a key or a
value that this release does not know (refused, bad); with it the host could never take work (refused, bad); the disk
is full (nothing changes, and the order comes again); the daemon ends before a heartbeat (on trial again, bad after some
times); it goes on, and no heartbeat is answered (bad if the control plane answers otherwise, else inconclusive); a
daemon that runs with the settings cannot start with them (left after some starts: no release would cure that); the
journal is damaged (set aside: the host's own configuration holds, and the control plane sees that). An
order is acted on once, by its id; a configuration that holds already is promoted at once, one to leave that does not
hold is rolled back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from agentina import errors
from agentina.host.instance import config
from agentina.host.work import anomalies
from agentina.protocol import inputs, settings, signing, wire
from agentina.system import clock, files

#: Daemons that may begin with a configuration before one of them has an answered heartbeat.
MOST_STARTS: Final = 3
#: Daemons in a row that may begin with a proved one and neither stay nor have an answered heartbeat. Fewer than it
#: takes to try another release (agentina@.service), which would be no cure.
MOST_STARTS_AGAIN: Final = 6
#: Seconds a daemon waits for an answered heartbeat with a configuration on trial.
PATIENCE: Final = 180.0
#: Seconds after which a daemon has stayed.
STEADY: Final = 60.0
#: Ids of orders that are remembered, the newest.
_MOST_ACTED: Final = 20
_MAX_FILE: Final = 256 << 10
#: Why a configuration was left that its daemons did not come to a heartbeat with.
CRASHED: Final = "crashed"
#: Why one was left that a daemon had no answered heartbeat with: the control plane answered otherwise, or not at all.
NO_HEARTBEAT: Final = "no-heartbeat"
AWAY: Final = "control-plane-away"
_PURPOSE: Final = "configuration"

_log = logging.getLogger(__name__)


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration by its name."""

    version: str = settings.NONE
    settings: settings.Settings = settings.Settings()


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """What holds, and what became of the latest order."""

    current: Version = Version()
    #: A heartbeat has been answered with it.
    is_proved: bool = True
    #: Daemons that began with it since the last that had an answered heartbeat or stayed.
    starts: int = 0
    #: What to go back to: proved.
    previous: Version = Version()
    #: Of the latest order; empty: there was none.
    id: str = ""
    version: str = ""
    state: Literal["", "refused", "on-trial", "promoted", "rolled-back"] = ""
    verdict: Literal["", "good", "bad", "inconclusive"] = ""
    reason: str = ""
    detail: str = ""
    at_ms: int = 0
    acted: list[str] = []


# --- the rules -------------------------------------------------------------------------------------------------------


def begin(journal: Journal, order: wire.ConfigurationOrder, given: settings.Settings, *, now_ms: int) -> Journal:
    """The journal with an order that was not acted on before."""
    holds = journal.current.version == order.version
    journal = _taken(journal, order)
    if order.action == "leave":
        back = {"current": journal.previous, "previous": Version(), "is_proved": True, "starts": 0} if holds else {}
        return _moved(journal, now_ms, state="rolled-back", verdict="good", **back)
    if holds and journal.is_proved:
        return _moved(journal, now_ms, state="promoted", verdict="good")
    return _moved(
        journal, now_ms, state="on-trial", verdict="", is_proved=False, starts=0,
        current=Version(version=order.version, settings=given),
        previous=journal.current if journal.is_proved else journal.previous,
    )  # fmt: skip


def refused(
    journal: Journal, order: wire.ConfigurationOrder, error: errors.AgentinaError, *, now_ms: int
) -> Journal:  # fmt: skip
    """The journal with an order that was not begun; what holds goes on to hold, on trial or not."""
    detail = error.message[: wire.MAX_DETAIL]
    return _moved(_taken(journal, order), now_ms, state="refused", verdict="bad", reason=error.code, detail=detail)


def started(journal: Journal, *, now_ms: int) -> Journal:
    """The journal of a daemon that begins."""
    if journal.current.version == settings.NONE:
        return journal
    journal = msgspec.structs.replace(journal, starts=journal.starts + 1)
    most = MOST_STARTS_AGAIN if journal.is_proved else MOST_STARTS
    if journal.starts < most:
        return journal
    detail = f"{most} daemons began with it, and none had an answered heartbeat"
    return _left(journal, now_ms, verdict="bad", reason=CRASHED, detail=detail)


def confirmed(journal: Journal, *, now_ms: int) -> Journal:
    """The journal after a heartbeat was answered with what holds."""
    was_proved = journal.is_proved
    journal = msgspec.structs.replace(journal, is_proved=True, starts=0)
    if was_proved or journal.state != "on-trial":
        return journal
    return _moved(journal, now_ms, state="promoted", verdict="good")


def waited(journal: Journal, *, is_heard: bool, now_ms: int) -> Journal:
    """The journal of a daemon that is up for as long as it may be.

    ``is_heard``: the control plane answers, though no heartbeat.
    """
    if journal.is_proved:
        return msgspec.structs.replace(journal, starts=0)
    detail = f"no heartbeat was answered with it in {PATIENCE:.0f} s, and "
    if is_heard:
        detail += "the control plane answers otherwise"
        return _left(journal, now_ms, verdict="bad", reason=NO_HEARTBEAT, detail=detail)
    return _left(journal, now_ms, verdict="inconclusive", reason=AWAY, detail=detail + "nothing else was")


def _left(journal: Journal, now_ms: int, *, verdict: str, reason: str, detail: str) -> Journal:
    """The journal with what held before. Where another order came meanwhile, that one is what is reported."""
    is_latest = journal.state in {"on-trial", "promoted"} and journal.version == journal.current.version
    journal = msgspec.structs.replace(
        journal, current=journal.previous, previous=Version(), is_proved=True, starts=0
    )  # fmt: skip
    if not is_latest:
        return journal
    return _moved(journal, now_ms, state="rolled-back", verdict=verdict, reason=reason, detail=detail)


def _taken(journal: Journal, order: wire.ConfigurationOrder) -> Journal:
    acted = [*journal.acted, order.id][-_MOST_ACTED:]
    return msgspec.structs.replace(journal, id=order.id, version=order.version, acted=acted)


def _moved(journal: Journal, now_ms: int, **changes: Any) -> Journal:
    return msgspec.structs.replace(journal, at_ms=now_ms, **{"reason": "", "detail": "", **changes})


# --- with the disk ---------------------------------------------------------------------------------------------------


class Remote:
    """The settings from the control plane of one daemon."""

    def __init__(
        self,
        path: Path,
        own: config.HostConfig,
        *,
        agent_id: str,
        trusted: Mapping[str, signing.PublicKey],
        clocks: clock.Clock,
    ) -> None:
        """``own`` is the configuration of the host's owner."""
        self._path = path
        self._own = own
        self._agent_id = agent_id
        self._trusted = trusted
        self._clock = clocks
        self._journal = Journal()
        #: The payload that was looked at last: it comes with each heartbeat until it is over.
        self._seen = ""
        #: Boot time since when what holds has held in this daemon, and of the control plane's last answer.
        self._since = self._heard = clocks.boot()
        #: There is something new to wait for.
        self._begun = asyncio.Event()
        #: A damaged journal that was set aside.
        self.damage: errors.AgentinaError | None = None
        #: Puts the settings that hold into force; the facts of the host, to see whether it can live with them.
        self.use: Callable[[config.HostConfig], None] = lambda _: None
        self.facts: Callable[[], wire.HostFacts] = wire.HostFacts

    @property
    def heartbeat_seconds(self) -> float | None:
        """How often to beat at least, if that was set."""
        return self._journal.current.settings.heartbeat_seconds if self._own.remote_settings else None

    @property
    def version(self) -> str:
        """What holds, for heartbeats."""
        return self._journal.current.version if self._own.remote_settings else ""

    def effective(self) -> config.HostConfig:
        """The host's configuration with what holds of the control plane's."""
        return self._with(self._journal.current.settings) if self._own.remote_settings else self._own

    def report(self) -> wire.UpdateReport | None:
        """What became of the latest order."""
        one = self._journal
        if not one.id:
            return None
        return wire.UpdateReport(
            id=one.id, version=one.version, state=one.state, verdict=one.verdict, reason=one.reason,
            detail=one.detail, at_ms=one.at_ms,
        )  # fmt: skip

    def start(self) -> None:
        """Read what holds. A daemon that cannot write the journal begins all the same."""
        try:
            text = files.read_bounded(self._path, limit=_MAX_FILE)
            self._journal = msgspec.json.decode(text, type=Journal)
        except FileNotFoundError:
            return
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, errors.AgentinaError) as error:
            stamp = clock.show_time(self._clock.wall_ms()).replace(":", "")
            aside = files.set_aside(self._path, stamp=stamp)
            self.damage = errors.STATE_CORRUPT(path=str(self._path), problem=str(error), aside=str(aside))
            _log.error("%s", self.damage, extra={"action": "configuration-damaged", "code": self.damage.code})
            return
        try:
            self._record(started(self._journal, now_ms=self._clock.wall_ms()))
        except errors.AgentinaError as error:
            _log.warning("the start with a configuration is not counted: %s", error, extra={"code": error.code})

    def obey(self, signed: signing.Signed | None, raising: anomalies.Anomalies) -> bool:
        """Act on an order, unless there is none or it is known; whether anything is to be reported."""
        if signed is None or not self._own.remote_settings or signed.payload == self._seen:
            return False
        try:
            order = signing.verify_struct(signed, _PURPOSE, self._trusted, wire.ConfigurationOrder)
            if order.agent_id != self._agent_id:
                raise errors.SIGNATURE_INVALID(what="a configuration", problem="it is another agent's")
        except errors.AgentinaError as error:
            self._seen = signed.payload
            raising.report("configuration", error.code, error.message)
            _log.error("a configuration is not used: %s", error, extra={"action": "configuration", "code": error.code})
            return False
        if order.id in self._journal.acted:
            self._seen = signed.payload
            return False
        try:
            self._record(self._follow(order))
        except errors.AgentinaError as error:
            _log.warning("a configuration cannot be kept, and waits: %s", error, extra={"code": error.code})
            return False
        self._seen = signed.payload
        self._since = self._clock.boot()
        self._begun.set()
        self._say()
        self.use(self.effective())
        self.raise_problem(raising)
        return True

    def confirm(self, version: str) -> bool:
        """A heartbeat that reported ``version`` was answered; whether that ends a trial."""
        was_proved = self._journal.is_proved
        if version != self._journal.current.version:
            return False
        try:
            self._record(confirmed(self._journal, now_ms=self._clock.wall_ms()))
        except errors.AgentinaError as error:
            _log.warning("a configuration stays on trial: %s", error, extra={"code": error.code})
            return False
        if not was_proved:
            self._say()
        return not was_proved

    def contact(self) -> None:
        """Note that the control plane answered, whatever it was asked."""
        self._heard = self._clock.boot()

    async def watch(self, on_left: Callable[[], None]) -> None:
        """:meth:`tend` whenever something is due, and call ``on_left`` after it. Runs until canceled."""
        while True:
            self._begun.clear()
            before = self._journal.current
            left = self.tend()
            if self._journal.current != before:
                on_left()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), left)

    def tend(self) -> float | None:
        """Leave what no heartbeat was answered with in time, and note that a daemon stays.

        Returns the seconds until there is something to be done; None: there is nothing.
        """
        one = self._journal
        if one.is_proved and not one.starts:
            return None
        due = self._since + (STEADY if one.is_proved else PATIENCE)
        if (left := due - self._clock.boot()) > 0:
            return left
        is_heard = self._heard > due - PATIENCE / 2
        try:
            self._record(waited(one, is_heard=is_heard, now_ms=self._clock.wall_ms()))
        except errors.AgentinaError as error:
            _log.warning("a configuration stays as it is: %s", error, extra={"code": error.code})
            self._since = self._clock.boot()
            return PATIENCE
        if self._journal.current != one.current:
            self._say()
            self.use(self.effective())
        return None

    def raise_problem(self, raising: anomalies.Anomalies) -> None:
        """Raise the latest order as an anomaly if it was bad: once, however often this is called."""
        one = self._journal
        if one.verdict == "bad":
            problem = errors.CONFIGURATION_LEFT(version=one.version, reason=one.detail or one.reason)
            raising.report(
                "configuration", problem.code, problem.message, release=one.version, name=f"configuration:{one.id}",
                evidence={"reason": one.reason, "detail": one.detail, "holds": one.current.version},
            )  # fmt: skip

    def _follow(self, order: wire.ConfigurationOrder) -> Journal:
        now_ms = self._clock.wall_ms()
        try:
            given = inputs.convert(order.settings, settings.Settings, "settings")
            if order.action == "apply":
                self._check(given)
        except errors.AgentinaError as error:
            return refused(self._journal, order, error, now_ms=now_ms)
        return begin(self._journal, order, given, now_ms=now_ms)

    def _check(self, given: settings.Settings) -> None:
        """Refuse what would keep the host from ever taking work."""
        facts, wanted = self.facts(), self._with(given)
        for name, reserve, there in (
            ("memory_reserve", wanted.memory_reserve, facts.memory_bytes),
            ("disk_reserve", wanted.disk_reserve, facts.disk_bytes),
        ):
            if there and reserve >= there:
                problem = f"{reserve} of {there} bytes would be kept back: no task could ever run here"
                raise errors.INPUT_INVALID(where=f"settings.{name}", problem=problem)

    def _with(self, given: settings.Settings) -> config.HostConfig:
        own = msgspec.structs.asdict(self._own)
        return msgspec.structs.replace(self._own, **settings.stricter(own, given))

    def _record(self, journal: Journal) -> None:
        if journal != self._journal:
            files.write_atomic(self._path, msgspec.json.encode(journal))
            self._journal = journal

    def _say(self) -> None:
        one = self._journal
        _log.log(
            logging.ERROR if one.verdict == "bad" else logging.INFO,
            "configuration %s: %s%s", one.version, one.state, f" ({one.reason}: {one.detail})" if one.reason else "",
            extra={"action": f"configuration-{one.state}"},
        )  # fmt: skip
