"""The budgets of the agent and of its organization for a day, as this host's gateway holds them. Pure.

docs/explanation/budgets.md has the rules. The gateway remembers nothing but what is on disk: its daemon tells it what
was used before (:meth:`Days.begin`), each task's record tells what that task used (:meth:`Days.join`), and the share of
the organization's budget comes from the control plane by way of the daemon (:meth:`Days.learn`). A call that does not
fit into the share waits while more of it may be had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from agentina.gateway import budgets
from agentina.protocol import budgets as protocol_budgets

#: The agent's and the organization's, for people.
_AGENT: Final = "the agent's budget of the day"
_ORGANIZATION: Final = "the organization's budget of the day"
#: Why a call waits for more of the latter.
_SHARED: Final = f"other hosts hold what is left of {_ORGANIZATION}"
_UNKNOWN: Final = "the control plane has not said yet what this host may use of the budgets of the day"
_AWAY: Final = f"this host's share of {_ORGANIZATION} is used, and the control plane does not answer"
_NOTHING: Final = protocol_budgets.Units()
_NO_BOUNDS: Final = protocol_budgets.Bounds()

Units = protocol_budgets.Units


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What this host knows of the budgets of a day; the daemon keeps it over restarts."""

    #: Empty: the control plane was never heard.
    day: str = ""
    organization: protocol_budgets.Share | None = None
    agent: protocol_budgets.Whole | None = None


