"""What a task may use of models, decided before each call. Pure.

A call is admitted only when the most it can cost still fits beside what was used and what other calls hold reserved;
so that no number of calls at once can overrun. Its reservation is settled by what it really used. Where its own maximum
of output does not fit, a smaller one is put into the request: without that the last part of every budget, as large as
one longest answer, could not be used. The one estimate is the size of the input, in tokens (:func:`estimate_input`).
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, Literal

import msgspec

from agentina.gateway import prices, usage

#: Share of a limit from which a warning is given, as a fraction of ten.
_WARN_TENTHS: Final = 8
#: Output reserved for a call that names no maximum, of a model whose table names none.
DEFAULT_OUTPUT: Final = 32_000
#: The least output worth a call, in tokens; less than that left means used up.
LEAST_OUTPUT: Final = 256
#: Bytes of a request for one token, at least: tools and text in JSON have four and more, dense code about three.
_BYTES_PER_TOKEN: Final = 3


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A task's budget. None: no limit of that kind."""

    #: Tokens, without those read from the provider's cache.
    tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    #: US dollars.
    cost: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    #: Tools the models may ask for.
    tool_calls: Annotated[int, msgspec.Meta(ge=0)] | None = None
    #: Seconds since the task's first start.
    duration: Annotated[float, msgspec.Meta(ge=0)] | None = None
    #: At the limit: ``stop`` refuses further calls, ``park`` holds a streamed call until the budget is raised.
    on_exhausted: Literal["stop", "park"] = "stop"

    @property
    def cost_nano(self) -> int | None:
        """The limit of money in nano-dollars."""
        return None if self.cost is None else round(self.cost * prices.DOLLAR)


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


class Wait(msgspec.Struct, frozen=True):
    """It does not fit beside the calls under way; ask again when one of them has ended."""


class Exhausted(msgspec.Struct, frozen=True, kw_only=True):
    """It does not fit at all."""

    kind: Kind
    #: A sentence with the numbers.
    detail: str


class Unpriced(msgspec.Struct, frozen=True):
    """The budget is in money, and nobody knows what this model costs."""


Decision = Admitted | Wait | Exhausted | Unpriced


class Ledger:
    """One task's account."""

    def __init__(self, limits: Limits, *, totals: Totals | None = None, first_number: int = 1) -> None:
        self.limits = limits
        self.totals = totals or Totals()
        self._next = first_number
        self._held: dict[int, Charge] = {}
        self._warned: set[Kind] = set()

    @property
    def under_way(self) -> int:
        """Calls that hold a reservation."""
        return len(self._held)

    def ask(self, call: Call, *, seconds: float) -> Decision:
        """Decide on a call; ``seconds`` have passed since the task's start."""
        if self.limits.cost is not None and call.price is None:
            return Unpriced()
        if self.limits.duration is not None and seconds >= self.limits.duration:
            return Exhausted(kind=Kind.DURATION, detail=self._sentence(Kind.DURATION, seconds))
        room = {
            Kind.TOKENS: self._room_tokens(call),
            Kind.COST: self._room_cost(call),
            Kind.TOOL_CALLS: self._room_tools(),
        }
        least = min(call.least, call.output)
        short = [kind for kind, most in room.items() if most is not None and most < least]
        if not short:
            return self._admit(call, min([call.output, *(most for most in room.values() if most is not None)]))
        if self._held:
            return Wait()
        kind = short[0]
        needs = f", and this call may take {call.input + least}" if kind is Kind.TOKENS else ""
        return Exhausted(kind=kind, detail=self._sentence(kind, seconds) + needs)

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
        found = []
        for kind, (used, limit) in self._shares(seconds).items():
            if limit is not None and kind not in self._warned and used * 10 >= limit * _WARN_TENTHS:
                self._warned.add(kind)
                found.append(self._sentence(kind, seconds))
        return found

    def raise_to(self, limits: Limits) -> None:
        """Put other limits in force; warnings are given again."""
        self.limits = limits
        self._warned.clear()

    def left(self, seconds: float) -> dict[str, float | None]:
        """What remains, with reservations taken off; None: no limit of that kind."""
        holds = self._reserved()
        taken = {Kind.TOKENS: holds.used.counted, Kind.COST: holds.cost_nano or 0, Kind.TOOL_CALLS: holds.tool_calls}
        found: dict[str, float | None] = {}
        for kind, (used, limit) in self._shares(seconds).items():
            rest = None if limit is None else max(0, limit - used - taken.get(kind, 0))
            name = kind.value.replace(" ", "_")
            found[name] = rest / prices.DOLLAR if kind is Kind.COST and rest is not None else rest
        return found

    def _admit(self, call: Call, output: int) -> Admitted:
        used = usage.Usage(input=call.input, output=output)
        cost = None if call.price is None else call.price.most(call.input) + output * call.price.output_nano
        number, self._next = self._next, self._next + 1
        self._held[number] = reserved = Charge(used=used, cost_nano=cost, tool_calls=1, estimated=True)
        return Admitted(number=number, reserved=reserved, output=output)

    def _reserved(self) -> Charge:
        held = self._held.values()
        return Charge(
            used=usage.Usage(input=sum(one.used.counted for one in held)),
            cost_nano=sum(one.cost_nano or 0 for one in held),
            tool_calls=sum(one.tool_calls for one in held),
        )

    def _room_tokens(self, call: Call) -> int | None:
        if self.limits.tokens is None:
            return None
        taken = self.totals.used.counted + self._reserved().used.counted
        return self.limits.tokens - taken - call.input

    def _room_cost(self, call: Call) -> int | None:
        limit = self.limits.cost_nano
        if limit is None or call.price is None:
            return None
        rest = limit - self.totals.cost_nano - (self._reserved().cost_nano or 0) - call.price.most(call.input)
        if call.price.output_nano == 0:
            return call.output if rest >= 0 else -1
        return rest // call.price.output_nano

    def _room_tools(self) -> int | None:
        """No limit of output, or no room for any."""
        limit = self.limits.tool_calls
        full = limit is not None and self.totals.tool_calls + self._reserved().tool_calls >= limit
        return -1 if full else None

    def _shares(self, seconds: float) -> dict[Kind, tuple[float, float | None]]:
        return {
            Kind.TOKENS: (self.totals.used.counted, self.limits.tokens),
            Kind.COST: (self.totals.cost_nano, self.limits.cost_nano),
            Kind.TOOL_CALLS: (self.totals.tool_calls, self.limits.tool_calls),
            Kind.DURATION: (seconds, self.limits.duration),
        }

    def _sentence(self, kind: Kind, seconds: float) -> str:
        used, limit = self._shares(seconds)[kind]
        if kind is Kind.COST:
            return f"{used / prices.DOLLAR:.4f} of {(limit or 0) / prices.DOLLAR:.2f} US dollars are used"
        if kind is Kind.DURATION:
            return f"{used:.0f} of {limit or 0:.0f} seconds are over"
        return f"{used:.0f} of {limit or 0:.0f} {kind.value} are used"


def estimate_input(size: int) -> int:
    """Tokens that a request of ``size`` bytes has at most."""
    return size // _BYTES_PER_TOKEN + 1
