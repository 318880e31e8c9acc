"""What a task may use of models, decided before each call. Pure.

A call is admitted only when the most it can cost still fits beside what was used and what other calls hold reserved;
so that no number of calls at once can overrun. Its reservation is settled by what it really used. Where its own maximum
of output does not fit, a smaller one is put into the request: without that the last part of every budget, as large as
one longest answer, could not be used. The one estimate is the size of the input, in tokens (:func:`estimate_input`).
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple, Protocol

import msgspec

from agentina.gateway import prices, usage
from agentina.protocol import jobs
from agentina.protocol.budgets import DOLLAR, Bounds, Units, bounds_of

#: Share of a limit from which a warning is given, as a fraction of ten.
_WARN_TENTHS: Final = 8
#: Output reserved for a call that names no maximum, of a model whose table names none.
DEFAULT_OUTPUT: Final = 32_000
#: The least output worth a call, in tokens; less than that left means used up.
LEAST_OUTPUT: Final = 256
#: Bytes of a request for one token, at least: tools and text in JSON have four and more, dense code about three.
_BYTES_PER_TOKEN: Final = 3


class Totals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was used."""

    used: usage.Usage = usage.Usage()
    cost_nano: int = 0
    tool_calls: int = 0
    #: Calls that were sent to a provider.
    calls: int = 0
    #: Of these, calls that broke off and were counted by an upper estimate.
    estimated: int = 0
    #: Of these, calls of models without a price: their cost is unknown, not zero.
    unpriced: int = 0

    @property
    def units(self) -> Units:
        """What they take from budgets."""
        return Units(tokens=self.used.counted, cost_nano=self.cost_nano, tool_calls=self.tool_calls)

    def plus(self, charge: Charge) -> Totals:
        """With one more call."""
        return Totals(
            used=self.used + charge.used,
            cost_nano=self.cost_nano + (charge.cost_nano or 0),
            tool_calls=self.tool_calls + charge.tool_calls,
            calls=self.calls + 1,
            estimated=self.estimated + charge.estimated,
            unpriced=self.unpriced + (charge.cost_nano is None),
        )


class Charge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one call used."""

    used: usage.Usage = usage.Usage()
    #: None: the model has no price.
    cost_nano: int | None = 0
    tool_calls: int = 0
    estimated: bool = False

    @property
    def units(self) -> Units:
        """What it takes from budgets."""
        return Units(tokens=self.used.counted, cost_nano=self.cost_nano or 0, tool_calls=self.tool_calls)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that asks to be let through."""

    #: Input at most, in tokens.
    input: int
    #: Output at most, as the request says it.
    output: int
    #: The least output it makes sense with.
    least: int = LEAST_OUTPUT
    price: prices.Price | None = None


class Kind(enum.Enum):
    """What a limit is of."""

    TOKENS = "tokens"
    COST = "cost"
    TOOL_CALLS = "tool calls"
    DURATION = "duration"


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """It may go; what it holds is reserved until :meth:`Ledger.settle`."""

    number: int
    reserved: Charge
    #: Output it may have at most; smaller than asked when the budget is nearly used up.
    output: int


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """It does not fit for now; ask again when a call has ended, or the control plane has said something new."""

    #: Who has what it waits for, for people.
    detail: str = "other calls hold what is left of it"
    #: When it has waited for long it is to be held on, rather than refused.
    parks: bool = False

    @property
    def reason(self) -> str:
        """One word for machines."""
        return "waiting"


class Exhausted(msgspec.Struct, frozen=True, kw_only=True):
    """It does not fit at all."""

    kind: Kind
    #: A sentence with the numbers.
    detail: str
    #: It is to be held until there is more, rather than refused.
    parks: bool = False

    @property
    def reason(self) -> str:
        """What is used up, in one word for machines."""
        return self.kind.value


class Unpriced(msgspec.Struct, frozen=True):
    """The budget is in money, and nobody knows what this model costs."""


