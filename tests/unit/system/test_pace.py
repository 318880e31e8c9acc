from __future__ import annotations

from agentina.system import pace


def is_fast(paced: pace.Pace) -> bool:
    return paced.is_fast


def test_one_slow_commit_leaves_the_loop_and_many_fast_ones_come_back() -> None:
    paced = pace.Pace()
    assert not is_fast(paced)
    for _ in range(40):
        paced.note(0.0002)
    assert is_fast(paced)
    paced.note(0.05)
    fast = 0
    while not is_fast(paced):
        paced.note(0.0002)
        fast += 1
    assert 20 < fast < 200
    for _ in range(40):
        paced.note(0.0002)
    paced.note(0.002)
    assert is_fast(paced), "a small hiccup is no slow disk"
    for _ in range(40):
        paced.note(0.002)
    assert not is_fast(paced)
