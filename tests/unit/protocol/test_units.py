from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.protocol import units


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1.5k", 1536), ("3TB", 3 << 40), ("7B", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", "1Q", "1..2", "GiB", "1 2", "9" * 400, "9" * 400 + "T"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("30s", 30), ("1h30m", 5400), ("2d", 172_800), ("1.5s", 1.5), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "soon", "-1", "1m1h", "nan", "inf", "1h30", "9" * 400 + "d"])
def test_not_durations(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        units.parse_duration(text)


@given(st.integers(0, 1 << 50))
def test_shown_sizes_are_close_to_the_truth(size: int) -> None:
    assert abs(units.parse_size(units.show_size(size).replace(" ", "")) - size) <= max(0.06 * size, 0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "250 ms"), (4.21, "4.2s"), (61, "1m 1s"), (3600, "1h"), (90_061, "1d 1h")]
)
def test_shown_durations(seconds: float, text: str) -> None:
    assert units.show_duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 tasks"), (1, "1 task"), (2, "2 tasks")])
def test_shown_counts(number: int, text: str) -> None:
    assert units.show_count(number, "task") == text
