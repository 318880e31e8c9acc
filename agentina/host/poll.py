"""Asks for work: one long poll at a time, answered the moment there is something.

A poll that waits is followed by another only when the host can take clearly more than it said, or nothing any more. The
control plane answers the older one then, with nothing; should it have been bringing something, that was not
acknowledged and comes again with the newer one. So the connection stays in use, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from agentina import errors
from agentina.client import backoff, link
from agentina.host import admission, heartbeat
from agentina.host.instance import session
from agentina.host.work import intake, tasks
from agentina.protocol import jobs, wire
from agentina.system import clock
from agentina.system import tasks as background

_PATH: Final = "/v1/agent/poll"
_MOST_WAIT_SECONDS: Final = 50.0
#: Seconds an answer may take beyond the wait that was asked for.
_ANSWER_SECONDS: Final = 15.0
#: Without a free slot a poll only waits for orders. For so long (seconds) a slot is waited for before one is sent:
#: under load slots come free all the time, and each would replace the poll.
_SLOT_SECONDS: Final = 0.05
#: How often (seconds) a poll that says the host can take nothing looks whether that still holds.
_LOOK_SECONDS: Final = 5.0
#: Replaced polls whose (empty) answers are still to come; more are broken off.
_MOST_ABANDONED: Final = 4
#: Largest answer: the most assignments, each with the largest job, escaped in an envelope.
_MAX_ANSWER: Final = wire.MAX_ASSIGNMENTS * 2 * jobs.MAX_JOB_BYTES

_log = logging.getLogger(__name__)


class Poll:
    """The poll loop of one instance."""

    def __init__(
        self,
        sessions: session.Session,
        held: tasks.Tasks,
        *,
        offer: Callable[[], admission.Offer],
        situation: Callable[[int, int, int], intake.Situation],
        lock: asyncio.Lock,
        clocks: clock.Clock,
    ) -> None:
        """Make the loop.

        Args:
            sessions: The session polls are made in.
            held: Takes what is accepted.
            offer: How much to ask for now.
            situation: What assignments are judged by, given session, poll number and the highest acknowledged one.
            lock: Held while assignments are taken over; see :meth:`agentina.host.instance.session.Session.keep_open`.
            clocks: Where leases are measured.

        """
        self._session = sessions
        self._tasks = held
        self._offer = offer
        self._situation = situation
        self._lock = lock
        self._clock = clocks
        self._in_session = 0
        self._number = 0
        self._acknowledged = 0
        #: The offer of the poll that waits, and what ends the waiting: its answer, or a better offer.
        self._waiting: tuple[admission.Offer, asyncio.Future[None]] | None = None
        self._abandoned: list[asyncio.Task[wire.PollAnswer]] = []
        #: When each unacknowledged poll was sent. Leases count from the poll an assignment names, also when the
        #: assignment comes again with a later one.
        self._sent: dict[int, float] = {}
        self._changed = asyncio.Event()

    def reconsider(self) -> None:
        """What the host can take may have changed."""
        self._changed.set()
        if self._waiting is not None and admission.replaces(self._waiting[0], self._offer()):
            _end(self._waiting[1])

    def ask_anew(self) -> None:
        """What the host offers is decided by other rules now: the poll that waits may offer too much."""
        self._changed.set()
        if self._waiting is not None:
            _end(self._waiting[1])

    async def run(self) -> None:
        """Poll. Runs until canceled."""
        pause = backoff.Backoff()
        while True:
            try:
                answer = await self._poll()
            except errors.AgentinaError as error:
                if error.code != errors.SESSION_SUPERSEDED.code:
                    await asyncio.sleep(pause.delay(link.retry_after(error)))
                continue
            if answer is not None:
                pause.reset()
                await self._take(answer)

    async def _poll(self) -> wire.PollAnswer | None:
        """One poll; None when it was replaced."""
        await self._session.current()
        offer = await self._find_offer()
        number = await self._session.current()
        if number != self._in_session:
            self._in_session, self._number, self._acknowledged = number, 0, 0
            self._sent.clear()
        self._number += 1
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = background.start(self._ask(offer, over), name="poll request", on_failure=lambda _: None)
        try:
            await self._wait(over, offer)
        except asyncio.CancelledError:
            await background.cancel(request, *self._abandoned)
            raise
        if request.done():
            return request.result()
        self._abandoned = [task for task in (*self._abandoned, request) if not task.done()]
        if len(self._abandoned) > _MOST_ABANDONED:
            self._abandoned.pop(0).cancel()
        return None

    async def _wait(self, over: asyncio.Future[None], offer: admission.Offer) -> None:
        """Wait until there is an answer, or another poll should take the place of this one first."""
        self._waiting = (offer, over)
        try:
            while offer.why and not over.done():
                # What disk, memory and others on this host leave changes without an event.
                await asyncio.wait([over], timeout=_LOOK_SECONDS)
                if not over.done():
                    self.reconsider()
            await over
        finally:
            self._waiting = None

    async def _find_offer(self) -> admission.Offer:
        """What to ask for; waits a moment for a slot when all are in use."""
        self._changed.clear()
        offer = self._offer()
        if offer.slots == 0 and not offer.why and self._tasks.occupied:
            try:
                async with asyncio.timeout(_SLOT_SECONDS):
                    while offer.slots == 0 and not offer.why:
                        await self._changed.wait()
                        self._changed.clear()
                        offer = self._offer()
            except TimeoutError:
                return self._offer()
        return offer

    async def _ask(self, offer: admission.Offer, over: asyncio.Future[None]) -> wire.PollAnswer:
        try:
            return await self._exchange(offer)
        finally:
            _end(over)  # from here: a callback of the task would be called a turn of the loop later

    async def _exchange(self, offer: admission.Offer) -> wire.PollAnswer:
        wait = min(_MOST_WAIT_SECONDS, self._session.directives.lease_seconds / 3)
        if self._session.failure is not None:
            # Answered at once, so that the end of an outage is seen now and not when the long poll is over.
            wait = 0.0
        number = self._number

        def make(session_number: int) -> wire.Poll:
            if session_number != self._in_session:
                # It would be another poll of that session, with a number and acknowledgements of this one.
                raise errors.SESSION_SUPERSEDED()  # noqa: RSE102 - calling the entry makes the exception
            self._sent[number] = self._clock.boot()
            return wire.Poll(
                session=session_number,
                number=number,
                acknowledged=self._acknowledged,
                slots=min(offer.slots, wire.MAX_ASSIGNMENTS),
                memory_bytes=offer.memory_bytes,
                gateway=offer.gateway,
                wait_seconds=wait,
            )

        seconds = wait + _ANSWER_SECONDS
        answer = await self._session.post(_PATH, make, wire.PollAnswer, seconds=seconds, limit=_MAX_ANSWER)
        if answer.number != number:
            raise errors.ANSWER_UNREADABLE(what=f"an answer to poll {answer.number}; expected {number}")
        return answer

    async def _take(self, answer: wire.PollAnswer) -> None:
        """Take over what an answer brought. The next poll acknowledges it, so everything is durable before."""
        self._session.apply(answer.directives)
        self._tasks.stop(answer.stop)
        self._tasks.forget(answer.forget)
        self._tasks.checkpoint(answer.checkpoint)
        if answer.assignments:
            async with self._lock:
                if self._in_session != self._session.number or not self._session.is_open:
                    # A new session began meanwhile; what the old one assigned was given back by the control plane.
                    return
                await self._accept(answer)
        self._acknowledged = answer.number
        self._sent.clear()
        if answer.assignments:
            await asyncio.sleep(0)  # what was accepted is started first; the next poll is made while it begins

    async def _accept(self, answer: wire.PollAnswer) -> None:
        situation = self._situation(self._in_session, self._number, self._acknowledged)
        for signed in answer.assignments:
            verdict = intake.judge(signed, situation)
            if isinstance(verdict, intake.Taken):
                sent = self._sent[verdict.assignment.poll]
                end = heartbeat.deadline(sent, verdict.assignment.lease_seconds)
                self._tasks.accept(verdict, end)
            elif isinstance(verdict, intake.Refused):
                self._tasks.refuse(verdict)
            elif isinstance(verdict, intake.Returned):
                self._tasks.give_back(verdict)
            elif verdict.why:
                _log.error("dropped %s", verdict.why, extra={"action": "assignment-dropped"})
        await self._tasks.written()


def _end(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
