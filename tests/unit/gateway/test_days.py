from __future__ import annotations

import pytest

from agentina.gateway import budgets, days, prices, usage
from agentina.protocol import budgets as protocol

PRICE = prices.Price(input=1, output=10)
MIDNIGHT = 1_795_305_600_000


class Clock:
    """A wall clock that somebody sets."""

    now = MIDNIGHT - 3_600_000

    def __call__(self) -> int:
        return self.now


def call(tokens: int = 100, output: int = 1000) -> budgets.Call:
    return budgets.Call(input=tokens, output=output, price=PRICE)


def share(cap: int, *, limit: int = 10_000, left: int = 10_000, **more: object) -> protocol.Share:
    return protocol.Share(
        limit=protocol.Bounds(tokens=limit), cap=protocol.Bounds(tokens=cap), left=protocol.Bounds(tokens=left),
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def known(
    held: days.Days, organization: protocol.Share | None = None, agent: protocol.Whole | None = None
) -> days.Days:
    held.learn(days.Known(day=held.today, organization=organization, agent=agent), ahead_ms=0, is_away=False)
    return held


def use(held: days.Days, tokens: int, number: int = 1) -> None:
    charge = budgets.Charge(used=usage.Usage(output=tokens))
    held.hold("t", number, charge, day=held.today)
    held.settle("t", number, charge)


def test_nothing_goes_before_the_control_plane_was_heard_and_everything_where_it_knows_no_budget() -> None:
    held = days.Days(now_ms=Clock())
    assert isinstance(held.look(call()).problem, budgets.Wait)
    assert known(held).look(call()) == budgets.Room()


def test_a_share_that_is_used_up_is_waited_for_while_there_is_more_of_the_budget() -> None:
    held = known(days.Days(now_ms=Clock()), share(1500))
    asked: list[bool] = []
    held.on_unmet = lambda: asked.append(True)
    assert held.look(call()).problem is None
    use(held, 600)
    assert isinstance(held.look(call()).problem, budgets.Wait), "rather than an answer cut short"
    assert asked
    want = held.want()
    assert (want.spent.tokens, want.want.tokens) == (600, 600 + 1100)
    assert want.promise == protocol.Units(tokens=1500)
    assert held.look(call()).problem is not None
    known(held, share(1500, left=9_400))
    assert held.look(call()) == budgets.Room(most=800), (
        "there is no more to be had: a shorter answer is better than none"
    )


def test_what_nobody_can_have_is_used_up_and_says_so() -> None:
    held = known(days.Days(now_ms=Clock()), share(300, left=200, on_exhausted="park"))
    problem = held.look(call(200, 500)).problem
    assert isinstance(problem, budgets.Exhausted)
    assert problem.parks
    assert "9800 of 10000 tokens of the organization's budget of the day are used" in problem.detail


def test_what_is_not_needed_is_given_back() -> None:
    held = known(days.Days(now_ms=Clock()), share(8_000, cushion=protocol.Units(tokens=500)))
    held.join("t", {})
    use(held, 1_000)
    assert held.want().promise == protocol.Units(tokens=1_500)
    assert held.look(call(100, 1_000)).problem is not None


def test_an_agent_s_budget_is_its_own() -> None:
    whole = protocol.Whole(limit=protocol.Bounds(tokens=2_000, cost_nano=protocol.DOLLAR), on_exhausted="park")
    held = known(days.Days(now_ms=Clock()), agent=whole)
    assert held.needs_price
    use(held, 1_600)
    assert held.new_warnings() == ["1600 of 2000 tokens of the agent's budget of the day are used"]
    assert held.new_warnings() == []
    assert held.look(call(100, 500)) == budgets.Room(most=300)
    use(held, 250, number=2)
    problem = held.look(call(100, 500)).problem
    assert isinstance(problem, budgets.Exhausted)
    assert problem.parks
    assert held.left()["agent"].tokens == 150


def test_at_midnight_a_new_day_begins_and_a_share_has_to_be_had_first() -> None:
    clock = Clock()
    held = known(days.Days(now_ms=clock), share(5_000), protocol.Whole(limit=protocol.Bounds(tokens=1_200)))
    use(held, 1_150)
    assert isinstance(held.look(call()).problem, budgets.Exhausted)
    late = budgets.Charge(used=usage.Usage(output=50))
    held.hold("t", 9, late, day=held.today)
    clock.now = MIDNIGHT
    assert isinstance(held.look(call()).problem, budgets.Wait), "the share was yesterday's"
    assert held.is_starved
    want = held.want()
    assert (want.day, want.promise, want.spent.tokens) == ("2026-11-22", None, 0)
    held.settle("t", 9, late)
    assert held.want().spent.tokens == 0, "a call counts on the day it was let through"
    assert known(held, share(5_000)).look(call()).problem is None


def test_what_was_added_for_a_day_is_no_part_of_the_next() -> None:
    """The control plane may be away then: of the agent's own budget there is that of each day all the same."""
    clock = Clock()
    bounds, extra = protocol.Bounds(tokens=5_000, cost_nano=7), protocol.Units(tokens=4_000)
    held = known(days.Days(now_ms=clock), agent=protocol.Whole(limit=bounds, extra=extra))
    use(held, 4_500)
    assert held.left()["agent"].tokens == 500
    clock.now = MIDNIGHT
    assert held.left()["agent"] == protocol.Bounds(tokens=1_000, cost_nano=7)


@pytest.mark.parametrize("policy", ["stop", "park"])
def test_a_call_that_waits_for_the_control_plane_says_so(policy: protocol.OnExhausted) -> None:
    clock = Clock()
    held = known(days.Days(now_ms=clock), share(0, on_exhausted=policy))

    def waits_for() -> str:
        wait = held.look(call()).problem
        assert isinstance(wait, budgets.Wait)
        assert wait.parks is (policy == "park")
        return wait.detail

    assert waits_for().startswith("other hosts hold")
    held.learn(days.Known(day=held.today, organization=share(0, on_exhausted=policy)), ahead_ms=0, is_away=True)
    assert waits_for().endswith("the control plane does not answer")
    clock.now = MIDNIGHT
    assert waits_for().startswith("the control plane has not said yet")


def test_a_clock_that_is_set_back_finds_the_day_as_it_was() -> None:
    clock = Clock()
    clock.now = MIDNIGHT + 1
    held = known(days.Days(now_ms=clock), share(2_000))
    use(held, 1_500)
    clock.now -= 3_600_000
    assert isinstance(held.look(call()).problem, budgets.Wait)
    clock.now += 3_600_000
    assert held.want().spent.tokens == 1_500
    held.learn(days.Known(day=held.today, organization=share(9_000)), ahead_ms=-3_600_000, is_away=False)
    assert held.today == "2026-11-21", "the control plane's clock decides"


def test_a_task_s_record_says_what_it_used_whatever_was_told_before() -> None:
    held = days.Days(now_ms=Clock())
    today = held.today
    held.begin({today: protocol.Units(tokens=10)}, {"a": {today: protocol.Units(tokens=5)}})
    held.join("a", {today: protocol.Units(tokens=7)})
    held.join("a", {today: protocol.Units(tokens=7)})
    assert held.want().spent.tokens == 17


def test_while_the_control_plane_is_away_the_share_is_used_to_its_end() -> None:
    held = known(days.Days(now_ms=Clock()), share(1_000))
    held.learn(days.Known(day=held.today, organization=share(1_000)), ahead_ms=0, is_away=True)
    assert held.look(call()) == budgets.Room(most=900)
    use(held, 900)
    assert isinstance(held.look(call()).problem, budgets.Wait)
