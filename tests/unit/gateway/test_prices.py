from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.gateway import prices, usage
from agentina.protocol import budgets as protocol


def test_the_shipped_table_is_readable_and_complete() -> None:
    for name, price in prices.shipped().items():
        assert name.isascii()
        assert "*" not in name, "a variant that nobody priced would cost what its model does"
        assert 0 < price.input < price.output
        assert price.cached is not None
        assert price.max_output
        assert price.basis is not None
        assert price.source.startswith("https://")
        assert dt.date.fromisoformat(price.as_of)
        assert price.note, "how sure one can be"


def price_of(table: prices.Table, model: str) -> prices.Price:
    row = table.find(model)
    assert row is not None
    return row.price


def test_cached_input_is_charged_apart() -> None:
    price = prices.Price(input=3, output=15, cached=0.3, cache_write=3.75, cache_write_1h=6)
    used = usage.Usage(
        input=1_000_000, cached=1_000_000, cache_write=1_000_000, cache_write_1h=1_000_000, output=1_000_000
    )
    assert price.cost(used) == round((3 + 0.3 + 3.75 + 6 + 15) * protocol.DOLLAR)


def test_the_longest_pattern_wins_and_an_owner_overrides() -> None:
    own = prices.Price(input=1, output=1)
    wider = prices.Price(input=2, output=2)
    table = prices.Table({"gpt-*": wider, "gpt-5-mini*": own, "mine/*": own})
    assert price_of(table, "gpt-5-mini-2025-08-07") == price_of(table, "mine/llama") == own
    assert price_of(table, "gpt-5") == wider, "an owner's patterns go before names in the package"
    assert price_of(table, "o3") == prices.shipped()["o3"]
    assert [row.is_own for row in table] == [True] * 3 + [False] * len(prices.shipped())


@pytest.mark.parametrize(
    ("model", "priced_as"),
    [
        ("gpt-5-mini-2025-08-07", "gpt-5-mini"),
        ("claude-opus-4-5-20251101", "claude-opus-4-5"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("claude-opus-4-20250514", "claude-opus-4-20250514"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
    ],
)
def test_a_snapshot_costs_what_its_model_does_unless_it_has_a_row(model: str, priced_as: str) -> None:
    row = prices.Table({}).find(model)
    assert row is not None
    assert row.pattern == priced_as


@pytest.mark.parametrize(
    "model",
    ["", "gpt-6", "claude-fable-9", "gpt-5-pro", "o4-mini-deep-research", "o4-mini-deep-research-2025-06-26",
     "gpt-4o-mini-tts", "gemini-2.5-pro-preview-tts", "gpt-5-chat-latest"],
)  # fmt: skip
def test_a_model_nobody_priced_has_no_price(model: str) -> None:
    assert prices.Table({}).find(model) is None


amounts = st.floats(0, 1000)


some_prices = st.builds(
    prices.Price, input=amounts, output=amounts, cache_write=st.none() | amounts, cache_write_1h=st.none() | amounts
)


@given(some_prices, st.integers(0, 10**7), st.integers(0, 10**7))
def test_no_mix_of_caches_costs_more_than_was_reserved(price: prices.Price, total: int, written: int) -> None:
    written = min(total, written)
    for used in (
        usage.Usage(input=total - written, cache_write=written),
        usage.Usage(cached=total - written, cache_write_1h=written),
    ):
        assert price.cost(used) <= price.most(total)


def test_a_call_with_much_input_costs_more_in_all() -> None:
    price = prices.Price(input=1, output=10, cached=0.1, long=prices.Long(above=1000, input=2, output=15, cached=0.2))
    assert price.cost(usage.Usage(input=400, cached=600, output=10)) == 400 * 1000 + 600 * 100 + 10 * 10_000
    assert price.cost(usage.Usage(input=401, cached=600, output=10)) == 401 * 2000 + 600 * 200 + 10 * 15_000
    assert (price.most(1000), price.most(1001)) == (1_000_000, 2_002_000)
    assert (price.output_nano(1000), price.output_nano(1001)) == (10_000, 15_000)


@given(st.integers(0, 500_000), st.integers(0, 70_000), st.sampled_from(sorted(prices.shipped())))
def test_no_shipped_price_charges_more_than_was_reserved(total: int, output: int, name: str) -> None:
    price = prices.shipped()[name]
    reserved = price.most(total) + output * price.output_nano(total)
    for used in (usage.Usage(input=total, output=output), usage.Usage(cache_write_1h=total, output=output)):
        assert price.cost(used) <= reserved