Decision = Admitted | Wait | Exhausted | Unpriced
#: Limits by the names they have elsewhere.
_KINDS: Final = {"tokens": Kind.TOKENS, "cost_nano": Kind.COST, "tool_calls": Kind.TOOL_CALLS}


class Room(NamedTuple):
    """What a budget has for a call."""

    #: Most output; None: it sets no limit.
    most: int | None = None
    #: Why there is none.
    problem: Wait | Exhausted | None = None

    def and_also(self, other: Room) -> Room:
        """The room of both: the smaller, and of problems the one that waiting does not end."""
        problems = [one.problem for one in (self, other) if one.problem is not None]
        final = [problem for problem in problems if isinstance(problem, Exhausted)]
        limits = [one.most for one in (self, other) if one.most is not None]
        return Room(min(limits, default=None), next(iter(final + problems), None))


class Pot(msgspec.Struct, frozen=True, kw_only=True):
    """A budget as one call finds it."""

    #: Whose it is, for people; empty: the task's own.
    what: str = ""
    limit: Bounds = Bounds()
    used: Units = Units()
    #: What calls under way may use besides.
    held: Units = Units()
    parks: bool = False

    def room(self, call: Call) -> Room:
        """What room it has for a call."""
        room = {
            "tokens": self._room_tokens(call), "cost_nano": self._room_cost(call), "tool_calls": self._room_tools(),
        }  # fmt: skip
        least = least_output(call)
        short = [name for name, most in room.items() if most is not None and most < least]
        if not short:
            return Room(most=min((most for most in room.values() if most is not None), default=None))
        if self.held != Units():
            return Room(problem=Wait(parks=self.parks))
        needs = f", and this call may take {call.input + least}" if short[0] == "tokens" else ""
        return Room(problem=Exhausted(kind=_KINDS[short[0]], detail=self.sentence(short[0]) + needs, parks=self.parks))

    def near(self) -> list[tuple[Kind, str]]:
        """Limits that are four fifths used, each with a sentence."""
        return [
            (kind, self.sentence(name))
            for name, kind in _KINDS.items()
            if (limit := getattr(self.limit, name)) is not None
            and getattr(self.used, name) * 10 >= limit * _WARN_TENTHS
        ]

    def rest(self) -> Bounds:
        """What remains, with what calls under way may use taken off."""
        taken = self.used + self.held
        values = {name: getattr(self.limit, name) for name in _KINDS}
        return Bounds(
            **{name: None if limit is None else max(0, limit - getattr(taken, name)) for name, limit in values.items()}
        )

    def sentence(self, name: str) -> str:
        """How much of a limit is used."""
        used, limit = getattr(self.used, name), getattr(self.limit, name) or 0
        of = f" of {self.what}" if self.what else ""
        if name == "cost_nano":
            return f"{used / DOLLAR:.4f} of {limit / DOLLAR:.2f} US dollars{of} are used"
        return f"{used} of {limit} {_KINDS[name].value}{of} are used"

    def _room_tokens(self, call: Call) -> int | None:
        limit = self.limit.tokens
        return None if limit is None else limit - self.used.tokens - self.held.tokens - call.input

    def _room_cost(self, call: Call) -> int | None:
        if self.limit.cost_nano is None or call.price is None:
            return None
        rest = self.limit.cost_nano - self.used.cost_nano - self.held.cost_nano - call.price.most(call.input)
        if call.price.output_nano(call.input) == 0:
            return call.output if rest >= 0 else -1
        return rest // call.price.output_nano(call.input)

    def _room_tools(self) -> int | None:
        """No limit of output, or no room for any."""
        limit = self.limit.tool_calls
        full = limit is not None and self.used.tool_calls + self.held.tool_calls >= limit
        return -1 if full else None


class Purse(Protocol):
    """The budgets that tasks share (:mod:`agentina.gateway.days`)."""

    @property
    def needs_price(self) -> bool:
        """Whether one of them is in money."""

    def look(self, call: Call) -> Room:
        """What room they have for a call."""


