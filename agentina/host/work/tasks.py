"""The tasks this instance holds: acts on what :mod:`agentina.host.work.state` decides.

Each task has one driver, an asyncio task that performs its operations one after the other and feeds their ends back as
events; stops, leases and forgets come in from outside at any time. What is in memory here is only a shadow: every fact
that matters is on disk or in the kernel, and :mod:`agentina.host.work.inventory` finds it again.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import math
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.instance import outbox
from agentina.host.work import entries, intake, operations, outcomes, records, state
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from agentina.system import clock, tasks

_STOP_REASONS: Final = {
    Reason.LEASE_EXPIRED: contract.StopReason.LEASE_EXPIRED,
    Reason.HOST_RESTARTED: contract.StopReason.HOST_SHUTDOWN,
    Reason.CHECKPOINT: contract.StopReason.CHECKPOINT,
}

#: Ends after which nobody wants to look at what a task left: what goes on elsewhere is there.
_LOOKED_AT_BY_NOBODY: Final = {State.SUCCEEDED, State.CHECKPOINTED}

#: Seconds after which a task that is still here gets a copy of its record beside it, at most twice as many.
_COPY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class Tasks:
    """All held tasks. Everything runs on the event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        reports: outbox.Outbox,
        executor: contract.Executor,
        work: operations.Operations,
        clocks: clock.Clock,
        boot_id: str,
    ) -> None:
        self._directory = directory
        self._outbox = reports
        self._executor = executor
        self._work = work
        self._clock = clocks
        self._boot_id = boot_id
        self._entries: dict[str, entries.Entry] = {}
        #: Checkpoints that somebody wanted.
        self._taking: dict[str, asyncio.Task[None]] = {}
        #: Those that have no copy of their record yet, the oldest first, and when each is to get it (the loop's clock).
        self._uncopied: collections.deque[tuple[float, entries.Entry]] = collections.deque()
        self._phases: collections.Counter[state.Phase] = collections.Counter()
        self._occupied = 0
        self._promised = 0
        self._closing = False
        #: Called when a slot became free.
        self.on_free: Callable[[], None] = lambda: None
        #: Called when a process began or ended.
        self.on_running: Callable[[], None] = lambda: None
        #: Removes a directory: path, whether to keep it for a look.
        self.on_remove: Callable[[Path, bool], None] = lambda *_: None
        #: Puts a directory of a former task, empty but for an empty place to work, at a path; False: there is none.
        self.reuse: Callable[[Path], bool] = lambda _: False
        reports.on_renewed = self._say_everything_again

    # --- looking -----------------------------------------------------------------------------------------------------

    @property
    def all(self) -> Iterable[entries.Entry]:
        """Every held task."""
        return self._entries.values()

    @property
    def ids(self) -> AbstractSet[str]:
        """Ids of every held task, as they are at any moment."""
        return self._entries.keys()

    @property
    def occupied(self) -> int:
        """Slots in use."""
        return self._occupied

    @property
    def promised_bytes(self) -> int:
        """Memory limits of the tasks in slots, together."""
        return self._promised

    @property
    def uploading(self) -> int:
        """Tasks whose output or artifacts are on their way."""
        return self._phases[state.Phase.UPLOADING]

    @property
    def has_running(self) -> bool:
        """Whether any process runs."""
        return self._phases[state.Phase.RUNNING] > 0

    def secrets_of(self, task_id: str) -> list[bytes]:
        """The values to mask in whatever is said about a task; none when it is not here."""
        entry = self._entries.get(task_id)
        return [] if entry is None else entry.secrets

    def running(self) -> list[entries.Entry]:
        """Tasks whose process runs."""
        return [entry for entry in self._entries.values() if entry.task.phase is state.Phase.RUNNING]

    def held(self) -> list[wire.Held]:
        """What session and heartbeat tell: every task here, and those only unacknowledged reports speak of."""
        listed = [
            wire.Held(
                task_id=entry.task_id,
                state=entry.task.shown,
                output_bytes=entry.sent or 0,
                answered=entry.answered,
                agent=entry.account(),
                models=entry.models,
                parked=entry.parked,
            )
            for entry in self._entries.values()
        ]
        others = self._outbox.tasks_waiting() - self._entries.keys()
        listed.extend(wire.Held(task_id=task_id, state=State.REFUSED) for task_id in sorted(others))
        return listed[: wire.MAX_HELD]

    # --- coming in ---------------------------------------------------------------------------------------------------

    def accept(self, taken: intake.Taken, deadline: float) -> None:
        """Have a task written down; once that is durable (:meth:`written`) it goes on by itself."""
        assignment = taken.assignment
        record = msgspec.json.encode(
            records.Record(
                assignment=taken.signed,
                boot_id=self._boot_id,
                accepted_ms=self._clock.wall_ms(),
                lease_deadline=deadline,
            )
        )
        directory = records.TaskDirectory(self._directory / assignment.task_id)
        try:
            is_furnished = self._make_directory(directory.path, assignment)
        except errors.AgentinaError as error:
            _log.error(
                "task %s is given back: %s",
                assignment.task_id,
                error,
                extra=_fields(assignment, "task-returned", error.code),
            )
            self._outbox.report(assignment.task_id, "returned", detail=str(error))
            return
        entry = entries.Entry(
            task_id=assignment.task_id,
            directory=directory,
            record=record,
            assignment=assignment,
            task=state.Task(state.Phase.ACCEPTING),
            deadline=deadline,
            secrets=entries.secrets_of(assignment.job),
            is_furnished=is_furnished,
        )
        self._add(entry)
        self._outbox.hold(entry.task_id, record)
        self._outbox.report(entry.task_id, "accepted", then=lambda: self.feed(entry, state.Accepted()))
        self._copy_later(entry)
        _log.debug(
            "task %s accepted: %s", entry.task_id, assignment.job.name, extra=_fields(assignment, "task-accepted")
        )

    def _make_directory(self, path: Path, assignment: wire.Assignment) -> bool:
        """Make a task's directory; whether the usual place to work is in it."""
        if assignment.job.workspace.git is None and assignment.origin is None and self.reuse(path):
            return True
        records.make_empty(path)
        return False

    async def written(self) -> None:
        """Return when everything accepted or refused so far is durable."""
        await self._outbox.commit()

    def _copy_later(self, entry: entries.Entry) -> None:
        """Have a copy written if the task is here that long. Most are not: one timer looks at all of them."""
        loop = asyncio.get_running_loop()
        if not self._uncopied:
            loop.call_later(_COPY_SECONDS, self._write_copies)
        self._uncopied.append((loop.time() + _COPY_SECONDS, entry))

    def _write_copies(self) -> None:
        loop = asyncio.get_running_loop()
        while self._uncopied and self._uncopied[0][0] <= loop.time():
            self._write_copy(self._uncopied.popleft()[1])
        if self._uncopied:
            loop.call_later(_COPY_SECONDS, self._write_copies)

    def _write_copy(self, entry: entries.Entry) -> None:
        """Write down beside a task that is still here what the outbox has, should that be damaged."""
        if self._closing or self._entries.get(entry.task_id) is not entry:
            return
        try:
            entry.directory.write_record(entry.record)
        except errors.AgentinaError as error:
            _log.warning(
                "task %s has its record only in the outbox: %s", entry.task_id, error,
                extra={"action": "task-copied", "task": entry.task_id, "code": error.code},
            )  # fmt: skip

    def give_back(self, returned: intake.Returned) -> None:
        """Report that an assignment is not taken now."""
        _log.warning(
            "task %s is given back: %s", returned.task_id, returned.why,
            extra={"action": "task-returned", "task": returned.task_id},
        )  # fmt: skip
        self._outbox.report(returned.task_id, "returned", detail=returned.why)

    def give_back_unstarted(self, why: str) -> None:
        """Give every task back that has not been started; others are not touched."""
        for entry in list(self._entries.values()):
            if entry.task.phase in {state.Phase.ACCEPTING, state.Phase.PREPARING}:
                _log.warning(
                    "task %s is given back: %s", entry.task_id, why,
                    extra={"action": "task-returned", "task": entry.task_id},
                )  # fmt: skip
                self.feed(entry, state.StopAsked(Reason.HOST_RESTARTED, why))

    def move(self, why: str, *, grace_seconds: float = math.inf) -> None:
        """Have the tasks that can go on elsewhere do so, with at most so much grace; others are not touched."""
        self.give_back_unstarted(why)
        for entry in self.running():
            if self._work.can_move(entry):
                _log.info(
                    "task %s goes on elsewhere: %s", entry.task_id, why,
                    extra={"action": "task-moved", "task": entry.task_id},
                )  # fmt: skip
                grace = None if entry.job is None else min(entry.job.limits.grace, grace_seconds)
                self.feed(entry, state.StopAsked(Reason.CHECKPOINT, why, grace))

    def refuse(self, refused: intake.Refused) -> None:
        """Report that an assignment is not taken."""
        _log.warning(
            "task %s refused: %s", refused.task_id, refused.error,
            extra={"action": "task-refused", "task": refused.task_id, "code": refused.error.code},
        )  # fmt: skip
        self._outbox.report(refused.task_id, "finished", outcome=refused.outcome)

    def adopt(self, entry: entries.Entry, found: state.Found, outcome: wire.Outcome | None) -> None:
        """Go on with a task found on disk."""
        self._add(entry)
        before = entry.task
        entry.task, commands = state.resume(found, outcome)
        if found is state.Found.RUNNING:
            # The report may have been lost with the daemon that started it; a second one changes nothing.
            self._outbox.report(entry.task_id, "running", pid=entry.pid)
        is_to_run = outcome is None and found in {state.Found.RUNNING, state.Found.UNSTARTED}
        if is_to_run and not entry.directory.job.exists():
            # The daemon that accepted it ended before it came to that.
            self._copy_later(entry)
        self._account(before.phase, entry)
        self._act(entry, commands)

    def hold_again(self, entry: entries.Entry) -> None:
        """Write an adopted task into an outbox that does not know it."""
        self._outbox.hold(entry.task_id, entry.record)
        self._outbox.report(entry.task_id, "accepted")

    # --- orders ------------------------------------------------------------------------------------------------------

    def stop(self, orders: Iterable[wire.StopTask]) -> None:
        """End tasks the control plane wants ended."""
        for order in orders:
            entry = self._entries.get(order.task_id)
            if entry is not None:
                _log.info(
                    "task %s is told to end: %s", order.task_id, order.detail or order.reason.value,
                    extra={"action": "task-stop", "task": order.task_id},
                )  # fmt: skip
                self.feed(entry, state.StopAsked(order.reason, order.detail))

    def checkpoint(self, task_ids: Iterable[str]) -> None:
        """Take checkpoints of tasks that run, as somebody wants; each tells the control plane what became of it."""
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is not None and entry.task.phase is state.Phase.RUNNING and task_id not in self._taking:
                self._taking[task_id] = tasks.start(self._checkpoint(entry), name=f"checkpoint {task_id}")

    async def _checkpoint(self, entry: entries.Entry) -> None:
        try:
            said = await self._work.checkpoint(entry)
        except errors.AgentinaError as error:
            said = error.message
        finally:
            del self._taking[entry.task_id]
        self._outbox.report(entry.task_id, "note", detail=said[: wire.MAX_DETAIL])

    def forget(self, task_ids: Iterable[str]) -> None:
        """Let go of tasks the control plane has in full."""
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is not None:
                self.feed(entry, state.Forgotten())

    def renew(self, task_ids: Iterable[str], deadline: float) -> None:
        """Move leases; ``deadline`` in CLOCK_BOOTTIME seconds."""
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is None or (entry.deadline is not None and entry.deadline >= deadline):
                continue
            entry.deadline = deadline
            if entry.task.phase is state.Phase.RUNNING:
                self._renew_running(entry, deadline)

    def _renew_running(self, entry: entries.Entry, deadline: float) -> None:
        try:
            self._executor.renew(entry.directory.path, deadline)
        except errors.AgentinaError as error:
            # The next renewal tries again; one task's lease must not hold up the answer that renews the others.
            _log.warning(
                "the lease of task %s is not renewed: %s", entry.task_id, error,
                extra={"action": "lease-not-renewed", "task": entry.task_id, "code": error.code},
            )  # fmt: skip

    def applied(self, number: int) -> None:
        """Reports up to ``number`` are applied: tasks given back with one of them need no ``forget``."""
        given_back = [entry for entry in self._entries.values() if 0 < entry.returned_as <= number]
        for entry in given_back:
            self.feed(entry, state.Forgotten())

    async def close(self) -> None:
        """Stop acting; tasks go on without this daemon."""
        self._closing = True
        await tasks.cancel(*self._taking.values())
        await tasks.cancel(*(entry.driver for entry in self._entries.values()))

    # --- acting ------------------------------------------------------------------------------------------------------

    def feed(self, entry: entries.Entry, event: state.Event) -> None:
        """Give an event to a task and do what follows."""
        if self._closing:
            return
        before = entry.task.phase
        entry.task, commands = state.advance(entry.task, event)
        self._account(before, entry)
        self._act(entry, commands)

    def _act(self, entry: entries.Entry, commands: list[state.Command]) -> None:
        for command in commands:
            if isinstance(command, state.Say):
                self._say(entry, command)
            elif command is state.Do.STOP:
                self._stop_process(entry)
            elif command is state.Do.INTERRUPT:
                entry.interrupted = True
                if entry.operating and entry.driver is not None:
                    entry.driver.cancel()
            elif command is state.Do.REMOVE:
                self._remove(entry)
            else:
                entry.next = command
        if entry.next is not None and entry.driver is None:
            entry.driver = tasks.start(self._drive(entry), name=f"task {entry.task_id}")

    async def _drive(self, entry: entries.Entry) -> None:
        """Perform one operation after the other; each one's end is the event that decides on the next."""
        while entry.next is not None:
            operation, entry.next = entry.next, None
            # An interruption may have come before the operation began.
            event = state.Interrupted() if entry.interrupted else await self._perform(entry, operation)
            entry.interrupted = False
            if isinstance(event, state.Started):
                self._note_start(entry, event)
            self.feed(entry, event)
        entry.driver = None

    async def _perform(self, entry: entries.Entry, operation: state.Do) -> state.Event:
        entry.operating = True
        try:
            return await self._work.perform(entry, operation)
        except asyncio.CancelledError:
            if not entry.interrupted or self._closing:
                raise
            return state.Interrupted()
        except Exception:  # noqa: BLE001 - a fault of ours in one task must not stop the others, nor leave it endless
            _log.exception("task %s: %s failed", entry.task_id, operation.value, extra={"task": entry.task_id})
            return _after_fault(operation)
        finally:
            entry.operating = False

    def _note_start(self, entry: entries.Entry, event: state.Started) -> None:
        entry.pid = event.pid
        entry.started_ms = self._clock.wall_ms()
        assert entry.assignment is not None
        _log.info(
            "task %s runs as process %d: %s", entry.task_id, event.pid, entry.assignment.job.name,
            extra=_fields(entry.assignment, "task-started"),
        )  # fmt: skip

    def _say(self, entry: entries.Entry, say: state.Say) -> None:
        self._outbox.report(entry.task_id, say.kind, outcome=say.outcome, detail=say.detail, pid=say.pid)
        if say.kind == "returned":
            entry.returned_as = self._outbox.last
        outcome = say.outcome
        if outcome is not None:
            _log.info(
                "task %s ended: %s: %s", entry.task_id, outcome.state.value, outcome.detail,
                extra={"action": "task-finished", "task": entry.task_id, "code": outcome.error_code or None},
            )  # fmt: skip

    def _stop_process(self, entry: entries.Entry) -> None:
        asked = entry.task.stop
        if asked is None:
            self._executor.stop(entry.directory.path, contract.StopReason.CANCELED)
            return
        reason = _STOP_REASONS.get(asked.reason, contract.StopReason.CANCELED)
        self._executor.stop(entry.directory.path, reason, grace_seconds=asked.grace_seconds)

    def _remove(self, entry: entries.Entry) -> None:
        del self._entries[entry.task_id]
        keep = entry.task.outcome is not None and entry.task.outcome.state not in _LOOKED_AT_BY_NOBODY
        # First forgotten in the outbox, then deleted: the other way round a crash between would look like damage.
        self._outbox.release(entry.task_id, then=lambda: self.on_remove(entry.directory.path, keep))

    def _add(self, entry: entries.Entry) -> None:
        assert entry.task_id not in self._entries, entry.task_id
        self._entries[entry.task_id] = entry
        self._phases[entry.task.phase] += 1
        if entry.task.phase in state.OCCUPYING:
            self._occupied += 1
            self._promised += entry.memory_bytes

    def _account(self, before: state.Phase, entry: entries.Entry) -> None:
        """Keep count of phases and promised memory."""
        after = entry.task.phase
        if after is before:
            return
        self._phases[before] -= 1
        self._phases[after] += 1
        change = (after in state.OCCUPYING) - (before in state.OCCUPYING)
        if change:
            self._occupied += change
            self._promised += change * entry.memory_bytes
        if change < 0:
            self.on_free()
        if before is state.Phase.RUNNING or after is state.Phase.RUNNING:
            self.on_running()

    def _say_everything_again(self) -> None:
        """The outbox began a new stream: say the present state of every task (reports are idempotent)."""
        for entry in self._entries.values():
            self.hold_again(entry)
            phase = entry.task.phase
            if phase is state.Phase.RUNNING:
                self._outbox.report(entry.task_id, "running", pid=entry.pid)
            elif phase in {state.Phase.COLLECTING, state.Phase.UPLOADING}:
                self._outbox.report(entry.task_id, "finishing")
            elif phase is state.Phase.REPORTED:
                kind = "returned" if entry.task.returned else "finished"
                self._say(entry, state.Say(kind, outcome=entry.task.outcome, detail="said again"))


def _after_fault(operation: state.Do) -> state.Event:
    """The event after an operation failed in a way nobody foresaw."""
    detail = "a fault of agentina; see the daemon's log"
    if operation is state.Do.PREPARE:
        return state.Unable(detail)
    if operation is state.Do.START:
        # It may have been started: it is watched like an adopted one, which finds out.
        return state.StartedBefore()
    if operation is state.Do.WATCH:
        return state.Ended()
    outcome = outcomes.lost(Reason.RECORD_DAMAGED, detail)
    return state.Collected(outcome) if operation is state.Do.COLLECT else state.Uploaded(outcome)


def _fields(assignment: wire.Assignment, action: str, code: str | None = None) -> dict[str, str | None]:
    return {"action": action, "task": assignment.task_id, "job": assignment.job_id, "code": code}
