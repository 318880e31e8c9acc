"""Opens the host's gateway for the tasks whose job asks for it, and closes it when they have ended.

A job asks by a budget or by hosts in its scope. What was opened is written beside the task without its token, so that
the next daemon opens it again for a task that goes on: ``gateway.json``.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.instance import policy
from agentina.host.work import entries, state
from agentina.protocol import budgets, jobs, units, verbs
from agentina.system import files, tasks

if TYPE_CHECKING:
    from agentina.gateway import channel, keeper
    from agentina.host.work import anomalies, shares

_NAME: Final = "gateway.json"
_MAX: Final = 4 << 20
#: Why a host whose configuration names no settings for one holds no budgets.
NO_GATEWAY: Final = "it has none (`gateway` in its configuration)"
#: One process more than the task's own: what passes bytes between its tools and the gateway.
_FORWARDER: Final = 1
#: Notes of warnings in one task's timeline; further ones are in the log and the record only.
_MAX_NOTES: Final = 30

#: Kinds of anomalies by the code of what the gateway refused; others are about ways out.
_KINDS: Final = {
    errors.BUDGET_EXHAUSTED.code: "budget",
    errors.MODEL_REFUSED.code: "provider",
    errors.PROVIDER_FAILED.code: "provider",
    errors.DISK_FULL.code: "host",
    errors.STATE_UNWRITABLE.code: "host",
}

_log = logging.getLogger(__name__)


def asks(job: jobs.JobSpec) -> bool:
    """Whether a job needs the gateway. Pure."""
    return bool(job.gateway)


class Gates:
    """The gateway, as tasks need it. Nothing of it is loaded before one does."""

    def __init__(
        self,
        settings: str,
        *,
        executor: contract.Executor,
        rules: Callable[[], policy.Policy | None],
        note: Callable[[str, str], None],
        make_shares: Callable[[], shares.Shares],
    ) -> None:
        """Take collaborators.

        Args:
            settings: Path of gateway.yaml; empty: this host has no gateway.
            executor: The one tasks are started with.
            rules: Gives the owner's rules; None: they cannot be understood.
            note: Puts a sentence into the timeline of a task, by its id.
            make_shares: Makes the keeping of the budgets of the day.

        """
        self._settings = settings
        self._note = note
        #: Where anomalies are raised.
        self.findings: anomalies.Anomalies | None = None
        #: Notes of each task that is open.
        self._notes: collections.Counter[str] = collections.Counter()
        self._executor = executor
        self._rules = rules
        self._make_shares = make_shares
        self._keeper: keeper.Keeper | None = None
        self._kept: shares.Shares | None = None
        #: The question to the control plane about budgets that is under way.
        self._asking: asyncio.Task[None] | None = None
        #: What the gateway wanted last.
        self._wanted: channel.Wanted | None = None
        self._open: dict[str, entries.Entry] = {}
        #: Called when the gateway did not serve a task.
        self.on_unusable: Callable[[], None] = lambda: None

    def dress(self, entry: entries.Entry) -> jobs.JobSpec:
        """The task's job, with the variables that tell its tools of the way out, unless it has them itself.

        Raises:
            AgentinaError: ``GATEWAY_UNUSABLE``: the job has a budget, and this host has no gateway to hold it.

        """
        job = entry.job
        assert job is not None
        if not asks(job):
            return job
        if not self._settings:
            if job.budget is None:
                return job  # scopes were never more than what the executor can hold
            raise errors.GATEWAY_UNUSABLE(problem=NO_GATEWAY)
        from agentina.gateway import tokens, variables  # noqa: PLC0415 - see the class

        entry.token = entry.token or tokens.make()
        told = variables.tell(entry.task_id, entry.token)
        return msgspec.structs.replace(job, environment={**told, **job.environment})

    async def admit(self, entry: entries.Entry, launch: contract.Launch) -> contract.Launch:
        """The launch as it is to be started: with the way out that :meth:`dress` told of, if it did.

        Raises:
            AgentinaError: ``GATEWAY_UNUSABLE``: the gateway does not serve it.

        """
        job = entry.job
        if job is None or not entry.token:
            return launch
        from agentina.gateway import channel, forwarder, tokens, variables  # noqa: PLC0415 - see the class

        rules = self._rules()
        door = self._executor.door(entry.directory.path)
        order = channel.Open(
            task_id=entry.task_id,
            directory=str(entry.directory.path),
            door=_door(door),
            digest=tokens.digest(entry.token),
            scope=job.scope.hosts,
            policy=[] if rules is None else rules.hosts,
            limits=jobs.Budget() if job.budget is None else job.budget,
        )
        files.write_atomic(entry.directory.path / _NAME, msgspec.json.encode(order), durable=False)
        try:
            await self._serve(entry, order)
        except errors.AgentinaError:
            self.on_unusable()
            raise
        place = [str(door.inside / variables.socket_name(entry.task_id)), variables.address(entry.task_id)]
        command = [sys.executable, "-I", "-S", forwarder.__file__, *place, "--"]
        return msgspec.structs.replace(
            launch,
            argv=[*command, *launch.argv],
            verify=None if launch.verify is None else [*command, *launch.verify],
            pids=launch.pids + _FORWARDER,
        )

    async def before(self, entry: entries.Entry, operation: state.Do) -> None:
        """Keep step with a task: open again for one that was found running, close for one that has ended."""
        if entry.job is None or not asks(entry.job):
            return
        if operation is state.Do.WATCH and entry.task_id not in self._open:
            await self._reopen(entry)
        elif operation is state.Do.WATCH:
            self._listen(entry)
        elif operation is state.Do.COLLECT:
            self.close(entry)
            if self._keeper is not None:
                await self._keeper.closed(entry.task_id)
            await self._conclude(entry)
            self._tell_usage(entry)
        elif operation is state.Do.UPLOAD and not entry.models:
            await self._conclude(entry)  # one whose end the daemon found out from what is on disk

    async def budget_left(self, entry: entries.Entry) -> verbs.Budget | None:
        """What the task may use and has used, and what is left of the budgets it shares; None: there are no limits.

        Its own is as its record at the gateway has it, those of the day as far as the control plane has told.
        """
        from agentina.gateway import record  # noqa: PLC0415 - only tasks that ask pay for it

        # A task of many calls has a long one.
        story = await asyncio.to_thread(record.read, entry.directory.path)
        limits = None if entry.job is None else entry.job.budget
        of_day = {} if self._kept is None else self._kept.left()
        if story is None and limits is None and not of_day:
            return None
        held = limits if story is None or story.limits is None else story.limits
        used = None if story is None else story.totals
        return verbs.Budget(
            tokens=None if held is None else held.tokens,
            tokens_used=0 if used is None else used.used.counted,
            cost_usd=None if held is None else held.cost,
            cost_usd_used=0.0 if used is None else used.cost_nano / budgets.DOLLAR,
            tool_calls=None if held is None else held.tool_calls,
            tool_calls_used=0 if used is None else used.tool_calls,
            duration_seconds=None if held is None else held.duration,
            calls=0 if used is None else used.calls,
            agent_today=_left_today(of_day.get("agent")),
            organization_today=_left_today(of_day.get("organization")),
        )

    async def stop(self) -> None:
        """Let the gateway end; tasks go on, and the next daemon opens it again."""
        await tasks.cancel(self._asking)
        if self._keeper is not None:
            await self._keeper.stop()

    def reload(self) -> None:
        """Have the gateway read its settings and keys again."""
        if self._keeper is not None:
            self._keeper.reload()

    async def _serve(self, entry: entries.Entry, order: channel.Open) -> None:
        if self._keeper is None:
            from agentina.gateway import keeper as made  # noqa: PLC0415 - see the class

            self._keeper = made.Keeper(Path(self._settings), hear=self._hear, prologue=self.shares.prologue)
        await self._keeper.open(order)
        self._open[entry.task_id] = entry

    def _listen(self, entry: entries.Entry) -> None:
        """Let a task in that has a place for its socket only since it has started."""
        door = _door(self._executor.door(entry.directory.path))
        if self._keeper is not None and door is not None:
            self._keeper.listen(entry.task_id, door)

    async def _reopen(self, entry: entries.Entry) -> None:
        from agentina.gateway import channel  # noqa: PLC0415 - see the class

        try:
            content = files.read_bounded(entry.directory.path / _NAME, limit=_MAX)
            order = msgspec.json.decode(content, type=channel.Open)
            door = self._executor.door(entry.directory.path)
            await self._serve(entry, msgspec.structs.replace(order, door=_door(door)))
        except FileNotFoundError:
            return  # it runs without: the host has no gateway
        except (OSError, msgspec.MsgspecError, errors.AgentinaError) as error:
            _log.error(
                "task %s has lost its way out: %s", entry.task_id, error,
                extra={"action": "gateway-lost", "task": entry.task_id},
            )  # fmt: skip

    @property
    def shares(self) -> shares.Shares:
        """The budgets of the day, read from disk with the first task that needs them."""
        if self._kept is None:
            self._kept = self._make_shares()
            self._kept.on_changed = self._raise
        return self._kept

    def _raise(self, task_id: str, budget: jobs.Budget) -> None:
        """Put the budget in force that an operator gave a task."""
        entry = self._open.get(task_id)
        if self._keeper is None or entry is None or entry.budget == budget:
            return
        from agentina.gateway import channel  # noqa: PLC0415 - loaded already: the gateway runs

        entry.budget = budget
        self._keeper.tell(channel.Raise(task_id=task_id, limits=budget))

    def nudge(self, task_id: str, text: str) -> bool:
        """Have a task's model told something with its next call; False: its calls do not pass here."""
        if self._keeper is None or task_id not in self._open:
            return False
        from agentina.gateway import channel  # noqa: PLC0415 - loaded already: the gateway runs

        self._keeper.tell(channel.Nudge(task_id=task_id, text=text))
        return True

    def close(self, entry: entries.Entry) -> None:
        """Let go of a task that has ended, or was never started."""
        if entry.job is None or not asks(entry.job):
            return
        if self._keeper is not None and self._open.pop(entry.task_id, None) is not None:
            del self._notes[entry.task_id]
            self._keeper.close(entry.task_id)
        entry.parked = ""

    def _tell_usage(self, entry: entries.Entry) -> None:
        used = budgets.add(entry.models)
        if used.calls:
            unknown = f", not counting {used.unpriced} calls without a price" if used.unpriced else ""
            text = (
                f"used {units.show_count(used.calls, 'call')} of models: {used.tokens} tokens, "
                f"{used.cached} of them cached, {budgets.show_money(used.cost_nano)}{unknown}"
            )
            _log.info("task %s %s", entry.task_id, text, extra={"action": "task-usage", "task": entry.task_id})
            self._note(entry.task_id, text)

    async def _conclude(self, entry: entries.Entry) -> None:
        """Find out what a task that has ended used: its record tells, whoever was killed meanwhile."""
        from agentina.gateway import record  # noqa: PLC0415 - see the class

        # A task of many calls has a long one.
        story = await asyncio.to_thread(record.read, entry.directory.path)
        if story is not None:
            story.conclude()
            entry.models, entry.hosts, entry.carried = story.usage(), story.reached, story.carried
            entry.context = story.context
            if entry.models:
                await self.shares.end(entry.task_id, entry.models)

    def _hear(self, word: channel.Word) -> None:
        """Put what the gateway says of a task into its timeline, and into the log; its record has it as well."""
        from agentina.gateway import channel as said  # noqa: PLC0415 - loaded already: the gateway runs

        if isinstance(word, said.Refused):
            fields = {"action": "gateway-refused", "task": word.task_id, "code": word.code}
            _log.warning("task %s was refused by the gateway: %s", word.task_id, word.message, extra=fields)
            # The control plane puts it into the timeline of the job as well.
            if self.findings is not None and word.task_id in self._open:
                about = {"host or model": word.host, "refused by": word.reason}
                evidence = {name: text for name, text in about.items() if text}
                kind = _KINDS.get(word.code, "egress")
                self.findings.report(kind, word.code, word.message, task_id=word.task_id, evidence=evidence)
        elif isinstance(word, said.Warned):
            fields = {"action": "budget-near", "task": word.task_id}
            _log.warning("the budget of task %s is nearly used up: %s", word.task_id, word.text, extra=fields)
            self._tell(word.task_id, f"the budget is nearly used up: {word.text}")
        elif isinstance(word, said.Used) and word.task_id in self._open:
            entry = self._open[word.task_id]
            entry.models, entry.context = word.usage, word.context
        elif isinstance(word, said.Nudged):
            self._tell(word.task_id, f"its model was told: {word.text}")
        elif isinstance(word, said.Carried) and word.task_id in self._open:
            self._open[word.task_id].passed = word.total
        elif isinstance(word, said.Parked) and word.task_id in self._open:
            self._open[word.task_id].parked = word.reason
            self._tell(
                word.task_id,
                f"held at a call: {word.reason}" if word.reason else "goes on: the call is not held any more",
            )
        elif isinstance(word, said.Wanted):
            self._asking = tasks.start(self._exchange(word), name="budgets", on_failure=lambda _: None)

    async def _exchange(self, word: channel.Wanted) -> None:
        """Pass the gateway's wish for a share of budgets on, and the answer back."""
        self._wanted = word
        learned = await self.shares.exchange(word.want)
        # A newer process of the gateway has promised less since: an answer to the old one may say more.
        if self._keeper is not None and self._wanted is word:
            self._keeper.tell(learned)

    def _tell(self, task_id: str, text: str) -> None:
        if task_id in self._open and self._notes[task_id] < _MAX_NOTES:
            self._notes[task_id] += 1
            self._note(task_id, text)


def _door(door: contract.Door) -> channel.Door | None:
    """A task's door in the gateway's words; None: it has none now."""
    from agentina.gateway import channel as said  # noqa: PLC0415 - see Gates

    return None if door.outside is None else said.Door(directory=str(door.outside), is_shared=door.is_shared)


def _left_today(rest: budgets.Bounds | None) -> verbs.LeftToday | None:
    if rest is None:
        return None
    cost = None if rest.cost_nano is None else rest.cost_nano / budgets.DOLLAR
    return verbs.LeftToday(tokens=rest.tokens, cost_usd=cost, tool_calls=rest.tool_calls)
