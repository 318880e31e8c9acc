"""The daemon's part in the budgets of a day: what this host used, and its share of its organization's budget.

docs/explanation/budgets.md has the rules. ``shares.json`` holds what the control plane said last, and what each task
that ended used on which day; what tasks that may go on used is in their own records. A share is *lowered* durably
before the control plane is told so; that it was raised need not survive: a host that believes in less harms nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.gateway import channel, days, record
from agentina.host.instance import session
from agentina.host.work import entries
from agentina.protocol import budgets, jobs
from agentina.system import clock, files

NAME: Final = "shares.json"
_PATH: Final = "/v1/agent/budgets"
_MAX: Final = 16 << 20
#: Seconds an answer may take; calls may wait for it.
_ANSWER_SECONDS: Final = 5.0
#: Days for which it is kept what was used: calls let through before midnight end after it.
_KEPT_DAYS: Final = 2

_log = logging.getLogger(__name__)


class _File(msgspec.Struct, kw_only=True, omit_defaults=True):
    known: days.Known = days.Known()
    #: By day and task.
    ended: dict[str, dict[str, budgets.Units]] = {}


class Shares:
    """The budgets of the day of one instance."""

    def __init__(
        self,
        directory: Path,
        *,
        sessions: session.Session,
        held: Callable[[], Iterable[entries.Entry]],
        now_ms: Callable[[], int],
        clocks: clock.Clock,
    ) -> None:
        """Read what is on disk.

        Args:
            directory: The instance's state.
            sessions: The way to the control plane.
            held: All tasks of this host.
            now_ms: The control plane's time.
            clocks: This host's.

        """
        self._path = directory / NAME
        self._session = sessions
        self._held = held
        self._now_ms = now_ms
        self._clock = clocks
        self._number = 0
        self._writing = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._file = self._read()
        #: Why the control plane did not answer last; None: it did.
        self._failure: str | None = None
        #: Called with the budget of a task that an operator changed.
        self.on_changed: Callable[[str, jobs.Budget], None] = lambda *_: None

    def prologue(self) -> list[channel.Order]:
        """What a new process of the gateway is told first."""
        spent: dict[str, budgets.Units] = {}
        done: set[str] = set()
        for day, of_tasks in self._file.ended.items():
            done |= of_tasks.keys()
            spent[day] = sum(of_tasks.values(), budgets.Units())
        open_tasks = {}
        for entry in self._held():
            story = None if entry.task_id in done else record.read(entry.directory.path)
            if story is not None:
                # Until the gateway has opened the task again, what a killed one left under way counts in full.
                story.conclude()
                open_tasks[entry.task_id] = days.by_day(story.usage())
        return [channel.Begin(spent=spent, of_tasks=open_tasks), self._learn(is_away=False)]

    def left(self) -> dict[str, budgets.Bounds]:
        """What is left today of the budgets of agent and organization, where there are any.

        Of the organization's as the control plane said last; nobody but this host uses the agent's.
        """
        day, known = budgets.day_of(self._now_ms()), self._file.known
        found: dict[str, budgets.Bounds] = {}
        if known.day != day:
            return found
        if known.organization is not None:
            found["organization"] = known.organization.left
        if known.agent is not None:
            spent = self._spent(day)
            rest = {kind: getattr(known.agent.limit, kind) for kind in budgets.KINDS}
            found["agent"] = budgets.Bounds(
                **{kind: None if most is None else max(0, most - getattr(spent, kind)) for kind, most in rest.items()}
            )
        return found

    def _spent(self, day: str) -> budgets.Units:
        """What tasks of this host used on a day."""
        ended = self._file.ended.get(day, {})
        going_on = [entry.models for entry in self._held() if entry.task_id not in ended]
        of_tasks = [days.by_day(models).get(day, budgets.Units()) for models in going_on]
        return sum([*ended.values(), *of_tasks], budgets.Units())

    async def end(self, task_id: str, models: list[budgets.ModelUsage]) -> None:
        """Keep what a task that has ended used; saying it again changes nothing."""
        oldest = budgets.day_of(self._now_ms() - _KEPT_DAYS * 86_400_000)
        for day, units in days.by_day(models).items():
            self._file.ended.setdefault(day, {})[task_id] = units
        for day in [day for day in self._file.ended if day < oldest]:
            del self._file.ended[day]
        await self._write(durable=True)

    async def exchange(self, want: days.Want) -> channel.Learn:
        """Ask the control plane; its answer for the gateway, or that it does not answer. One at a time."""
        async with self._asking:
            return await self._exchange(want)

    async def _exchange(self, want: days.Want) -> channel.Learn:
        if want.promise is not None and self._lower(want.promise) and not await self._write(durable=True):
            # A promise that a crash might break is not given.
            return self._learn(is_away=True)
        self._number += 1
        answer = await self._ask(want, self._number)
        if answer is None:
            return self._learn(is_away=True)
        known = days.Known(day=answer.day, organization=answer.organization, agent=answer.agent)
        if known != self._file.known:
            self._file.known = known
            await self._write(durable=False)
        for task_id, budget in answer.tasks.items():
            self.on_changed(task_id, budget)
        return self._learn(is_away=False)

    async def _ask(self, want: days.Want, number: int) -> budgets.Answer | None:
        if not self._session.is_open:
            return None

        def make(session_number: int) -> budgets.Ask:
            return budgets.Ask(
                session=session_number, number=number, day=want.day, promise=want.promise, spent=want.spent,
                held=want.held, want=want.want, least=want.least,
            )  # fmt: skip

        try:
            answer = await self._session.post(_PATH, make, budgets.Answer, seconds=_ANSWER_SECONDS)
        except errors.AgentinaError as error:
            if error.code in {errors.NOT_FOUND.code, errors.METHOD_NOT_ALLOWED.code}:
                # One of before there were such budgets.
                return budgets.Answer(day=want.day)
            if self._failure != error.code:
                self._failure = error.code
                _log.warning(
                    "the control plane is not reached about budgets; what this host has of them goes on: %s", error,
                    extra={"action": "budget-share-unknown", "code": error.code},
                )  # fmt: skip
            return None
        self._failure = None
        return answer

    def _lower(self, promise: budgets.Units) -> bool:
        """Believe in no more than what is promised; whether that is less than before."""
        share = self._file.known.organization
        if share is None:
            return False
        caps = {
            kind: None if getattr(share.cap, kind) is None else min(getattr(share.cap, kind), getattr(promise, kind))
            for kind in budgets.KINDS
        }
        lowered = msgspec.structs.replace(share, cap=budgets.Bounds(**caps))
        if lowered == share:
            return False
        self._file.known = msgspec.structs.replace(self._file.known, organization=lowered)
        return True

    def _learn(self, *, is_away: bool) -> channel.Learn:
        ahead_ms = self._now_ms() - round(self._clock.boot() * 1000)
        return channel.Learn(known=self._file.known, ahead_ms=ahead_ms, is_away=is_away)

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(files.read_bounded(self._path, limit=_MAX), type=_File)
        except FileNotFoundError:
            return _File()
        except (OSError, errors.AgentinaError, msgspec.MsgspecError) as error:
            _log.error(
                "%s cannot be read; what ended tasks used today is asked of nobody again: %s", self._path, error,
                extra={"action": "budget-record-damaged"},
            )  # fmt: skip
            return _File()

    async def _write(self, *, durable: bool) -> bool:
        """Write everything; whether it is on disk."""
        async with self._writing:
            content = msgspec.json.encode(self._file)
            try:
                await asyncio.to_thread(files.write_atomic, self._path, content, durable=durable)
            except errors.AgentinaError as error:
                _log.error(
                    "%s cannot be written: %s", self._path, error,
                    extra={"action": "budget-record-unwritable", "code": error.code},
                )  # fmt: skip
                return False
            return True
