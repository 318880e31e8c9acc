from __future__ import annotations

from agentina.system import clock


def test_boot_time_moves_forward() -> None:
    system = clock.SystemClock()
    before = system.boot()
    assert system.boot() >= before > 0


def test_times_are_shown_in_utc() -> None:
    assert clock.show_time(1_795_255_200_000) == "2026-11-21T10:00:00Z"


def test_boot_id_is_stable() -> None:
    assert clock.boot_id() == clock.boot_id() != ""
