"""The daemon's side of the gateway: starts its process for the first task, again when it dies, ends it after the last.

One asyncio task reads what the gateway says; orders are written at once. Every order to serve a task is kept until the
task has ended, and is given again to each new process: the gateway itself remembers nothing but what is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.gateway import channel, launching
from agentina.system import tasks

#: Seconds a process may take until it serves a task.
_OPEN_SECONDS: Final = 30.0
#: Seconds before a process that died is replaced; doubles while it goes on dying.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 30.0
#: Seconds without a task after which it ends: the next one starts in half a second less where it is still there.
IDLE_SECONDS: Final = 30.0
#: Seconds it may take to let a task go.
_CLOSE_SECONDS: Final = 5.0
#: Seconds it may take to end.
_END_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps one gateway process while there are tasks for it."""

    def __init__(
        self,
        settings: Path,
        *,
        hear: Callable[[channel.Word], None],
        prologue: Callable[[], list[channel.Order]] = list,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Take collaborators.

        Args:
            settings: ``gateway.yaml``.
            hear: Takes what the process says.
            prologue: Makes what each new process is told first.
            idle_seconds: How long it stays without a task.

        """
        self._settings = settings
        self._hear = hear
        self._prologue = prologue
        self._idle_seconds = idle_seconds
        self._orders: dict[str, channel.Open] = {}
        self._answers: dict[str, asyncio.Future[str]] = {}
        #: Tasks that the process was told to let go, and has not yet.
        self._closing: dict[str, asyncio.Event] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._running: asyncio.Task[None] | None = None
        self._pid = 0
        #: The process that ended last was told to.
        self._is_ending = False

    @property
    def pid(self) -> int:
        """The gateway's process; 0: none runs."""
        return self._pid

    async def open(self, order: channel.Open) -> None:
        """Have a task served; returns when it is.

        Raises:
            AgentinaError: ``GATEWAY_UNUSABLE``.

        """
        if order.task_id in self._orders:
            return
        self._orders[order.task_id] = order
        answer = self._answers[order.task_id] = asyncio.get_running_loop().create_future()
        if self._running is None or self._running.done():
            self._running = tasks.start(self._run(), name="gateway")
        else:
            self._send(order)
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                problem = await answer
        except TimeoutError:
            problem = f"it does not answer within {_OPEN_SECONDS:.0f} s"
        finally:
            self._answers.pop(order.task_id, None)
        if problem:
            self.close(order.task_id)
            raise errors.GATEWAY_UNUSABLE(problem=problem.rstrip("."))

    def listen(self, task_id: str, door: channel.Door) -> None:
        """Have a task served at a place that is there by now."""
        order = self._orders.get(task_id)
        if order is not None and order.door != door:
            self._orders[task_id] = msgspec.structs.replace(order, door=door)
            self._send(channel.Listen(task_id=task_id, door=door))

    def close(self, task_id: str) -> None:
        """Let a task go; some time after the last one the process ends."""
        if self._orders.pop(task_id, None) is None:
            return
        if self._writer is not None:
            self._closing[task_id] = asyncio.Event()
        self._send(channel.Close(task_id=task_id))
        if not self._orders:
            asyncio.get_running_loop().call_later(self._idle_seconds, self._end_if_idle)

    async def closed(self, task_id: str) -> None:
        """Return when a task that was let go has all in its record, or nobody is there to put more into it."""
        done = self._closing.get(task_id)
        if done is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await done.wait()

    def _end_if_idle(self) -> None:
        if not self._orders and self._writer is not None:
            self._writer.close()

    def tell(self, order: channel.Order) -> None:
        """Tell the process something, if there is one."""
        self._send(order)

    def reload(self) -> None:
        """Have settings and keys read again."""
        self._send(channel.Reload())

    async def stop(self) -> None:
        """End the process; tasks lose their way out until another daemon opens it."""
        self._orders.clear()
        await tasks.cancel(self._running)

    def _send(self, order: channel.Order) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(channel.line(order))

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while self._orders:
            served = await self._once()
            if not self._orders:
                return
            if self._is_ending:
                continue  # it was told to end, and a task came meanwhile
            pause = _FIRST_PAUSE if served else min(_LONGEST_PAUSE, 2 * pause)
            _log.error("the gateway ended and is started again", extra={"action": "gateway-ended"})
            await asyncio.sleep(pause)

    async def _once(self) -> bool:
        """Start a process and listen to it until it ends; whether it ever served a task."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *launching.command(self._settings), stdin=theirs.fileno(), env=launching.environment()
            )  # fmt: skip
        except OSError as error:
            ours.close()
            self._fail(f"its process cannot be started ({error.strerror})")
            return False
        finally:
            theirs.close()
        self._pid = process.pid
        self._is_ending = False
        try:
            return await self._listen(ours)
        finally:
            self._pid = 0
            if self._writer is not None:
                self._is_ending = self._writer.is_closing()
                self._writer.close()
                self._writer = None
            await tasks.finish(_end(process))
            for task_id in list(self._closing):
                self._on_closed(task_id)

    async def _listen(self, ours: socket.socket) -> bool:
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=channel.MAX_LINE)
        for order in [*self._prologue(), *self._orders.values()]:
            self._send(order)
        served = False
        # A process that was killed resets the connection where one that ends closes it.
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                try:
                    word = channel.words.decode(line)
                except msgspec.MsgspecError as error:
                    _log.error("the gateway said what cannot be read: %s", error)
                    continue
                if isinstance(word, channel.Opened):
                    served = self._on_opened(word) or served
                elif isinstance(word, channel.Closed):
                    self._on_closed(word.task_id)
                else:
                    self._hear(word)
        return served

    def _on_opened(self, word: channel.Opened) -> bool:
        answer = self._answers.get(word.task_id)
        if answer is not None and not answer.done():
            answer.set_result(word.problem)
        elif word.problem:
            _log.error(
                "the gateway does not serve task %s: %s", word.task_id, word.problem,
                extra={"action": "gateway-refused", "task": word.task_id},
            )  # fmt: skip
        return not word.problem

    def _on_closed(self, task_id: str) -> None:
        done = self._closing.pop(task_id, None)
        if done is not None:
            done.set()

    def _fail(self, problem: str) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(problem)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait for the process, which has lost its daemon; it is killed when it does not go."""
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
