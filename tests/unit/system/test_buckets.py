from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentina.system import buckets


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=200))
def test_pace_is_bounded_and_the_wait_is_true(pauses: list[float]) -> None:
    now, taken = 0.0, 0
    bucket = buckets.Bucket(burst=20, refill_seconds=2.0)
    for pause in pauses:
        now += pause
        wait = bucket.wait(now)
        got = bucket.take(now)
        assert got == (wait == 0)
        taken += got
    assert taken <= 20 + now / 2.0 + 1e-6


def test_it_comes_back() -> None:
    bucket = buckets.Bucket(burst=3, refill_seconds=2.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait(0.5) == 1.5
    assert bucket.take(2.0)
    assert not bucket.take(1.0), "a clock that goes back gives nothing"
