from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentina.protocol import states
from agentina.protocol.states import State


def test_every_reason_has_a_sentence() -> None:
    assert set(states.REASONS) == set(states.Reason)


def test_nothing_follows_a_final_state() -> None:
    assert not [(a, b) for a in states.FINAL for b in State if states.may_follow(a, b)]


@given(st.lists(st.sampled_from(State), max_size=20))
def test_every_walk_is_short_and_ends_at_most_once(wishes: list[State]) -> None:
    walk = [State.QUEUED]
    for wish in wishes:
        if states.may_follow(walk[-1], wish):
            walk.append(wish)
    assert len(walk) == len(set(walk))
    assert sum(state in states.FINAL for state in walk) <= 1
