from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.client import backoff


def test_delays_double_up_to_the_most_and_start_again_after_success() -> None:
    pause = backoff.Backoff(chance=lambda: 1.0)
    assert [pause.delay() for _ in range(9)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    pause.reset()
    assert pause.delay() == pytest.approx(0.5)


@given(st.integers(0, 2000), st.floats(0, 1))
def test_delay_is_within_bounds_after_any_number_of_failures(failures: int, chance: float) -> None:
    pause = backoff.Backoff(chance=lambda: chance)
    for _ in range(failures):
        pause.delay()
    assert 0 <= pause.delay() <= backoff.MOST


@pytest.mark.parametrize(("asked", "least"), [(5.0, 5.0), (-3.0, 0.0), (1e12, backoff.MOST_ASKED)])
def test_retry_after_is_kept_within_reason(asked: float, least: float) -> None:
    assert backoff.Backoff(chance=lambda: 0.0).delay(asked) == least
