from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.control.rollouts import figures, gates
from agentina.protocol.states import State

EMPTY = figures.Sample()


def sample(
    count: int, *, seconds: float = 60.0, failed: int = 0, agent_seconds: float = 36_000.0, seed: int = 0
) -> figures.Sample:
    """Tasks whose durations spread as in real life: a third take less than 0.6 of the typical time, or over 1.6."""
    chance, total = random.Random(seed), figures.Figures()
    for number in range(count):
        state = State.FAILED if number < failed else State.SUCCEEDED
        total = total.with_task(state, seconds * chance.lognormvariate(0, 0.5))
    return figures.Sample(figures=total, agent_seconds=agent_seconds)


def halted(updated: figures.Sample, past: figures.Sample = EMPTY, others: figures.Sample = EMPTY) -> list[str]:
    return [finding.gate for finding in gates.judge(updated=updated, past=past, others=others)]


def test_nothing_to_compare_with_halts_nothing() -> None:
    assert halted(sample(500, failed=500)) == []
    assert halted(EMPTY, EMPTY, EMPTY) == []


def test_all_three_are_found_and_told_with_figures() -> None:
    before = sample(1000, failed=10)
    assert halted(sample(1000, failed=90), before, before) == ["failures"]
    assert halted(sample(1000, seconds=90.0, failed=10), before, before) == ["duration"]
    assert halted(sample(100, failed=1), before, before) == ["throughput"]
    (finding,) = gates.judge(updated=sample(1000, failed=90), past=before, others=before)
    assert finding.text == (
        "9.0 % of 1000 tasks failed; of the same agents before 1.0 % of 1000 tasks; "
        "9.0 % of 1000 tasks failed; of agents not updated 1.0 % of 1000 tasks"
    )


def test_one_comparison_alone_must_find_much_more() -> None:
    before = sample(1000, failed=10)
    for pair in ({"past": before}, {"others": before}):
        assert halted(sample(1000, failed=90), **pair) == []
        assert halted(sample(1000, failed=300), **pair) == ["failures"]
        assert halted(sample(1000, seconds=90.0, failed=10), **pair) == []
        assert halted(sample(1000, seconds=150.0, failed=10), **pair) == ["duration"]


def test_less_to_do_is_no_fault_of_the_release() -> None:
    busy, night = sample(1000), sample(0)
    assert halted(sample(2), busy) == [], "nobody to compare with"
    assert halted(sample(2), busy, night) == [], "all have less to do"
    assert halted(sample(2), night, busy) == [], "these never had much to do"
    assert halted(sample(2), busy, busy) == ["throughput"]


def test_both_comparisons_must_agree() -> None:
    usual, hard = sample(1000), sample(1000, seconds=150.0, failed=300)
    assert halted(hard, usual, usual) == ["failures", "duration"]
    assert halted(hard, usual, hard) == []
    assert halted(hard, hard, usual) == []


@pytest.mark.parametrize("count", [3, 5])
def test_few_tasks_are_enough_when_all_of_them_fail(count: int) -> None:
    usual, updated = sample(1000, failed=5), sample(count, failed=count, agent_seconds=1.0)
    assert halted(updated, usual, usual) == (["failures"] if count > 3 else [])


def test_short_tasks_are_no_evidence_of_slowness() -> None:
    assert halted(sample(500, seconds=0.02), sample(500, seconds=0.005)) == []


def test_the_same_work_never_halts() -> None:
    """A thousand looks at the same distribution: none may see a difference."""
    for seed in range(1000):
        chance = random.Random(seed)
        count = chance.randrange(1, 300)
        updated = sample(count, failed=sum(chance.random() < 0.05 for _ in range(count)), seed=seed, agent_seconds=1.0)
        past = sample(300, failed=15, seed=-1 - seed, agent_seconds=300 / count)
        others = sample(300, failed=15, seed=100_000 + seed, agent_seconds=300 / count)
        assert halted(updated, past, others) == []
        assert halted(updated, past) == []


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.001, 0.999))
def test_the_chance_is_that_of_the_binomial_distribution(failed: int, ended: int, rate: float) -> None:
    exact = sum(
        math.comb(ended, count) * rate**count * (1 - rate) ** (ended - count) for count in range(failed, ended + 1)
    )
    assert gates.chance_of_at_least(failed, ended, rate) == pytest.approx(1.0 if not failed else exact, rel=1e-6)


def test_the_chance_of_many_tasks_is_near_that_of_a_few_less() -> None:
    exact, normal = (gates.chance_of_at_least(count // 10 + 100, count, 0.1) for count in (10_000, 10_001))
    assert normal == pytest.approx(exact, rel=0.2)


@given(st.lists(st.tuples(st.sampled_from(sorted(State, key=str)), st.none() | st.floats(0, 1e6)), max_size=30))
def test_figures_of_a_period_are_a_difference(tasks: list[tuple[State, float | None]]) -> None:
    start = figures.Figures().with_task(State.FAILED, 3.0).with_task(State.SUCCEEDED, 5.0)
    end = start
    for state, seconds in tasks:
        end = end.with_task(state, seconds)
    since = end.since(start)
    assert since.ended == sum(state in figures.FAILURES or state is State.SUCCEEDED for state, _ in tasks)
    assert since.failed == sum(state in figures.FAILURES for state, _ in tasks)
    assert start.since(end) == figures.Figures() or not since.ended, "lost figures are nothing, not less than nothing"
