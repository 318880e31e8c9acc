"""The session with the control plane: opened at start, opened again when superseded, and every request's door.

A daemon holds one session number at a time; requests are made with it. Whatever the control plane answers is noted
here: reachable or not, refused or not, and what it wants (:class:`agentina.protocol.wire.Directives`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from agentina import errors
from agentina.client import backoff, link
from agentina.protocol import wire
from agentina.system import clock

T = TypeVar("T")

#: Seconds a session must have held for its end to count as a single event; shorter ones wait longer each time.
STABLE_SECONDS: Final = 60.0

#: Answers that mean: this agent may not work now. Tasks go on; the daemon keeps asking.
_REFUSALS: Final = {
    errors.AGENT_UNKNOWN.code,
    errors.AGENT_QUARANTINED.code,
    errors.ASSERTION_INVALID.code,
    errors.PROTOCOL_UNSUPPORTED.code,
    errors.LICENSE_EXPIRED.code,
}

_log = logging.getLogger(__name__)


class Session:
    """The session of one daemon."""

    def __init__(self, links: link.Link, *, clocks: clock.Clock) -> None:
        self._link = links
        self._clock = clocks
        self._open = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost.set()
        self._opened_at = 0.0
        #: What the opening that is under way tells is not so any more.
        self._is_outdated = False
        #: Number of the open session, or of the last one.
        self.number = 0
        self.directives = wire.Directives()
        #: What the control plane refuses this agent with, None while it does not.
        self.refusal: errors.AgentinaError | None = None
        #: Why the last request failed; None after one that worked.
        self.failure: errors.AgentinaError | None = None
        #: Why this host could not take over what the control plane answered; nothing is wrong with the connection.
        self.trouble: errors.AgentinaError | None = None
        #: Wall time of the last answer, for people.
        self.last_answer_ms: int | None = None
        #: Called with every answer that carries directives.
        self.on_directives: Callable[[wire.Directives], None] = lambda _: None
        #: Called after each answer.
        self.on_contact: Callable[[], None] = lambda: None
        #: Called when something shown by the properties above changed.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def is_open(self) -> bool:
        """Whether requests can be made."""
        return self._open.is_set()

    async def keep_open(
        self,
        make: Callable[[], wire.SessionOpen],
        opened: Callable[[wire.SessionOpened, float], None],
        lock: asyncio.Lock,
    ) -> None:
        """Open the session, and again whenever it is lost. Runs until canceled.

        Args:
            make: Describes everything the host holds; called under ``lock`` right before sending.
            opened: Takes the answer and the boot time before sending; called under ``lock``.
            lock: Held from the description to the answer, so that nothing is accepted in between: a task the control
                plane is not told of is given to another host.

        """
        pause = backoff.Backoff()
        while True:
            await self._lost.wait()
            try:
                async with lock:
                    self._is_outdated = False
                    sent = self._clock.boot()
                    answer = await self._link.post("/v1/agent/session", make(), wire.SessionOpened)
                    self.number = answer.session
                    self._opened_at = self._clock.boot()
                    self._succeeded()
                    self._take_over(opened, answer, sent)
                self.apply(answer.directives)
            except errors.AgentinaError as error:
                if error is not self.trouble:
                    self.trouble = None
                    self._failed(error, 0)
                await asyncio.sleep(pause.delay(link.retry_after(error)))
                continue
            _log.info("session %d is open", self.number, extra={"action": "session-opened"})
            if self._is_outdated:
                self.renew()
            await self._lost.wait()
            if self._clock.boot() - self._opened_at > STABLE_SECONDS:
                pause.reset()
            else:
                await asyncio.sleep(pause.delay())

    def _take_over(
        self, opened: Callable[[wire.SessionOpened, float], None], answer: wire.SessionOpened, sent: float
    ) -> None:
        """Let the host take over what the session brought; only then is it open, for nobody may wait for half of it.

        Raises:
            AgentinaError: The host cannot, for example because its disk is full; ``trouble`` says so.

        """
        try:
            opened(answer, sent)
        except errors.AgentinaError as error:
            if self.trouble is None or self.trouble.code != error.code:
                _log.error(
                    "a session cannot be taken over: %s", error, extra={"action": "session-refused", "code": error.code}
                )
            self.trouble = error
            self.on_change()
            raise
        self.trouble = None
        self._lost.clear()
        self._open.set()

    def renew(self) -> None:
        """Open it anew: what the control plane was told when it was opened is not so any more."""
        self._is_outdated = True
        if self.is_open:
            self._open.clear()
            self._lost.set()

    async def current(self) -> int:
        """The number of the open session; waits until there is one."""
        await self._open.wait()
        return self.number

    async def post(
        self,
        path: str,
        make: Callable[[int], msgspec.Struct | bytes],
        kind: type[T],
        *,
        seconds: float = link.ANSWER_SECONDS,
        limit: int = link.MAX_ANSWER,
    ) -> T:
        """Post what ``make`` builds for the open session.

        Raises:
            AgentinaError: As :meth:`agentina.client.link.Link.post`.

        """
        number = await self.current()
        try:
            answer = await self._link.post(path, make(number), kind, seconds=seconds, limit=limit)
        except errors.AgentinaError as error:
            self._failed(error, number)
            raise
        self._succeeded()
        return answer

    async def put(self, path: str, body: bytes, kind: type[T], *, offset: int) -> T:
        """Send a piece in the open session; errors as for :meth:`post`."""
        number = await self.current()
        try:
            answer = await self._link.put(f"{path}?session={number}&offset={offset}", body, kind)
        except errors.AgentinaError as error:
            self._failed(error, number)
            raise
        self._succeeded()
        return answer

    async def get(self, path: str) -> bytes:
        """Read a piece of a file in the open session; ``path`` has a query. Errors as for :meth:`post`."""
        number = await self.current()
        try:
            answer = await self._link.get(f"{path}&session={number}")
        except errors.AgentinaError as error:
            self._failed(error, number)
            raise
        self._succeeded()
        return answer

    def apply(self, directives: wire.Directives) -> None:
        """Take over what the control plane wants now."""
        changed = directives != self.directives
        self.directives = directives
        self.on_directives(directives)
        if changed:
            self.on_change()

    def _succeeded(self) -> None:
        was = (self.failure, self.refusal)
        self.failure = None
        self.refusal = None
        self.last_answer_ms = self._clock.wall_ms()
        self.on_contact()
        if was != (None, None):
            _log.info("the control plane answers again", extra={"action": "control-plane-back"})
            self.on_change()

    def _failed(self, error: errors.AgentinaError, number: int) -> None:
        """Note a failed request that was made with session ``number`` (0: the one that opens)."""
        if error.code == errors.SESSION_SUPERSEDED.code:
            if number == self.number:
                _log.warning("%s", error, extra={"action": "session-lost", "code": error.code})
                self._open.clear()
                self._lost.set()
            return
        refused = error.code in _REFUSALS
        if not refused and error.entry.status < 500 and error.code != errors.OVERLOADED.code:  # noqa: PLR2004 - RFC 9110
            # It speaks of one task or one piece; the connection itself is fine. The caller knows what to do.
            return
        if self.failure is None or self.failure.code != error.code:
            _log.warning("%s", error, extra={"action": "request-failed", "code": error.code})
        self.failure = error
        if refused:
            self.refusal = error
        self.on_change()
