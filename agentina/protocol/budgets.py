"""What models were used for, as the gateways of hosts count it, and what they may be used for. Pure.

Amounts of money are whole nano-dollars, never fractions: one token of a cheap model costs 50 of them. A day is one of
UTC, written ``2026-11-21``; a call belongs to the day on which it was let through.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from agentina.protocol import jobs

#: Nano-dollars in a US dollar.
DOLLAR: Final = 1_000_000_000
#: The most that a budget can have of anything.
MOST: Final = 1 << 50
#: Most rows of usage that one task has: a model and a day each. What is beyond goes into rows of :data:`OTHER`.
MAX_ROWS: Final = 64
#: Stands for the models that no row of their own was left for.
OTHER: Final = "(other)"

_DAY_MS: Final = 86_400_000
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62) - 1)]
Day = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class Tokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of one call or of many; no token is in two of the figures."""

    #: Input that was neither read from the provider's cache nor written to it.
    input: Count = 0
    #: Input read from the cache.
    cached: Count = 0
    #: Input written to it, for minutes and for an hour.
    cache_write: Count = 0
    cache_write_1h: Count = 0
    output: Count = 0

    @property
    def counted(self) -> int:
        """Tokens that count against a budget: all but those read from the cache."""
        return self.input + self.cache_write + self.cache_write_1h + self.output


class Amounts(Tokens, frozen=True, kw_only=True, omit_defaults=True):
    """What calls of models used."""

    #: Calls that a provider answered, or may have billed.
    calls: Count = 0
    #: Of these, calls that broke off and are counted by an upper estimate.
    estimated: Count = 0
    #: Of these, calls of models without a price: their cost is unknown, not zero.
    unpriced: Count = 0
    cost_nano: Count = 0
    #: Tools the models asked for.
    tool_calls: Count = 0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.counted + self.cached


class ModelUsage(Amounts, frozen=True, kw_only=True, omit_defaults=True):
    """What one task used of one model on one day, from its start: a total, so that repeating it changes nothing."""

    model: Annotated[str, msgspec.Meta(max_length=256)]
    day: Day


#: The figures that are added up.
FIGURES: Final = Amounts.__struct_fields__


def add(rows: Iterable[Amounts]) -> Amounts:
    """All of them together."""
    sums = dict.fromkeys(FIGURES, 0)
    for row in rows:
        for name in FIGURES:
            sums[name] += getattr(row, name)
    return Amounts(**sums)