class Want(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be asked of the control plane. From here on the gateway keeps to ``promise``."""

    day: str
    promise: Units | None = None
    spent: Units = _NOTHING
    held: Units = _NOTHING
    want: Units = _NOTHING
    #: Less than this would be of no use to any call that waits.
    least: Units = _NOTHING


def by_day(usage: list[protocol_budgets.ModelUsage]) -> dict[str, Units]:
    """What a task took from budgets on each day."""
    found: dict[str, Units] = {}
    for row in usage:
        units = Units(tokens=row.counted, cost_nano=row.cost_nano, tool_calls=row.tool_calls)
        found[row.day] = found.get(row.day, _NOTHING) + units
    return found


class Days:
    """The budgets all tasks of this host share."""

    def __init__(self, *, now_ms: Callable[[], float]) -> None:
        """``now_ms`` is a clock that nobody sets: a day must not begin because somebody does."""
        self._now_ms = now_ms
        #: Milliseconds that the control plane's clock is ahead of it.
        self._ahead_ms = 0
        self._known = Known()
        #: Used on a day, and of that by tasks of which more may come.
        self._spent: dict[str, Units] = {}
        self._of_task: dict[str, dict[str, Units]] = {}
        #: What calls under way hold: task and number, to day and amounts.
        self._held: dict[tuple[str, int], tuple[str, Units]] = {}
        #: What calls wanted that found no room in the share, since it was asked for last.
        self._unmet = _NOTHING
        #: The least of that which would be of use; None: no call waits.
        self._least: Units | None = None
        #: What the last answer was about of that: less than this is all there is for now.
        self._answered = _NOTHING
        self._asked_unmet = _NOTHING
        #: The control plane did not answer last: what there is has to do.
        self._is_away = False
        #: What was used when the control plane was asked last.
        self._asked_spent = _NOTHING
        #: Called when a call finds no room, in the share or in its task's budget: somebody may have raised it.
        self.on_unmet: Callable[[], None] = lambda: None
        self._warned: set[tuple[str, str, budgets.Kind]] = set()

    # --- what is known -----------------------------------------------------------------------------------------------

    @property
    def today(self) -> str:
        """The day of a call let through now: one of UTC, by the control plane's clock."""
        return protocol_budgets.day_of(self._now_ms() + self._ahead_ms)

    @property
    def is_known(self) -> bool:
        """Whether the control plane was heard about today."""
        return self._known.day == self.today

    @property
    def is_starved(self) -> bool:
        """Whether a call found no room in the share since it was asked for last, or the day's is not known."""
        return self._unmet != _NOTHING or not self.is_known

    def begin(self, spent: Mapping[str, Units], of_tasks: Mapping[str, Mapping[str, Units]]) -> None:
        """Take over what ended tasks used, by day, and what those that may go on had used, by task and day."""
        self._spent = dict(spent)
        for task_id, days in of_tasks.items():
            self.join(task_id, days)

    def join(self, task_id: str, spent: Mapping[str, Units]) -> None:
        """Take a task's own record for what it used so far."""
        for day, units in self._of_task.get(task_id, {}).items():
            self._spent[day] -= units
        self._of_task[task_id] = dict(spent)
        for day, units in spent.items():
            self._spent[day] = self._spent.get(day, _NOTHING) + units

    def learn(self, known: Known, *, ahead_ms: int, is_away: bool) -> None:
        """Hear of the control plane's budgets, or that it does not answer."""
        self.was_given = (_cap(known), known.day) != (_cap(self._known), self._known.day)
        self._known, self._ahead_ms, self._is_away = known, ahead_ms, is_away
        self._answered, self._unmet, self._least = self._asked_unmet, _NOTHING, None

    def want(self) -> Want:
        """What to ask the control plane for; what this host holds beyond its need it gives back with that.

        What is too little for the calls that wait is given back too: held by every host, remains would help nobody.
        While the control plane is away nothing is given that may be of use here.
        """
        day = self.today
        spent, held = self._spent.get(day, _NOTHING), self._holds(day)
        share = self._share()
        cushion = _NOTHING if share is None or not self._of_task else share.cushion
        want = spent + held + self._unmet + cushion
        promise = None
        if share is not None and self._known.day == day:
            cap = share.cap
            kept = spent + held if self._least is not None and not self._is_away else want
            lowered = {
                kind: None if getattr(cap, kind) is None else min(getattr(cap, kind), getattr(kept, kind))
                for kind in protocol_budgets.KINDS
            }
            share = msgspec.structs.replace(share, cap=protocol_budgets.Bounds(**lowered))
            self._known = msgspec.structs.replace(self._known, organization=share)
            promise = Units(**{kind: value or 0 for kind, value in lowered.items()})
        self._asked_spent, self._asked_unmet = spent, self._unmet
        least = spent + held + (self._least or _NOTHING)
        return Want(day=day, promise=promise, spent=spent, held=held, want=want, least=least)

    # --- calls -------------------------------------------------------------------------------------------------------

    @property
    def needs_price(self) -> bool:
        """Whether a limit is in money, so that a model without a price must not be called."""
        limits = [one.limit for one in (self._known.organization, self._known.agent) if one is not None]
        return any(limit.cost_nano is not None for limit in limits)

    def look(self, call: budgets.Call) -> budgets.Room:
        """What room these budgets have for a call."""
        room = self._agent_pot().room(call)
        share = self._share()
        if share is not None:
            return room.and_also(self._look_share(share, call))
        if not self._known.day:
            # Whether there are budgets is not known yet: the daemon is asking.
            return room.and_also(budgets.Room(problem=budgets.Wait(detail=_UNKNOWN)))
        return room

    def hold(self, task_id: str, number: int, reserved: budgets.Charge, *, day: str) -> None:
        """A call was let through on a day."""
        self._held[task_id, number] = (day, reserved.units)
        self._answered = _NOTHING

    def settle(self, task_id: str, number: int, charge: budgets.Charge | None) -> None:
        """It ended; None: it used nothing."""
        day, _ = self._held.pop((task_id, number))
        if charge is not None:
            units = charge.units
            of_task = self._of_task.setdefault(task_id, {})
            of_task[day] = of_task.get(day, _NOTHING) + units
            self._spent[day] = self._spent.get(day, _NOTHING) + units

    def new_warnings(self) -> list[str]:
        """Sentences for limits that are four fifths used, each once a day."""
        day = self.today
        share = self._share()
        pots = [self._agent_pot(), *([] if share is None else [self._whole_pot(share)])]
        found = []
        for pot in pots:
            for kind, sentence in pot.near():
                if (day, pot.what, kind) not in self._warned:
                    self._warned.add((day, pot.what, kind))
                    found.append(sentence)
        return found

    def left(self) -> dict[str, protocol_budgets.Bounds]:
        """What remains of each budget, with what calls under way may use taken off."""
        share = self._share()
        found = {}
        if self._known.agent is not None:
            found["agent"] = self._agent_pot().rest()
        if share is not None:
            found["organization"] = self._whole_pot(share).rest()
        return found

    def _agent_pot(self) -> budgets.Pot:
        agent, day = self._known.agent, self.today
        if agent is None:
            return budgets.Pot(what=_AGENT)
        limit = agent.limit if self._known.day == day else agent.of_other_days
        return budgets.Pot(
            what=_AGENT, limit=limit, used=self._spent.get(day, _NOTHING), held=self._holds(day),
            parks=agent.on_exhausted == "park",
        )  # fmt: skip

    def _whole_pot(self, share: protocol_budgets.Share) -> budgets.Pot:
        """The organization's whole budget: what others used is as of the last answer, what this host used as of now."""
        spent = self._spent.get(self.today, _NOTHING)
        since = spent - self._asked_spent if self._known.day == self.today else spent
        used = {}
        for kind in protocol_budgets.KINDS:
            limit, left = getattr(share.limit, kind), getattr(share.left, kind)
            known = 0 if limit is None or left is None else limit - left
            used[kind] = max(0, known + getattr(since, kind))
        return budgets.Pot(
            what=_ORGANIZATION, limit=share.limit, used=Units(**used), held=self._holds(self.today),
            parks=share.on_exhausted == "park",
        )  # fmt: skip

    def _share(self) -> protocol_budgets.Share | None:
        """The organization's budget; of a day that was not heard of yet nothing of it is ours."""
        share = self._known.organization
        if share is None or self._known.day == self.today:
            return share
        nothing = {
            kind: None if getattr(share.limit, kind) is None else 0 for kind in protocol_budgets.KINDS
        }  # fmt: skip
        return msgspec.structs.replace(
            share, cap=protocol_budgets.Bounds(**nothing), left=share.limit, cushion=_NOTHING
        )

    def _look_share(self, share: protocol_budgets.Share, call: budgets.Call) -> budgets.Room:
        day = self.today
        pot = budgets.Pot(
            what=_ORGANIZATION, limit=share.cap, used=self._spent.get(day, _NOTHING), held=self._holds(day)
        )
        room, whole = pot.room(call), self._whole_pot(share).room(call)
        wanted = budgets.reservation(call, call.output).units
        if room.problem is None:
            if room.most is None or room.most >= min(call.output, call.output if whole.most is None else whole.most):
                return room
            # An answer cut short is better than none, but only when there is no more to be had.
            self._note_unmet(wanted)
            return room if self._is_away or self._was_answered(wanted) else self._wait(share)
        if whole.problem is not None and self._known.day == day:
            # It does not fit into what nobody has used: whoever gave back, it would not.
            return whole
        self._note_unmet(wanted)
        least = budgets.reservation(call, budgets.least_output(call)).units
        self._least = least if self._least is None else _each(min, self._least, least)
        return self._wait(share)

    def _wait(self, share: protocol_budgets.Share) -> budgets.Room:
        """A call has to wait for a larger share, or for one of the new day."""
        detail = _AWAY if self._is_away else _SHARED
        if not self.is_known:
            detail = _UNKNOWN
        return budgets.Room(problem=budgets.Wait(detail=detail, parks=share.on_exhausted == "park"))

    def _was_answered(self, wanted: Units) -> bool:
        return all(getattr(wanted, kind) <= getattr(self._answered, kind) for kind in protocol_budgets.KINDS)

    def _note_unmet(self, units: Units) -> None:
        self.on_unmet()
        self._unmet = _each(max, self._unmet, units)

    def _holds(self, day: str) -> Units:
        total = _NOTHING
        for held_day, units in self._held.values():
            if held_day == day:
                total += units
        return total


def _cap(known: Known) -> protocol_budgets.Bounds:
    return _NO_BOUNDS if known.organization is None else known.organization.cap


def _each(choose: Callable[[int, int], int], one: Units, other: Units) -> Units:
    return Units(**{kind: choose(getattr(one, kind), getattr(other, kind)) for kind in protocol_budgets.KINDS})
