"""What a call costs. The table is data (prices.json beside this); amounts are whole nano-dollars.

A model without a price is an error state, not free: where a budget has a limit in money its calls are refused, and
elsewhere they are counted as unpriced. The longest pattern wins.
"""

from __future__ import annotations

import fnmatch
import importlib.resources
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from agentina.gateway import usage

#: Nano-dollars that a price of one dollar per million tokens means for one token.
_PER_TOKEN: Final = 1000

Dollars = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Long(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a call costs whose input, cached or not, is larger than some size: all of it, not only what is above."""

    #: Tokens.
    above: Annotated[int, msgspec.Meta(ge=1)]
    input: Dollars
    output: Dollars
    cached: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's prices, in US dollars per million tokens."""

    input: Dollars
    output: Dollars
    #: Input read from the provider's cache; absent: as input.
    cached: Dollars | None = None
    #: Input written to it, for minutes and for an hour; absent: as input.
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None
    #: Most tokens of one answer, reserved when a call names no maximum itself.
    max_output: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    #: Other prices of calls with much input; absent: none.
    long: Long | None = None
    #: Where the price is from and when it was looked up there; for people.
    source: str = ""
    as_of: str = ""
    #: How sure one can be of it; for people.
    note: str = ""

    def cost(self, used: usage.Usage) -> int:
        """Nano-dollars of one call."""
        total = used.input + used.cached + used.cache_write + used.cache_write_1h
        if self.long is not None and total > self.long.above:
            return self._long.cost(used)
        return (
            used.input * _nano(self.input)
            + used.cached * _nano(self.input if self.cached is None else self.cached)
            + used.cache_write * self._write()
            + used.cache_write_1h * self._write_1h()
            + used.output * _nano(self.output)
        )

    def most(self, input_tokens: int) -> int:
        """The most nano-dollars that so much input can cost, however it is cached."""
        if self.long is not None and input_tokens > self.long.above:
            return self._long.most(input_tokens)
        return input_tokens * max(_nano(self.input), self._write(), self._write_1h())

    def output_nano(self, input_tokens: int) -> int:
        """Nano-dollars of one token of output after so much input."""
        is_long = self.long is not None and input_tokens > self.long.above
        return _nano(self.output if not is_long or self.long is None else self.long.output)

    @property
    def _long(self) -> Price:
        """The prices of calls with much input."""
        assert self.long is not None
        values = msgspec.structs.asdict(self.long)
        del values["above"]
        return Price(**values)

    def _write(self) -> int:
        return _nano(self.input if self.cache_write is None else self.cache_write)

    def _write_1h(self) -> int:
        return self._write() if self.cache_write_1h is None else _nano(self.cache_write_1h)


class Table:
    """Prices by pattern of the model's name."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = sorted(prices.items(), key=lambda item: len(item[0]), reverse=True)

    def find(self, model: str) -> Price | None:
        """The price of a model; None: nobody knows it."""
        return next((price for pattern, price in self._prices if fnmatch.fnmatchcase(model, pattern)), None)


def load(own: Mapping[str, Price] | None = None) -> Table:
    """The package's table, with an owner's prices before it: his patterns win over equal ones."""
    return Table({**shipped(), **(own or {})})


def shipped() -> dict[str, Price]:
    """The table in the package."""
    content = importlib.resources.files(__package__).joinpath("prices.json").read_bytes()
    document = msgspec.json.decode(content, type=_File)
    return document.models


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    #: Of the file's form.
    version: Literal[1]
    #: What the numbers are; there is no other unit.
    unit: Literal["US dollars per million tokens"]
    #: When any of them was looked up last.
    as_of: str
    models: dict[str, Price]


def _nano(dollars_per_million: float) -> int:
    """Nano-dollars per token, rounded to the dearer side: a thousandth of a dollar per million is the finest step."""
    scaled = dollars_per_million * _PER_TOKEN
    whole = round(scaled)
    return whole if abs(scaled - whole) < 1e-6 else int(scaled) + 1  # noqa: PLR2004 - a float's own error
