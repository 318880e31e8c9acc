from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentina.control.rollouts import figures
from agentina.protocol.states import State

DAY = 86_400_000


def test_the_recent_past_has_one_to_two_days() -> None:
    ledger, now = figures.Ledger(), 1_800_000_000_000
    for hour in range(24 * 7):
        ledger.add(State.SUCCEEDED, 1.0, now + hour * 3_600_000)
        past = ledger.past(now + hour * 3_600_000)
        assert past.agent_seconds <= 2 * 86_400
        assert abs(past.figures.ended - past.agent_seconds / 3600) <= 1
        if hour > 24:
            assert past.agent_seconds >= 86_400
    assert ledger.totals.ended == 24 * 7


def test_an_agent_that_did_nothing_has_no_past() -> None:
    assert figures.Ledger().past(1_800_000_000_000) == figures.Sample()


@given(st.lists(st.integers(-2 * DAY, 2 * DAY), max_size=30))
def test_a_clock_that_jumps_makes_no_figures(steps: list[int]) -> None:
    ledger, now = figures.Ledger(), 1_800_000_000_000
    for count, step in enumerate(steps, 1):
        now += step
        ledger.add(State.FAILED, None, now)
        past = ledger.past(now)
        assert past.agent_seconds >= 0
        assert 0 <= past.figures.failed <= count
