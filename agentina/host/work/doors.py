"""The tasks' doors: a socket for each task that runs, where it says what :mod:`agentina.protocol.verbs` lets it say.

Which task speaks is known by the socket it came through; nothing else of the daemon can be reached there. What it says
is written down (``said.json``) and reported durably before it is acknowledged, in this order:

| killed after | then |
| --- | --- |
| nothing was written | the task gets no answer, and says it again to the next daemon |
| the report is in the outbox | as above: progress is reported twice, what has a name (complaints, questions) is not |
| ``said.json`` is written | said again, it is known: answered, not reported |
| it was answered | all is well |

A door opens :data:`OPEN_SECONDS` after the start: most tasks have ended by then, and pay nothing. Whoever is early, or
meets a daemon that is being restarted, waits (:mod:`agentina.inside.door`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.instance import outbox
from agentina.host.work import anomalies, entries, output, said
from agentina.protocol import inputs, verbs, wire
from agentina.system import clock, files, lines, tasks

#: Seconds after its start until a task has its door.
OPEN_SECONDS: Final = 0.2
#: Connections of one task at once: waits for answers are among them.
AT_ONCE: Final = 16

_log = logging.getLogger(__name__)

#: What is left of a task's budget; None: it has none.
Budget = Callable[[entries.Entry], Awaitable[verbs.Budget | None]]
#: Has a checkpoint of a task taken; what became of it.
Checkpoint = Callable[[entries.Entry], Awaitable[str]]
#: Has a change reported to the control plane, durably.
_Report = Callable[[entries.Entry, verbs.Request, said.Said], Awaitable[None]]


def socket_name(task_id: str) -> str:
    """The file name of a task's socket: its own, as with its gateway's (:mod:`agentina.gateway.variables`)."""
    return f"task-{task_id}.sock"


def read(directory: Path) -> said.Said:
    """What the task in ``directory`` said; nothing where that cannot be read."""
    try:
        return msgspec.json.decode(files.read_bounded(directory / said.FILE, limit=said.MAX_FILE), type=said.Said)
    except FileNotFoundError:
        return said.Said()
    except (OSError, msgspec.MsgspecError, errors.AgentinaError) as error:
        _log.error("what the task %s said is lost: %s", directory.name, error, extra={"action": "task-said"})
        return said.Said()


class Doors:
    """The doors of all tasks of an instance."""

    def __init__(
        self,
        *,
        executor: contract.Executor,
        reports: outbox.Outbox,
        findings: anomalies.Anomalies,
        budget: Budget,
        checkpoint: Checkpoint,
        clocks: clock.Clock,
    ) -> None:
        self._checkpoint = checkpoint
        self._executor = executor
        self._reports = reports
        self._anomalies = findings
        self._budget = budget
        self._clock = clocks
        self._doors: dict[str, Door] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        #: Answers that came before the door was open.
        self._early: dict[str, list[wire.Answer]] = {}
        #: Answers came for a task that was not attended: a daemon that begins beats before it has adopted its tasks,
        #: and some wait for the gateway.
        self._has_missed = False
        self._working: set[asyncio.Task[None]] = set()
        #: Called when a heartbeat is due: answers were taken over, or some that were not can be now.
        self.on_answered: Callable[[], None] = lambda: None

    def attend(self, entry: entries.Entry) -> None:
        """Open the door of a task that runs, after a while."""
        if entry.job is not None and entry.task_id not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[entry.task_id] = loop.call_later(OPEN_SECONDS, self._begin, entry)

    async def leave(self, entry: entries.Entry) -> None:
        """Close the door of a task that has ended."""
        self._early.pop(entry.task_id, None)
        timer = self._timers.pop(entry.task_id, None)
        if timer is not None:
            timer.cancel()
        door = self._doors.pop(entry.task_id, None)
        if door is not None:
            await door.close()

    async def close(self) -> None:
        """Close all doors; the next daemon opens them again."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await tasks.cancel(*self._working)
        doors, self._doors = list(self._doors.values()), {}
        for door in doors:
            await door.close()

    def answer(self, answers: list[wire.Answer]) -> None:
        """Take over what operators say to tasks.

        What is not taken now comes again with the next heartbeat; for who could not take it yet that is made when the
        next door opens, for the next by itself may be a minute away.
        """
        for task_id in {one.task_id for one in answers}:
            own = [one for one in answers if one.task_id == task_id]
            if task_id in self._doors:
                self._start(self._take(self._doors[task_id], own), task_id)
            elif task_id in self._timers:
                self._early[task_id] = own
            else:
                self._has_missed = True

    async def notify(self, task_id: str, text: str) -> bool:
        """Tell a task something with its next word; whether it has a door.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        door = self._doors.get(task_id)
        return door is not None and await door.change(lambda before: said.noticed(before, text))

    async def _take(self, door: Door, answers: list[wire.Answer]) -> None:
        if await door.change(lambda before: said.take_answers(before, answers)):
            # The control plane is told that they are here.
            self.on_answered()

    def _start(self, work: Coroutine[Any, Any, None], task_id: str) -> None:
        def complain(error: BaseException) -> None:
            _log.warning("task %s: %s", task_id, error, extra={"action": "task-door", "task": task_id})

        started = tasks.start(work, name=f"door {task_id}", on_failure=complain)
        self._working.add(started)
        started.add_done_callback(self._working.discard)

    def _begin(self, entry: entries.Entry) -> None:
        self._start(self._open(entry), entry.task_id)

    async def _open(self, entry: entries.Entry) -> None:
        place = self._executor.door(entry.directory.path)
        if place.outside is None or entry.task_id not in self._timers:
            return  # it has ended, and whoever watches it has seen that, or is about to
        workspace = str(self._executor.place(entry.directory.path) / "workspace")
        door = Door(
            entry, workspace=workspace, report=self._report, budget=self._budget, checkpoint=self._checkpoint,
            clocks=self._clock,
        )  # fmt: skip
        self._doors[entry.task_id] = door
        try:
            await door.open(place.outside, mode=0o666 if place.is_shared else 0o600)
        except OSError as error:
            _log.warning(
                "task %s has no door: %s", entry.task_id, error, extra={"action": "task-door", "task": entry.task_id}
            )
        early = self._early.pop(entry.task_id, [])
        if early:
            await self._take(door, early)
        if self._has_missed:
            self._has_missed = False
            self.on_answered()

    async def _report(self, entry: entries.Entry, request: verbs.Request, after: said.Said) -> None:
        if isinstance(request, verbs.TellProgress):
            self._reports.report(entry.task_id, "progress", progress=after.progress)
        elif isinstance(request, verbs.Complain | verbs.Ask):
            found = said.finding(entry.task_id, request, after)
            self._anomalies.report(
                found.kind, found.code, found.summary,
                task_id=entry.task_id, evidence=found.evidence, name=found.name,
            )  # fmt: skip
            fields = {"action": "task-says", "task": entry.task_id, "code": found.code}
            _log.warning("task %s says: %s", entry.task_id, found.summary[:500], extra=fields)
        await self._reports.commit()


class Door:
    """The door of one task."""

    def __init__(
        self,
        entry: entries.Entry,
        *,
        workspace: str,
        report: _Report,
        budget: Budget,
        checkpoint: Checkpoint,
        clocks: clock.Clock,
    ) -> None:
        self._checkpoint = checkpoint
        self._entry = entry
        self._workspace = workspace
        self._report = report
        self._budget = budget
        self._clock = clocks
        self._said = read(entry.directory.path)
        entry.progress, entry.answered, entry.declared = self._said.progress, self._said.answered, None
        self._pace = said.bucket(clocks.boot())
        #: One change after the other, each durable before the next.
        self._changing = asyncio.Lock()
        #: Set, and replaced, with each change.
        self._changed = asyncio.Event()
        self._server = lines.LineServer(self._serve, limit=verbs.MAX_REQUEST, at_once=AT_ONCE)

    async def open(self, directory: Path, *, mode: int) -> None:
        """Listen in ``directory``.

        Raises:
            OSError: It cannot.

        """
        await self._server.open(directory, socket_name(self._entry.task_id), mode=mode)

    async def close(self) -> None:
        """Stop listening; whoever waits for an answer is cut off, and asks the next daemon."""
        await self._server.close()

    async def change(self, step: Callable[[said.Said], said.Said | None]) -> bool:
        """Write down what ``step`` makes of everything said; None from it changes nothing. Whether it did.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``: nothing is changed.

        """
        async with self._changing:
            after = step(self._said)
            if after is None:
                return False
            await self._write(after)
            return True

    async def _write(self, after: said.Said) -> None:
        """Make ``after`` durable; the lock is held."""
        path = self._entry.directory.path / said.FILE
        await asyncio.to_thread(files.write_atomic, path, msgspec.json.encode(after))
        self._said = after
        self._entry.progress, self._entry.answered = after.progress, after.answered
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, line: bytes, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> bytes:
        return msgspec.json.encode(await self._answer(line, reader))

    async def _answer(self, line: bytes, reader: asyncio.StreamReader) -> verbs.Answer:
        try:
            # A union of structs is a type as well, which mypy does not know.
            request: verbs.Request = inputs.decode(line, verbs.Request, "request", limit=verbs.MAX_REQUEST)  # type: ignore[arg-type]
            said.check_pace(self._pace, self._clock.boot())
            return await self._hear(self._masked(request), reader)
        except errors.AgentinaError as error:
            return verbs.Answer(error=errors.to_wire(error)["error"])
        except Exception:  # noqa: BLE001 - a fault of ours in one request must not close the door
            _log.exception("a request of task %s failed", self._entry.task_id)
            return verbs.Answer(error=errors.to_wire(errors.INTERNAL(incident="task request"))["error"])

    def _masked(self, request: verbs.Request) -> verbs.Request:
        """``request`` without the values that the job marked as secret."""
        text = getattr(request, "text", "")
        masked = output.mask(text.encode(), self._entry.secrets).decode("utf-8", "replace")[: len(text)]
        return request if masked == text else msgspec.structs.replace(request, text=masked)

    async def _hear(self, request: verbs.Request, reader: asyncio.StreamReader) -> verbs.Answer:
        if isinstance(request, verbs.AskBudget):
            left = await self._budget(self._entry)
            answer = verbs.Answer(budget=left, text="" if left is not None else "this task has no budget")
        elif isinstance(request, verbs.TakeCheckpoint):
            answer = verbs.Answer(text=await self._checkpoint(self._entry))
        else:
            answer = await self._take(request)
        if isinstance(request, verbs.Ask | verbs.Hear) and answer.answer is None and answer.question and request.wait:
            answer = await self._wait(answer.question, request.wait, reader)
        return await self._with_notices(answer)

    async def _take(self, request: said.Told) -> verbs.Answer:
        async with self._changing:
            step = said.hear(self._said, request, workspace=self._workspace, now_ms=self._clock.wall_ms())
            if step.is_new:
                await self._report(self._entry, request, step.said)
            if step.said is not self._said:
                await self._write(step.said)
            return step.answer

    async def _wait(self, number: int, seconds: float, reader: asyncio.StreamReader) -> verbs.Answer:
        """The answer to a question, for which the task waits; not longer than whoever asked is there."""
        self._entry.asking += 1
        gone = tasks.start(reader.read(1), name=f"peer {self._entry.task_id}", on_failure=lambda _: None)
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            while self._said.questions[number - 1].answer is None and not gone.done():
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                change = tasks.start(self._changed.wait(), name=f"answer {self._entry.task_id}")
                await asyncio.wait({gone, change}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                await tasks.cancel(change)
        finally:
            self._entry.asking -= 1
            await tasks.cancel(gone)
        return said.answer_to(self._said, number)

    async def _with_notices(self, answer: verbs.Answer) -> verbs.Answer:
        """What waits to be told goes with the answer; once it is said it is forgotten."""
        if not self._said.notices:
            return answer
        notices: list[str] = []

        def take(before: said.Said) -> said.Said | None:
            # Another request may have been told them, and others may have come, while this one waited for its turn.
            notices.extend(before.notices)
            return msgspec.structs.replace(before, notices=[]) if notices else None

        await self.change(take)
        return msgspec.structs.replace(answer, notices=notices) if notices else answer
