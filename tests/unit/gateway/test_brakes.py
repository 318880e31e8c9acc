from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.gateway import brakes


def test_one_limited_answer_holds_for_as_long_as_was_asked() -> None:
    brake = brakes.Brake()
    brake.note(429, 100.0, retry_after=7)
    assert (brake.seconds(100.0), brake.seconds(107.0), brake.status) == (7.0, 0.0, 429)


def test_without_a_word_the_pause_doubles_to_a_minute() -> None:
    brake = brakes.Brake()
    pauses = []
    for _ in range(8):
        brake.note(529, 0.0)
        pauses.append(brake.seconds(0.0))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    brake.note(200, 100.0)
    brake.note(429, 100.0)
    assert brake.seconds(100.0) == 1


def test_single_faults_of_the_server_are_tolerated() -> None:
    brake = brakes.Brake()
    for _ in range(4):
        brake.note(500, 0.0)
    assert brake.seconds(0.0) == 0
    brake.note(0, 0.0)
    assert brake.seconds(0.0) == 1


@pytest.mark.parametrize(
    ("statuses", "story"),
    [
        ([429], "has too much to do (it answered 429)"),
        ([500] * 6, "failed 6 times in a row (it answered 500)"),
        ([500, 0, 0, 0, 0], "failed 5 times in a row (without an answer at last)"),
    ],
)
def test_it_says_why(statuses: list[int], story: str) -> None:
    brake = brakes.Brake()
    for status in statuses:
        brake.note(status, 100.0)
    assert brake.seconds(100.0) > 0
    assert brake.story == story


def test_a_refused_key_is_left_alone() -> None:
    brake = brakes.Brake()
    brake.note(401, 0.0)
    assert brake.seconds(0.0) == 30


def test_a_wrong_request_is_no_fault_of_the_provider() -> None:
    brake = brakes.Brake()
    for _ in range(20):
        brake.note(400, 0.0)
    assert brake.seconds(0.0) == 0


@given(st.lists(st.tuples(st.integers(0, 599), st.floats(0, 100), st.none() | st.floats(0, 1e9))))
def test_no_answer_holds_for_more_than_an_hour(answers: list[tuple[int, float, float | None]]) -> None:
    brake = brakes.Brake()
    for status, now, asked in answers:
        brake.note(status, now, retry_after=asked)
        assert 0 <= brake.seconds(now) <= 3600 + 100