class Ledger:
    """One task's account."""

    def __init__(
        self, limits: jobs.Budget, *, totals: Totals | None = None, first_number: int = 1, purse: Purse | None = None
    ) -> None:
        self.limits = limits
        self.totals = totals or Totals()
        self._purse = purse
        self._next = first_number
        self._held: dict[int, Charge] = {}
        self._warned: set[Kind] = set()

    @property
    def under_way(self) -> int:
        """Calls that hold a reservation."""
        return len(self._held)

    def ask(self, call: Call, *, seconds: float) -> Decision:
        """Decide on a call; ``seconds`` have passed since the task's start."""
        purse = self._purse
        in_money = self.limits.cost is not None or (purse is not None and purse.needs_price)
        if in_money and call.price is None:
            return Unpriced()
        if self.limits.duration is not None and seconds >= self.limits.duration:
            return Exhausted(
                kind=Kind.DURATION, detail=self._duration(seconds), parks=self.limits.on_exhausted == "park"
            )
        room = self._pot.room(call)
        if purse is not None:
            room = room.and_also(purse.look(call))
        if room.problem is not None:
            return room.problem
        return self._admit(call, call.output if room.most is None else min(call.output, room.most))

    def settle(self, number: int, charge: Charge) -> None:
        """Put what a call used in place of what it held."""
        del self._held[number]
        self.totals = self.totals.plus(charge)

    def release(self, number: int) -> None:
        """A call used nothing: the provider refused it, or was never reached."""
        del self._held[number]

    def held(self, number: int) -> Charge:
        """What a call under way holds."""
        return self._held[number]

    def new_warnings(self, seconds: float) -> list[str]:
        """Sentences for the limits that are four fifths used, each once."""
        near = self._pot.near()
        if self.limits.duration is not None and seconds * 10 >= self.limits.duration * _WARN_TENTHS:
            near.append((Kind.DURATION, self._duration(seconds)))
        found = [sentence for kind, sentence in near if kind not in self._warned]
        self._warned.update(kind for kind, _ in near)
        return found

    def raise_to(self, limits: jobs.Budget) -> None:
        """Put other limits in force; warnings are given again."""
        self.limits = limits
        self._warned.clear()

    def left(self, seconds: float) -> dict[str, float | None]:
        """What remains, with reservations taken off; None: no limit of that kind. Money in US dollars."""
        rest, duration = self._pot.rest(), self.limits.duration
        return {
            "tokens": rest.tokens,
            "cost": None if rest.cost_nano is None else rest.cost_nano / DOLLAR,
            "tool_calls": rest.tool_calls,
            "duration": None if duration is None else max(0.0, duration - seconds),
        }

    @property
    def _pot(self) -> Pot:
        held = Units()
        for charge in self._held.values():
            held += charge.units
        return Pot(
            limit=bounds_of(self.limits), used=self.totals.units, held=held, parks=self.limits.on_exhausted == "park"
        )

    def _admit(self, call: Call, output: int) -> Admitted:
        number, self._next = self._next, self._next + 1
        self._held[number] = reserved = reservation(call, output)
        return Admitted(number=number, reserved=reserved, output=output)

    def _duration(self, seconds: float) -> str:
        return f"{seconds:.0f} of {self.limits.duration or 0:.0f} seconds are over"


def reservation(call: Call, output: int) -> Charge:
    """The most that a call can use with so much output."""
    used = usage.Usage(input=call.input, output=output)
    cost = None if call.price is None else call.price.most(call.input) + output * call.price.output_nano(call.input)
    return Charge(used=used, cost_nano=cost, tool_calls=1, estimated=True)


def least_output(call: Call) -> int:
    """The least output with which a call makes sense."""
    return min(call.least, call.output)


def estimate_input(size: int) -> int:
    """Tokens that a request of ``size`` bytes has at most."""
    return size // _BYTES_PER_TOKEN + 1
