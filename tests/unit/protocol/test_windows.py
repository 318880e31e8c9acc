from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.protocol import windows


def at(text: str) -> int:
    """Milliseconds of a moment in the week of Monday, 2 November 2026."""
    day, _, clock = text.partition(" ")
    number = 2 + ["mon", "tue", "wed", "thu", "fri", "sat", "sun"].index(day)
    hour, minute = map(int, clock.split(":"))
    return round(datetime(2026, 11, number, hour, minute, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("", "mon 00:00", None),
        ("00:00-00:00", "sun 23:59", None),
        ("02:00-05:00", "tue 02:00", "tue 05:00"),
        ("22:00-05:00", "wed 23:00", "wed 05:00"),
        ("fri 22:00-05:00", "sat 04:59", "sun 04:59"),
        ("fri 22:00-05:00", "fri 22:00", "fri 04:00"),
        ("sat-sun 00:00-00:00", "sun 12:00", "mon 00:00"),
        ("mon-wed,fri 01:00-02:00", "fri 01:30", "thu 01:30"),
        ("fri-mon 01:00-02:00", "mon 01:59", "tue 01:59"),
        ("SUN 22:00-01:00", "mon 00:30", "sun 00:30"),
    ],
)
def test_windows_hold_in_utc(window: str, inside: str, outside: str | None) -> None:
    assert windows.parse(window).is_open(at(inside))
    assert outside is None or not windows.parse(window).is_open(at(outside))


@pytest.mark.parametrize(
    "text", ["2-5", "24:00-01:00", "mon 02:00", "mo 02:00-03:00", "mon- 02:00-03:00", ",02:00-3:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        windows.parse(text)
    assert caught.value.code == "INPUT_INVALID"


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(errors.AgentinaError):
        windows.parse(text)


@given(st.integers(0, 1439), st.integers(0, 1439))
def test_a_window_is_open_as_long_as_it_says(begin: int, end: int) -> None:
    window = windows.parse("{:02}:{:02}-{:02}:{:02}".format(*divmod(begin, 60), *divmod(end, 60)))
    week = sum(window.is_open(60_000 * minute) for minute in range(7 * 1440))
    assert week == 7 * ((end - begin) % 1440 or 1440)
