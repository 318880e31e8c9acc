"""What a call costs. The table is data (prices.json beside this); amounts are whole nano-dollars.

A model without a price is an error state, not free: where a budget has a limit in money its calls are refused, and
elsewhere they are counted as unpriced. What an owner says of a model goes before the package's table; of several of his
patterns that fit, the longest wins. The package's rows are names of models, not patterns: a variant of a model
(``-deep-research``, ``-tts``) has a price of its own, and a guess would charge too little. A snapshot, whose name ends
in a date, costs what its model does, unless it has a row.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

import msgspec

from agentina.gateway import usage

#: Nano-dollars that a price of one dollar per million tokens means for one token.
_PER_TOKEN: Final = 1000
#: What the name of a snapshot of a model ends in: a date, or the alias for the newest.
_SNAPSHOT: Final = re.compile(r"-(20\d\d-?\d\d-?\d\d|latest)$")

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
    #: Tokens that the model's context holds; absent: not known.
    context_window: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    #: Other prices of calls with much input; absent: none.
    long: Long | None = None
    #: What the number rests on: ``vendor``, the vendor's own page was read; ``lists``, independent lists that quote it
    #: agree; absent: whoever wrote it knows.
    basis: Literal["vendor", "lists"] | None = None
    #: The vendor's page, and the last day on which the price is known to have held; for people.
    source: str = ""
    as_of: str = ""
    #: What was compared, and what is not in the numbers; for people.
    note: str = ""

    def cost(self, used: usage.Usage) -> int:
        """Nano-dollars of one call."""
        if self.long is not None and used.given > self.long.above:
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


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A price, and which models it is for."""

    #: A glob pattern; in the package's table, a name.
    pattern: str
    price: Price
    #: Whether the host's owner said it, in ``gateway.yaml``.
    is_own: bool


class Table:
    """The prices of a host."""

    def __init__(self, own: Mapping[str, Price]) -> None:
        longest_first = sorted(own.items(), key=lambda item: len(item[0]), reverse=True)
        self._own = [Row(pattern, price, is_own=True) for pattern, price in longest_first]
        self._shipped = {name: Row(name, price, is_own=False) for name, price in shipped().items()}

    def __iter__(self) -> Iterator[Row]:
        """All rows, an owner's first."""
        yield from self._own
        yield from self._shipped.values()

    def find(self, model: str) -> Row | None:
        """The price of a model; None: nobody knows it."""
        names = (model, _SNAPSHOT.sub("", model))
        for name in names:
            for row in self._own:
                if fnmatch.fnmatchcase(name, row.pattern):
                    return row
        return next((self._shipped[name] for name in names if name in self._shipped), None)


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
    models: dict[str, Price]


def _nano(dollars_per_million: float) -> int:
    """Nano-dollars per token, rounded to the dearer side: a thousandth of a dollar per million is the finest step."""
    scaled = dollars_per_million * _PER_TOKEN
    whole = round(scaled)
    return whole if abs(scaled - whole) < 1e-6 else int(scaled) + 1  # noqa: PLR2004 - a float's own error
