from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentina.gateway import budgets, prices, usage
from agentina.protocol import budgets as protocol
from agentina.protocol import jobs

PRICE = prices.Price(input=2, output=10, cache_write=2.5)


def call(tokens: int = 100, output: int = 1000, *, priced: bool = True) -> budgets.Call:
    return budgets.Call(input=tokens, output=output, price=PRICE if priced else None)


def test_without_limits_everything_goes() -> None:
    ledger = budgets.Ledger(jobs.Budget())
    assert isinstance(ledger.ask(call(10**9, 10**9, priced=False), seconds=10**9), budgets.Admitted)


def test_output_is_cut_down_to_what_is_left_and_then_the_budget_is_used_up() -> None:
    ledger = budgets.Ledger(jobs.Budget(tokens=1000))
    admitted = ledger.ask(call(), seconds=0)
    assert isinstance(admitted, budgets.Admitted)
    assert admitted.output == 900
    assert isinstance(ledger.ask(call(), seconds=0), budgets.Wait)
    ledger.settle(admitted.number, budgets.Charge(used=usage.Usage(input=100, output=800)))
    last = ledger.ask(call(), seconds=0)
    assert isinstance(last, budgets.Exhausted)
    assert last.kind is budgets.Kind.TOKENS
    assert "900 of 1000" in last.detail
    assert isinstance(ledger.ask(call(10, 50), seconds=0), budgets.Admitted), "a call that wants little still fits"


def test_a_refused_call_gives_all_back() -> None:
    ledger = budgets.Ledger(jobs.Budget(tokens=1000))
    first = ledger.ask(call(), seconds=0)
    assert isinstance(first, budgets.Admitted)
    ledger.release(first.number)
    assert ledger.left(0)["tokens"] == 1000


def test_cost_is_reserved_at_the_dearest_way_to_cache() -> None:
    ledger = budgets.Ledger(jobs.Budget(cost=1.0))
    admitted = ledger.ask(call(1000, 1000), seconds=0)
    assert isinstance(admitted, budgets.Admitted)
    assert admitted.reserved.cost_nano == 1000 * 2500 + 1000 * 10_000
    assert ledger.left(0)["cost"] == 1.0 - 0.0125


def test_a_model_without_a_price_is_no_free_one() -> None:
    assert isinstance(budgets.Ledger(jobs.Budget(cost=5)).ask(call(priced=False), seconds=0), budgets.Unpriced)
    ledger = budgets.Ledger(jobs.Budget(tokens=100_000))
    admitted = ledger.ask(call(priced=False), seconds=0)
    assert isinstance(admitted, budgets.Admitted)
    ledger.settle(admitted.number, budgets.Charge(used=usage.Usage(input=1), cost_nano=None))
    assert (ledger.totals.unpriced, ledger.totals.cost_nano) == (1, 0)


def test_duration_and_tool_calls_end_a_budget() -> None:
    ledger = budgets.Ledger(jobs.Budget(duration=60, tool_calls=2))
    assert isinstance(ledger.ask(call(), seconds=60), budgets.Exhausted)
    admitted = ledger.ask(call(), seconds=59)
    assert isinstance(admitted, budgets.Admitted)
    ledger.settle(admitted.number, budgets.Charge(tool_calls=2))
    last = ledger.ask(call(), seconds=59)
    assert isinstance(last, budgets.Exhausted)
    assert last.kind is budgets.Kind.TOOL_CALLS


def test_cached_input_does_not_count_against_tokens() -> None:
    ledger = budgets.Ledger(jobs.Budget(tokens=10_000))
    admitted = ledger.ask(call(), seconds=0)
    assert isinstance(admitted, budgets.Admitted)
    ledger.settle(admitted.number, budgets.Charge(used=usage.Usage(cached=10**6, output=10)))
    assert ledger.left(0)["tokens"] == 9_990


def test_each_limit_is_warned_of_once_at_four_fifths() -> None:
    ledger = budgets.Ledger(jobs.Budget(tokens=1000, duration=100))
    assert ledger.new_warnings(79) == []
    assert ledger.new_warnings(80) == ["80 of 100 seconds are over"]
    assert ledger.new_warnings(81) == []
    ledger.totals = budgets.Totals(used=usage.Usage(output=800))
    assert ledger.new_warnings(81) == ["800 of 1000 tokens are used"]
    ledger.raise_to(jobs.Budget(tokens=2000))
    assert ledger.new_warnings(81) == []


@given(st.integers(0, 10**9))
def test_the_estimate_is_above_a_token_for_four_bytes(size: int) -> None:
    assert budgets.estimate_input(size) > size // 4


class Concurrent(RuleBasedStateMachine):
    """Calls that come and go in any order, each using at most what it may."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = budgets.Ledger(jobs.Budget(tokens=50_000, cost=0.2, tool_calls=40))
        self.open: dict[int, budgets.Admitted] = {}

    @rule(tokens=st.integers(1, 9_000), output=st.integers(1, 20_000))
    def ask(self, tokens: int, output: int) -> None:
        decision = self.ledger.ask(call(tokens, output), seconds=0)
        if isinstance(decision, budgets.Admitted):
            assert decision.output <= output
            self.open[decision.number] = decision
        elif isinstance(decision, budgets.Wait):
            assert self.open, "waiting for nobody"
        else:
            assert not self.open, "used up although calls are under way"

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        admitted = self.open.pop(number)
        share = data.draw(st.integers(0, admitted.reserved.used.input))
        used = usage.Usage(
            input=data.draw(st.integers(0, share)),
            cache_write=admitted.reserved.used.input - share,
            output=data.draw(st.integers(0, admitted.output)),
        )
        self.ledger.settle(number, budgets.Charge(used=used, cost_nano=PRICE.cost(used), tool_calls=1))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        del self.open[number]
        self.ledger.release(number)

    @invariant()
    def nothing_overruns(self) -> None:
        assert self.ledger.totals.used.counted <= 50_000
        assert self.ledger.totals.cost_nano <= 0.2 * protocol.DOLLAR
        assert self.ledger.totals.tool_calls <= 40
        held = [self.ledger.held(number) for number in self.open]
        assert self.ledger.totals.used.counted + sum(one.used.counted for one in held) <= 50_000


TestConcurrent = Concurrent.TestCase
TestConcurrent.settings = settings(max_examples=40, stateful_step_count=40)
