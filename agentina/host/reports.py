"""Sends what the outbox holds: in order, many in one request, again until they are acknowledged."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from agentina import errors
from agentina.client import backoff, link
from agentina.host.instance import outbox, session
from agentina.host.work import tasks
from agentina.protocol import wire

_PATH: Final = "/v1/agent/reports"
#: Least seconds between two requests: what is reported meanwhile shares a commit and a request.
_GATHER_SECONDS: Final = 0.01
#: Room left for the rest of the message, in bytes.
_FRAME: Final = 4096
#: Answers that mean the content itself is not accepted; sending it again would never end.
_INDIGESTIBLE: Final = {
    errors.INPUT_INVALID.code,
    errors.INPUT_UNKNOWN_KEY.code,
    errors.INPUT_UNREADABLE.code,
    errors.INPUT_TOO_LARGE.code,
    errors.NAME_INVALID.code,
}

_log = logging.getLogger(__name__)


class Sender:
    """The reports loop of one instance."""

    def __init__(self, reports: outbox.Outbox, sessions: session.Session, held: tasks.Tasks) -> None:
        self._outbox = reports
        self._session = sessions
        self._tasks = held
        #: Most reports in one request; one by one after the control plane choked on a batch.
        self._most = wire.MAX_REPORTS

    async def run(self) -> None:
        """Send whatever is durable and not acknowledged. Runs until canceled."""
        pause = backoff.Backoff()
        loop = asyncio.get_running_loop()
        while True:
            await self._outbox.pending.wait()
            begun = loop.time()
            try:
                await self._send()
            except errors.AgentinaError as error:
                if error.code in _INDIGESTIBLE:
                    self._step_over(error)
                elif error.code != errors.SESSION_SUPERSEDED.code:
                    await asyncio.sleep(pause.delay(link.retry_after(error)))
            else:
                pause.reset()
                await asyncio.sleep(max(0.0, begun + _GATHER_SECONDS - loop.time()))

    async def _send(self) -> None:
        # The session is awaited first: what is sent, and under which stream's name, is chosen afterwards.
        await self._session.current()
        self._outbox.begin_commit()
        if not self._outbox.waiting:
            await self._outbox.commit()
        batch = self._outbox.first(most=self._most, most_bytes=wire.MAX_BODY - _FRAME)
        if not batch:
            return
        stream = self._outbox.stream
        body = b",".join(report.body for report in batch)

        def make(number: int) -> bytes:
            head = msgspec.json.encode({"session": number, "stream": stream})
            return head[:-1] + b',"reports":[' + body + b"]}"

        answer = await self._session.post(_PATH, make, wire.ReportsApplied)
        if stream != self._outbox.stream:
            return
        if self._outbox.acknowledge(answer.applied):
            self._tasks.applied(answer.applied)
        self._tasks.forget(answer.forget)
        self._most = wire.MAX_REPORTS

    def _step_over(self, error: errors.AgentinaError) -> None:
        """Find the report the control plane cannot digest, and say less in its place: a gap is not allowed."""
        if self._most > 1:
            self._most = 1
            return
        first = self._outbox.first(most=1, most_bytes=1)
        if first:
            _log.error(
                "a report of task %s is not accepted: %s", first[0].task_id, error,
                extra={"action": "report-reduced", "task": first[0].task_id, "code": error.code},
            )  # fmt: skip
            self._outbox.reduce_first(str(error))