def day_of(wall_ms: float) -> str:
    """The day of a moment, in milliseconds since the Unix epoch."""
    return _day(int(wall_ms // _DAY_MS))


@functools.lru_cache(maxsize=8)
def _day(number: int) -> str:
    """The day so many days after the Unix epoch; every call of a model asks for today's several times."""
    return (dt.date(1970, 1, 1) + dt.timedelta(days=number)).isoformat()


def next_day_ms(wall_ms: int) -> int:
    """When the day of a moment ends."""
    return (wall_ms // _DAY_MS + 1) * _DAY_MS


def show_money(nano: int) -> str:
    """Nano-dollars for a person: ``$1.2345``; what is not nothing is never shown as nothing."""
    if 0 < nano < DOLLAR // 10_000:
        return "<$0.0001"
    return f"${nano / DOLLAR:,.4f}"


# --- budgets of agents and organizations, for each day ---------------------------------------------------------------
# docs/explanation/budgets.md has the rules: an organization's budget is divided into shares, one a host, and no host
# uses more than its share; so all of them together never use more than the budget, whoever is away.


class Units(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Amounts of what budgets limit."""

    #: Tokens, without those read from the provider's cache.
    tokens: Count = 0
    cost_nano: Count = 0
    tool_calls: Count = 0

    def __add__(self, other: Units) -> Units:
        return Units(
            tokens=self.tokens + other.tokens,
            cost_nano=self.cost_nano + other.cost_nano,
            tool_calls=self.tool_calls + other.tool_calls,
        )

    def __sub__(self, other: Units) -> Units:
        return Units(
            tokens=self.tokens - other.tokens,
            cost_nano=self.cost_nano - other.cost_nano,
            tool_calls=self.tool_calls - other.tool_calls,
        )


#: What budgets limit.
KINDS: Final = Units.__struct_fields__


class Bounds(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Limits. None: none of that kind."""

    tokens: Count | None = None
    cost_nano: Count | None = None
    tool_calls: Count | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is limited."""
        return all(getattr(self, kind) is None for kind in KINDS)


def bounds_of(limits: jobs.Budget) -> Bounds:
    """The limits of amounts in a task's budget, money in nano-dollars."""
    cost = None if limits.cost is None else round(limits.cost * DOLLAR)
    return Bounds(tokens=limits.tokens, cost_nano=cost, tool_calls=limits.tool_calls)


OnExhausted = Literal["stop", "park"]


class Share(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host's part of its organization's budget of a day."""

    #: The whole budget.
    limit: Bounds = Bounds()
    #: What this host may have used at the end of the day, from its beginning.
    cap: Bounds = Bounds()
    #: What nobody has used yet, as far as the control plane knows: more than this can never be had.
    left: Bounds = Bounds()
    #: What a host may keep beyond its need; what is more it gives back.
    cushion: Units = Units()
    #: At the limit: ``stop`` refuses further calls, ``park`` holds a streamed call until there is more.
    on_exhausted: OnExhausted = "stop"


class Whole(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The budget of one agent for a day: no other host uses it."""

    limit: Bounds = Bounds()
    #: What of the limit is for this day only.
    extra: Units = Units()
    on_exhausted: OnExhausted = "stop"

    @property
    def of_other_days(self) -> Bounds:
        """Its limits on a day that nobody has added anything to."""
        limits = {kind: getattr(self.limit, kind) for kind in KINDS}
        return Bounds(
            **{kind: None if limit is None else limit - getattr(self.extra, kind) for kind, limit in limits.items()}
        )


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``POST /v1/agent/budgets``: what a host used, what it gives back, what it wants."""

    session: int
    #: Rising within a session: one that arrives after a later one changes nothing.
    number: Count
    day: Day
    #: The host's word: it uses no more than this until it hears an answer. None: it has no share.
    promise: Units | None = None
    #: Used by calls that ended on that day, and what calls under way may use besides.
    spent: Units = Units()
    held: Units = Units()
    #: What it wants to be allowed to use, from the day's beginning; and less than what is of no use to it.
    want: Units = Units()
    least: Units = Units()


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to :class:`Ask`: levels, not changes. None: there is no such budget."""

    number: Count = 0
    #: The control plane's day; for another one nothing is shared out, because a clock is wrong.
    day: Day
    organization: Share | None = None
    agent: Whole | None = None
    #: Budgets of held tasks that an operator changed, by task.
    tasks: dict[str, jobs.Budget] = {}


# --- for operators ---------------------------------------------------------------------------------------------------


class UsageRow(Amounts, frozen=True, kw_only=True):
    """What calls of models used together."""

    #: Id of a job or agent, name of an organization or model, or a day.
    key: str
    #: What people call it, where that is something else.
    name: str = ""


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/usage``: the days are of UTC, both included. What runs is as of half a minute ago."""

    by: str
    since: str
    until: str
    rows: list[UsageRow]
    #: All of it together, also what is in no row because there are more than was asked for.
    total: Amounts
    is_cut: bool = False


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """A budget, and what is used of it. Money is in nano-dollars."""

    scope: Literal["organization", "agent", "job"]
    #: Of an organization its name, else the id.
    name: str
    #: What people call it, where that is something else.
    label: str = ""
    limit: Bounds
    used: Units
    left: Bounds
    on_exhausted: OnExhausted
    #: Of those that hold for each day: the day (UTC) this is about. Those of a job hold for each of its tasks.
    day: str = ""
    #: What was added to the limit for this day only; ``limit`` has it in.
    extra: Units = Units()
    #: Of an organization: what hosts may use together before they have to ask again.
    shared: Units = Units()
    #: Of a job: seconds since a task's start after which no call is let through.
    duration: float | None = None
    #: Tasks that are held for a budget, and why.
    parked: list[str] = []
    #: How new ``used`` is: when the host that holds tasks of it and has been silent for longest was heard of; None: no
    #: host holds any.
    as_of_ms: int | None = None


class BudgetList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/budgets``."""

    budgets: list[BudgetView]


_Limit = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]


class BudgetSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PUT /v1/budgets/{scope}/{name}``: the limits there are from now on; None: none of that kind."""

    tokens: _Limit | None = None
    cost_nano: _Limit | None = None
    tool_calls: _Limit | None = None
    #: Seconds; of a job only.
    duration: _Seconds | None = None
    #: None: as it was; at first ``stop``.
    on_exhausted: OnExhausted | None = None


class BudgetRaise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/budgets/{scope}/{name}/raise``: what to add; to a job's for good, to a daily one today."""

    tokens: _Limit = 0
    cost_nano: _Limit = 0
    tool_calls: _Limit = 0
    duration: _Seconds = 0.0
