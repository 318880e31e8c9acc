"""One task at the gateway: who it is, what it may, what it used; the ledger and the record kept in step.

Everything here runs on the event loop, so a decision and its reservation are one step for any number of callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from agentina import errors
from agentina.gateway import budgets, calls, channel, days, record, rules, streams, tokens
from agentina.protocol import jobs
from agentina.system import clock

_log = logging.getLogger(__name__)

#: Up to so many seconds the record is made durable on the event loop: a thread costs as much as a fast disk.
_FAST: Final = 0.001
#: Seconds between two looks whether anything was carried, while the task may have connections.
_ALIVE_SECONDS: Final = 2.0
#: Names of one task that are looked up at once.
RESOLVING: Final = 4
#: Bytes of one task's requests for models at once; one that does not fit beside others is read when they are over.
_MAX_HELD: Final = 64 << 20
#: Kinds of refusal told to the daemon; more are answered only.
_MAX_TOLD: Final = 500
#: Seconds for which telling of usage waits for more of it: it wakes the daemon, and calls go on meanwhile.
_TELL_SECONDS: Final = 0.02
#: Seconds between two entries of what was carried: a task can make thousands of connections in them.
_CARRIED_SECONDS: Final = 1.0
#: Seconds that the question what is left waits for the budgets of the day to be known.
_KNOWN_SECONDS: Final = 3.0


class Account:
    """The state of one task."""

    def __init__(
        self,
        opened: channel.Open,
        *,
        written: record.Record,
        grants: rules.Rules,
        clocks: clock.Clock,
        tell: Callable[[channel.Word], None],
        shared: days.Days,
    ) -> None:
        """Take up a task, whose record is open; calls a killed gateway left are charged in full.

        Raises:
            AgentinaError: Its record cannot be written.

        """
        self.task_id = opened.task_id
        self.grants = grants
        self._digest = opened.digest
        self._clock = clocks
        self._tell = tell
        self._days = shared
        self._record = written
        #: What making the record durable took last.
        self._sync_seconds = 0.0
        self._telling: asyncio.TimerHandle | None = None
        #: Why calls are held, by call.
        self._parked: dict[object, str] = {}
        #: Bytes of all requests for models that are held.
        self._holds = 0
        self._told: set[tuple[str, str, str]] = set()
        #: What its model is to be told; empty: nothing.
        self.nudge = ""
        #: Set, and replaced, whenever a call ended or the budget was raised.
        self.changed = asyncio.Event()
        self.closing = asyncio.Event()
        #: Held while a name of the task's is looked up.
        self.resolving = asyncio.Semaphore(RESOLVING)
        story = self._record.story
        before = story.carried
        #: Bytes of all its connections.
        self.carried = streams.Carried() if before is None else streams.Carried(before.received, before.sent)
        self._noting: asyncio.TimerHandle | None = None
        #: The next telling of it, once a task has made a connection, and what was told last.
        self._showing: asyncio.TimerHandle | None = None
        self._shown = 0
        if story.began is None:
            self._record.write(record.Began(at_ms=clocks.wall_ms(), boot=clocks.boot()))
        for number, asked in list(story.open.items()):
            self._end(number, calls.End.INTERRUPTED, asked.reserved)
        limits = story.limits if story.limits is not None else opened.limits
        self.ledger = budgets.Ledger(limits, totals=story.totals, first_number=story.last_number + 1, purse=shared)
        shared.join(self.task_id, days.by_day(story.usage()))

    def close(self) -> None:
        """Let go of the record; whoever waits is let go too."""
        self.closing.set()
        self.wake()
        if self._telling is not None:
            self._telling.cancel()
            self._tell_used()
        if self._noting is not None:
            self._noting.cancel()
        if self._showing is not None:
            self._showing.cancel()
        self._note_carried()
        self._record.close()

    # --- who asks, and what for --------------------------------------------------------------------------------------

    def check_token(self, offered: str | None) -> None:
        """Make sure that the task itself asks.

        Raises:
            AgentinaError: ``GATEWAY_TOKEN_REFUSED``.

        """
        if not tokens.fits(offered, self._digest):
            raise errors.GATEWAY_TOKEN_REFUSED(problem="not this task's" if offered else "missing")

    def note_reached(self, target: rules.Target) -> None:
        """Write down that the task has a way to a host now; of many hosts the first ones."""
        host, reached = target.authority, self._record.story.reached
        if host in reached or len(reached) >= jobs.MAX_REACHED:
            return
        try:
            self._record.write(record.Reached(host=host, at_ms=self._clock.wall_ms()))
        except errors.AgentinaError as problem:
            _log.warning("a host that task %s reached is not written down: %s", self.task_id, problem)

    def note_connection(self) -> None:
        """The task has made a connection: from now on what is carried is told, as a sign of life."""
        if self._showing is None:
            self._show_carried()

    def _show_carried(self) -> None:
        total = self.carried.received + self.carried.sent
        if total != self._shown:
            self._shown = total
            self._tell(channel.Carried(task_id=self.task_id, total=total))
        self._showing = asyncio.get_running_loop().call_later(_ALIVE_SECONDS, self._show_carried)

    def note_connection_ended(self) -> None:
        """Write down soon what was carried by now."""
        if self._noting is None and not self.closing.is_set():
            self._noting = asyncio.get_running_loop().call_later(_CARRIED_SECONDS, self._note_carried)

    def _note_carried(self) -> None:
        self._noting = None
        entry = record.Carried(received=self.carried.received, sent=self.carried.sent)
        if entry == (self._record.story.carried or record.Carried(received=0, sent=0)):
            return
        try:
            self._record.write(entry)
        except errors.AgentinaError as problem:
            _log.warning("what task %s sent and received is not written down: %s", self.task_id, problem)

    def note_refusal(self, error: errors.AgentinaError, now_host: str = "") -> None:
        """Tell of a refusal, the first time for its reason and host."""
        host = str(error.context.get("host") or error.context.get("model") or now_host)[:253]
        key = (error.code, str(error.context.get("reason", "")), host)
        if key in self._told or len(self._told) >= _MAX_TOLD:
            return
        self._told.add(key)
        try:
            self._record.write(record.Refusal(code=key[0], reason=key[1], host=host, at_ms=self._clock.wall_ms()))
        except errors.AgentinaError as problem:
            _log.warning("a refusal to task %s is not written down: %s", self.task_id, problem)
        self._tell(channel.Refused(task_id=self.task_id, code=key[0], reason=key[1], host=host, message=error.message))

    # --- calls of models ---------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds since the task began. It ends with its host's boot at the latest, so that clock tells them."""
        began = self._record.story.began
        assert began is not None, "written before anything is asked"
        if began.boot is None:
            return max(0.0, (self._clock.wall_ms() - began.at_ms) / 1000)
        return self._clock.boot() - began.boot

    def ask(self, call: budgets.Call, model: str) -> budgets.Decision:
        """Decide on a call; when it is admitted that is written down.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``: it must not be sent.

        """
        decision = self.ledger.ask(call, seconds=self.seconds)
        if isinstance(decision, budgets.Admitted):
            day = self._days.today
            asked = record.Asked(number=decision.number, model=model, reserved=decision.reserved, day=day)
            try:
                self._record.write(asked)
            except errors.AgentinaError:
                self.ledger.release(decision.number)
                raise
            self._days.hold(self.task_id, decision.number, decision.reserved, day=day)
        return decision

    @contextlib.asynccontextmanager
    async def holding(self, size: int) -> AsyncIterator[None]:
        """Hold a request of so many bytes, when there is room for it beside others of the task."""
        while self._holds and self._holds + size > _MAX_HELD:
            await self.changed.wait()
        self._holds += size
        try:
            yield
        finally:
            self._holds -= size
            self.wake()

    def settle(
        self, number: int, end: calls.End, charge: budgets.Charge | None, context: record.Filled | None = None
    ) -> None:
        """A call is over: written down, not yet durable (:meth:`sync`). What cannot be written stays reserved."""
        known = self._record.story.context
        # The first conversation is the task's own: sub-agents begin when it has asked for them.
        if known is not None and context is not None and context.conversation != known.conversation:
            context = None
        try:
            self._end(number, end, charge, context)
        except errors.AgentinaError as error:
            # In memory as on disk the reservation stays: counted too high rather than too low.
            _log.error("the end of a call of task %s is not written down: %s", self.task_id, error)
            return
        self._days.settle(self.task_id, number, charge)
        if charge is None:
            self.ledger.release(number)
        else:
            self.ledger.settle(number, charge)
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TELL_SECONDS, self._tell_used)
        for text in self.ledger.new_warnings(self.seconds) + self._days.new_warnings():
            self._tell(channel.Warned(task_id=self.task_id, text=text))
        self.wake()

    def _tell_used(self) -> None:
        self._telling = None
        story = self._record.story
        self._tell(channel.Used(task_id=self.task_id, usage=story.usage(), context=story.context))

    @property
    def is_parked(self) -> bool:
        """Whether a call is held because a budget is used up."""
        return bool(self._parked)

    def park(self, call: object, reason: str) -> None:
        """Note that a call is held because a budget is used up, and why; empty: it is not held any more."""
        before = next(iter(self._parked.values()), "")
        if reason:
            self._parked[call] = reason
        else:
            self._parked.pop(call, None)
        now = next(iter(self._parked.values()), "")
        if now != before:
            self._tell(channel.Parked(task_id=self.task_id, reason=now))
        if now and not before:
            self._days.on_unmet()

    def note_nudged(self, text: str) -> None:
        """Its model was told ``text``, and has answered."""
        if self.nudge == text:
            self.nudge = ""
        self._tell(channel.Nudged(task_id=self.task_id, text=text))

    async def sync(self) -> None:
        """Return when what was settled survives a power cut, or cannot be made to."""
        try:
            if self._sync_seconds < _FAST:
                self._sync()
            else:
                await asyncio.to_thread(self._sync)
        except (errors.AgentinaError, OSError) as error:
            _log.error("the record of task %s is not durable: %s", self.task_id, error)

    def _sync(self) -> None:
        began = time.monotonic()
        self._record.sync()
        self._sync_seconds = time.monotonic() - began

    async def budget(self) -> dict[str, object]:
        """What the task may know of its budget: what it used, its limits, and what is left of all that bind it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KNOWN_SECONDS):
                while not self._days.is_known:
                    await self.changed.wait()
        left = self.ledger.left(self.seconds)
        return {
            "left": left, "used": self.ledger.totals, "limits": self.ledger.limits, "day": self._days.today,
            "left_of_day": self._days.left(),
        }  # fmt: skip

    def raise_to(self, limits: jobs.Budget) -> None:
        """Put another budget in force; parked calls go on where it lets them.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``; the old one holds.

        """
        self._record.write(record.Raised(limits=limits))
        self.ledger.raise_to(limits)
        self.wake()

    def _end(
        self, number: int, end: calls.End, charge: budgets.Charge | None, context: record.Filled | None = None
    ) -> None:
        now = self._clock.wall_ms()
        self._record.write(record.Ended(number=number, end=end.value, charge=charge, at_ms=now, context=context))

    def wake(self) -> None:
        """Let calls that wait look again."""
        self.changed.set()
        self.changed = asyncio.Event()
