"""What models were used for, as the gateways of hosts count it. Pure.

Amounts of money are whole nano-dollars, never fractions: one token of a cheap model costs 50 of them. A day is one of
UTC, written ``2026-11-21``; a call belongs to the day on which it was let through.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

#: Nano-dollars in a US dollar.
DOLLAR: Final = 1_000_000_000
#: Most rows of usage that one task has: a model and a day each. What is beyond goes into rows of :data:`OTHER`.
MAX_ROWS: Final = 64
#: Stands for the models that no row of their own was left for.
OTHER: Final = "(other)"

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62) - 1)]
Day = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class Amounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What calls of models used. No token is in two of the figures."""

    #: Calls that a provider answered, or may have billed.
    calls: Count = 0
    #: Of these, calls that broke off and are counted by an upper estimate.
    estimated: Count = 0
    #: Of these, calls of models without a price: their cost is unknown, not zero.
    unpriced: Count = 0
    #: Input that was neither read from the provider's cache nor written to it.
    input: Count = 0
    #: Input read from the cache.
    cached: Count = 0
    #: Input written to it, for minutes and for an hour.
    cache_write: Count = 0
    cache_write_1h: Count = 0
    output: Count = 0
    cost_nano: Count = 0
    #: Tools the models asked for.
    tool_calls: Count = 0

    @property
    def counted(self) -> int:
        """Tokens that count against a budget: all but those read from the cache."""
        return self.input + self.cache_write + self.cache_write_1h + self.output

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
    return dt.datetime.fromtimestamp(wall_ms / 1000, dt.UTC).date().isoformat()


def next_day_ms(wall_ms: int) -> int:
    """When the day of a moment ends."""
    day = 86_400_000
    return (wall_ms // day + 1) * day


def show_money(nano: int) -> str:
    """Nano-dollars for a person: ``$1.2345``; what is not nothing is never shown as nothing."""
    if 0 < nano < DOLLAR // 10_000:
        return "<$0.0001"
    return f"${nano / DOLLAR:,.4f}"
