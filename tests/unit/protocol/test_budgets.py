from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.protocol import budgets

AMOUNTS = st.builds(budgets.Amounts, **{name: st.integers(0, 1 << 40) for name in budgets.FIGURES})


@given(st.lists(AMOUNTS, max_size=5))
def test_a_sum_has_every_figure(rows: list[budgets.Amounts]) -> None:
    total = budgets.add(rows)
    assert [getattr(total, name) for name in budgets.FIGURES] == [
        sum(getattr(row, name) for row in rows) for name in budgets.FIGURES
    ]
    assert total.tokens == total.counted + total.cached


@pytest.mark.parametrize(
    ("wall_ms", "day"),
    [(0, "1970-01-01"), (86_399_999, "1970-01-01"), (86_400_000, "1970-01-02"), (1_795_305_599_999, "2026-11-21")],
)
def test_a_day_is_one_of_utc(wall_ms: int, day: str) -> None:
    assert budgets.day_of(wall_ms) == day
    assert budgets.day_of(budgets.next_day_ms(wall_ms) - 1) == day
    assert budgets.day_of(budgets.next_day_ms(wall_ms)) > day


def test_money_that_is_not_nothing_is_never_shown_as_nothing() -> None:
    shown = [budgets.show_money(nano) for nano in (0, 1, 100_000, 1_234_500_000_000)]
    assert shown == ["$0.0000", "<$0.0001", "$0.0001", "$1,234.5000"]
